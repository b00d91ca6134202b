"""Grasps for an arm: what `experiments.grasp` and `experiments.demo` share.

An instance is a held-out object on a table with obstacles, and a robot whose base stands somewhere around it. All samplers get the same
instances, constraints, policy and keys; one plan per instance is returned, judged, and executed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import diffopt
from diffopt.compiling import compiler_options
from diffopt.evaluation.judge import Judge
from diffopt.evaluation.statistics import wilson
from diffopt.samplers import Sampler
from diffopt.scenes import Scene, objects, random_base, random_tabletop
from diffopt.tasks import floating_grasp, lift_on_arm


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One held-out problem: a scene, and the robot at its place."""

    scene: Scene
    robot: diffopt.Embodiment


def instances(
    robot: diffopt.Embodiment,
    count: int,
    seed: int,
    difficulty: str,
    numbers: Sequence[int] | None = None,
    families: Sequence[str] | str = "all",
) -> list[Instance]:
    """`count` instances, each with an object of its own, of some families; or those at some `numbers` among them."""
    out = []
    targets = objects.held_out(count, seed, tuple(objects.FAMILIES if families == "all" else families))
    for i in range(count) if numbers is None else numbers:
        target = targets[i]
        scene_key, base_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        scene = random_tabletop(scene_key, target, difficulty)
        out.append(Instance(scene=scene, robot=robot.at(random_base(base_key, scene, difficulty))))
    return out


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The plans of one sampler, one per instance, and what they cost.

    Attributes:
      solution: with a leading axis of instances.
      seconds: wall-clock per plan, all instances drawn in one call, compilation and the encoding of the observations apart.
      compile_seconds: of the first call.
    """

    solution: diffopt.Solution
    seconds: float
    compile_seconds: float


def draw(
    policy: diffopt.policies.Policy,
    problems: Sequence[Instance],
    sampler: Sampler,
    *,
    seed: int,
    numbers: Sequence[int],
    levels: int,
    moves: int = 0,
) -> Drawn:
    """One plan per instance; `numbers` say which key each gets, so that all samplers get the same."""
    targets = _stack([p.scene.target for p in problems])
    constraints = _stack([p.robot.constraints | p.scene.constraints for p in problems])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(list(numbers)))

    @jax.jit
    def run(policy, contexts, constraints, keys):
        def one(context, constraints, key):
            return diffopt.sample(
                replace(policy, context=context), constraints, key=key, sampler=sampler, levels=levels, moves=moves
            )

        return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(one)(contexts, constraints, keys))

    contexts = jax.jit(lambda policy, targets: jax.lax.map(lambda t: policy.given(t).bound().context, targets))(
        policy, targets
    )
    arguments = (policy.given(problems[0].scene.target).bound(), contexts, constraints, keys)
    start = time.perf_counter()
    program = run.lower(*arguments).compile(compiler_options=compiler_options())
    compiled = time.perf_counter() - start
    jax.block_until_ready(program(*arguments))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        solution = jax.block_until_ready(program(*arguments))
        seconds.append((time.perf_counter() - start) / len(problems))
    return Drawn(solution=solution, seconds=float(np.median(seconds)), compile_seconds=compiled)


def draw_one_by_one(
    policy: diffopt.policies.Policy,
    problems: Sequence[Instance],
    sampler: Sampler,
    *,
    seed: int,
    numbers: Sequence[int],
    levels: int,
    moves: int = 0,
) -> Drawn:
    """One plan per instance and call, as a user asks for one: what fails by its own account is drawn again (`diffopt.attempts`)."""
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in numbers]
    given = [(policy.given(p.scene.target).bound(), p.robot.constraints | p.scene.constraints) for p in problems]

    def ask(i: int) -> diffopt.Solution:
        bound, constraints = given[i]
        result = diffopt.sample(bound, constraints, key=keys[i], sampler=sampler, levels=levels, moves=moves)
        return jax.tree.map(lambda leaf: np.asarray(leaf[0]), replace(result, warm=None))

    start = time.perf_counter()
    ask(0)
    begun = time.perf_counter()
    solutions = [ask(i) for i in range(len(problems))]
    seconds = (time.perf_counter() - begun) / len(problems)
    return Drawn(
        solution=jax.tree.map(lambda *leaves: np.stack(leaves), *solutions),
        seconds=seconds,
        compile_seconds=begun - start - seconds,
    )


def judge(problems: Sequence[Instance], solution: diffopt.Solution) -> np.ndarray:
    """Whether each plan is kinematically feasible, by C MuJoCo."""
    plans = zip(problems, _each(solution.plans, len(problems)), np.asarray(solution.joints), strict=True)
    return np.array([Judge.of(p.robot, p.scene)(grasp, joints).feasible for p, grasp, joints in plans])


def planned(problem: Instance, solution: diffopt.Solution, index: int) -> tuple[Any, Any]:
    """The scene with the robot in the posture of plan `index`, as (MjModel, MjData)."""
    judge = Judge.of(problem.robot, problem.scene)
    grasp = jax.tree.map(lambda leaf: np.asarray(leaf[index]), solution.plans)
    judge(grasp, np.asarray(solution.joints[index]))
    mujoco.mj_forward(judge.model, judge.data)
    return judge.model, judge.data


def execute(problems: Sequence[Instance], solution: diffopt.Solution, config: Mapping[str, Any], **options: Any):
    """The outcome of every plan under the protocol: the whole arm and hand, or the floating hand at the planned wrist."""
    name, engine = config["protocol"]["name"], config["engine"]["name"]
    if name == "lift-on-arm":
        plans = zip(problems, _each(solution.plans, len(problems)), np.asarray(solution.joints), strict=True)
        return lift_on_arm.evaluate(
            [lift_on_arm.LiftTrial(robot=p.robot, scene=p.scene, grasp=g, joints=q) for p, g, q in plans],
            engine=engine,
            **options,
        )
    hand = floating_grasp.FloatingHand.load(config["policy"]["name"].removeprefix("grasp-"))
    solids = [p.scene.object for p in problems]
    places = jax.tree.map(np.asarray, _stack([p.scene.placement for p in problems]))
    grasps = jax.tree.map(np.asarray, solution.plans)
    which = np.arange(len(problems))
    return floating_grasp.evaluate(
        hand, solids, grasps, which, protocol=name, engine=engine, placement=places, **options
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One sampler on some instances: a row per trial, what was drawn, and how it went in physics (None if not executed)."""

    rows: list[dict[str, Any]]
    drawn: Drawn
    outcome: Any


