"""Grasps for an arm: what `experiments.grasp` and `experiments.demo` share.

An instance is a held-out object on a table with obstacles, and a robot whose base stands somewhere around it. All samplers get the same
instances, constraints, policy and keys; one plan per instance is returned, judged, and executed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffopt
from diffopt.evaluation.judge import Judge
from diffopt.samplers import Sampler
from diffopt.scenes import Scene, objects, random_base, random_tabletop
from diffopt.tasks.lift_on_arm import LiftTrial, evaluate


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One held-out problem: a scene, and the robot at its place."""

    scene: Scene
    robot: diffopt.Embodiment


def instances(robot: diffopt.Embodiment, count: int, seed: int, difficulty: str) -> list[Instance]:
    """`count` instances, each with an object of its own."""
    out = []
    for i, target in enumerate(objects.held_out(count, seed)):
        scene_key, base_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        scene = random_tabletop(scene_key, target, difficulty)
        out.append(Instance(scene=scene, robot=robot.at(random_base(base_key, scene, difficulty))))
    return out


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The plans of one sampler, one per instance, and what they cost.

    Attributes:
      solution: with a leading axis of instances.
      seconds: wall-clock per plan, all instances drawn in one call, compilation apart.
      compile_seconds: of the first call.
    """

    solution: diffopt.Solution
    seconds: float
    compile_seconds: float


def draw(policy: diffopt.policies.Policy, problems: Sequence[Instance], sampler: Sampler, *, key: int, levels: int) -> Drawn:
    """One plan per instance."""
    targets = _stack([p.scene.target for p in problems])
    constraints = _stack([p.robot.constraints | p.scene.constraints for p in problems])
    keys = jax.random.split(jax.random.key(key), len(problems))

    @jax.jit
    def run(policy, targets, constraints, keys):
        def one(target, constraints, key):
            return diffopt.sample(policy.given(target), constraints, key=key, sampler=sampler, levels=levels)

        return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(targets, constraints, keys))

    start = time.perf_counter()
    program = run.lower(policy, targets, constraints, keys).compile()
    compiled = time.perf_counter() - start
    arguments = (policy, targets, constraints, keys)
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solution = jax.block_until_ready(program(*arguments))
        seconds.append((time.perf_counter() - start) / len(problems))
    return Drawn(solution=solution, seconds=float(np.median(seconds)), compile_seconds=compiled)


def judge(problems: Sequence[Instance], solution: diffopt.Solution) -> list[bool]:
    """Whether each plan is kinematically feasible, by C MuJoCo."""
    grasps, joints = jax.tree.map(np.asarray, (solution.plans, solution.joints))
    return [
        Judge.of(p.robot, p.scene)(jax.tree.map(lambda leaf, i=i: leaf[i], grasps), joints[i]).feasible
        for i, p in enumerate(problems)
    ]


def execute(problems: Sequence[Instance], solution: diffopt.Solution, progress: Callable[[int], None] | None = None, **options: Any):
    """Every plan carried out by the whole arm and hand, by `lift-on-arm`."""
    grasps, joints = jax.tree.map(np.asarray, (solution.plans, solution.joints))
    trials = [
        LiftTrial(robot=p.robot, scene=p.scene, grasp=jax.tree.map(lambda leaf, i=i: leaf[i], grasps), joints=joints[i])
        for i, p in enumerate(problems)
    ]
    return evaluate(trials, progress=progress, **options)


def matched(sampler: diffopt.samplers.Rejection, one_draw: float, budget: float) -> diffopt.samplers.Rejection:
    """Rejection with as many draws as fit into `budget` [s per plan], at least one."""
    return replace(sampler, draws=max(1, round(budget / one_draw)))


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)