def run_cell(
    policy: diffopt.policies.Policy,
    problems: Sequence[Instance],
    sampler: Sampler,
    config: Mapping[str, Any],
    numbers: Sequence[int],
    one_by_one: bool = False,
    moves: int = 0,
    **options: Any,
) -> Cell:
    """Draw, judge and execute; `options` go to the execution."""
    drawing = draw_one_by_one if one_by_one else draw
    drawn = drawing(
        policy, problems, sampler, seed=config["seed"], numbers=numbers, levels=config["levels"], moves=moves
    )
    solution = drawn.solution
    verdicts = judge(problems, solution)
    outcome = None if config["protocol"]["name"] == "none" else execute(problems, solution, config, **options)
    stats = jax.tree.map(np.asarray, solution.stats)
    rows = []
    for i, problem in enumerate(problems):
        row = {
            "object": problem.scene.object.name,
            "family": problem.scene.object.family,
            "status": diffopt.Status(int(solution.status[i])).name.lower(),
            "feasible": bool(verdicts[i]),
            "seconds": drawn.seconds,
            "compile_seconds": drawn.compile_seconds,
            "evaluations": int(stats.evaluations[i]),
            "control_energy": float(stats.control_energy[i]),
            "terminal_move": float(stats.terminal_move[i]),
        }
        if outcome is not None:
            row |= {"success": bool(outcome.success[i]), "reason": outcome.reason[i]}
        rows.append(row)
    return Cell(rows=rows, drawn=drawn, outcome=outcome)


COLUMNS = {
    "sampler": "sampler",
    "trials": "trials",
    "success": "success % [95 %]",
    "feasible": "feasible % by judge",
    "refused": "refused by judge",
    "ms": "ms a plan",
    "evaluations": "evaluations",
}


def summarise(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one cell."""
    n = len(rows)
    feasible = sum(row["feasible"] for row in rows)
    executed = [row for row in rows if "success" in row]
    success = wilson(sum(row["success"] for row in executed), len(executed)) if executed else None
    return {
        "sampler": name,
        "trials": n,
        "success": "not executed" if success is None else str(success),
        "feasible": str(wilson(feasible, n)),
        "refused": sum(row["status"] == "feasible" and not row["feasible"] for row in rows),
        "ms": float(1e3 * np.mean([row["seconds"] for row in rows])),
        "evaluations": float(np.mean([row["evaluations"] for row in rows])),
        "compile_s": float(max(row["compile_seconds"] for row in rows)),
        "reasons": dict(sorted(Counter(row["reason"] or "success" for row in executed).items())),
    }


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that make no sense, before any work."""
    for name, least in (("trials", 1), ("chunk", 1), ("levels", 1), ("moves", 0)):
        if not (isinstance(config.get(name, 0), int) and config.get(name, 0) >= least):
            raise ValueError(f"{name}={config.get(name)!r}; expected a whole number of at least {least}")
    if config["protocol"]["name"] == "lift-on-arm" and config["engine"]["name"] == "mjx-warp":
        raise ValueError(
            "protocol lift-on-arm runs on engine=c, mjx or auto; engine=mjx-warp runs protocol=dexgraspbench"
        )


def log_to_wandb(mode: Any, config: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> None:
    """Send a summary to Weights & Biases, unless it is off."""
    mode = "off" if mode in (False, None) else str(mode)  # YAML reads a bare off as false
    if mode == "off":
        return
    if mode not in ("offline", "online"):
        raise ValueError(f"wandb={mode!r}; there are: off, offline, online")
    import wandb

    with wandb.init(project="diffopt", config=dict(config), mode=mode) as session:
        session.log(
            {f"{row['sampler']}/{key}": value for row in summary for key, value in row.items() if key != "sampler"}
        )


def matched(one_draw: float, budget: float) -> diffopt.samplers.Rejection:
    """Rejection with as many draws as fit into `budget` [s per plan], rounded in its favour, at least one."""
    return diffopt.samplers.Rejection(draws=max(1, math.ceil(budget / one_draw)))


def _each(plans: Any, n: int) -> list[Any]:
    host = jax.tree.map(np.asarray, plans)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(n)]


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)
