"""Wrist poses around an object that an arm among obstacles has to reach: instances, and an oracle of what is attainable.

An instance is a number: from it come the height of a stand under the object, what stands around it, and where the arm's base is. Every
scene has `OBSTACLES` obstacles, those that are not wanted hidden inside of the table, so that all instances have one structure.

The oracle looks at exact draws of the prior (`wrists`). A draw is feasible if the open gripper, floating, is clear of the scene, and
inverse kinematics from many postures finds joints within limits, the arm clear of scene and itself; C MuJoCo has the last word
(`judge`). Its inverse kinematics is a damped Gauss-Newton method of its own: nothing of the samplers takes part.

The feasible share of the prior is the dial. Instances are screened for it: P(clear) from many draws, times P(inverse kinematics | clear)
from some of those that are clear.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffopt.constraints import ConstraintSet
from diffopt.evaluation.judge import Judge
from diffopt.evaluation.wrists import proper, target
from diffopt.geometry import Pose, Shapes
from diffopt.geometry.nearest import nearest
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.scenes import Scene, random_base, random_tabletop
from diffopt.scenes.random import Difficulty
from diffopt.scenes.solids import Part

OBSTACLES = 10  # the stand included
HIDDEN = Part(kind="sphere", size=(0.001,), position=(0.0, 0.0, -0.25))
SHARES = {
    "50": (0.35, 0.65),
    "10": (0.05, 0.2),
    "1": (0.005, 0.02),
    "0.1": (0.0004, 0.0025),
}  # the dial, and what counts as each
STARTS, KEPT, STEPS = 24, 8, 12  # of the oracle's inverse kinematics
PART = 256  # draws that are solved before it is seen whether there are enough
TOLERANCES = (1e-3, float(np.deg2rad(0.5)))  # [m], [rad]


@dataclass(frozen=True, kw_only=True)
class ReachProblem:
    """An object among obstacles, and an arm at its place.

    Attributes:
      number: from which it was made.
      scene, robot: host data; `robot` with its base in place.
    """

    number: int
    scene: Scene
    robot: Embodiment

    @property
    def constraints(self) -> ConstraintSet:
        return self.robot.constraints | self.scene.constraints

    @property
    def judge(self) -> Judge:
        return Judge.of(self.robot, self.scene)


def reach_problem(robot: Embodiment, number: int) -> ReachProblem | None:
    """The instance of a number; None where there is no place for the arm's base."""
    rng = np.random.default_rng([number, 77])
    crowded, far = rng.uniform(size=2)
    height = float(rng.choice([0.0, rng.uniform(0.02, 0.35)]))
    chosen = Difficulty(
        obstacles=round(crowded * OBSTACLES),
        ring=(0.07, 0.35 - 0.15 * crowded),
        stand=(height, height),
        gap=0.015,
        width=(0.015, 0.06),
        height=(0.05, 0.2 + 0.4 * crowded),
        base=(0.3 + 0.3 * far, 0.6 + 0.35 * far),
        facing=1.5,
        level=0.25,
    )
    around = chosen.obstacles - (height > 0)
    scene = random_tabletop(2 * number, target(), chosen, obstacles=max(0, around), points=1)
    try:
        base = random_base(2 * number + 1, scene, chosen)
    except ValueError:
        return None
    hidden = (HIDDEN,) * (OBSTACLES - len(scene.obstacles))
    return ReachProblem(number=number, scene=replace(scene, obstacles=scene.obstacles + hidden), robot=robot.at(base))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Gripper:
    """The spheres of a hand at rest, in the tool's frame: centres [m] in rows, and radii."""

    centers: Float[Array, "3 S"]
    radii: Float[Array, "S"]

    @staticmethod
    def of(robot: Embodiment) -> Gripper:
        tool = robot.kinematics.body(robot.tool)
        spheres = robot.spheres.take([i for i, b in enumerate(robot.spheres.body) if b in robot.below_tool])
        frames = robot.frames(robot.home)
        offset = spheres.place(frames) - frames.position[tool][:, None]
        return Gripper(centers=frames.rotation[tool].T @ offset, radii=jnp.asarray(spheres.radii))


@jax.jit
def clear(gripper: Gripper, shapes: Shapes, wrists: Pose) -> Bool[Array, "N"]:
    """Whether the floating gripper at N wrist poses (world) is clear of shapes."""

    def one(wrist: Pose) -> Bool[Array, ""]:
        placed = wrist.rotation @ gripper.centers + wrist.position[:, None]
        return jnp.all(nearest(shapes, placed)[1] >= gripper.radii)

    return jax.vmap(one)(wrists)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Solved:
    """Joints for wrist poses, and whether they satisfy the constraints."""

    joints: Float[Array, "N A"]
    feasible: Bool[Array, "N"]


@partial(jax.jit, static_argnames=("starts", "kept", "steps"))
def inverse_kinematics(
    constraints: ConstraintSet, grasps: Grasp, *, starts: int = STARTS, kept: int = KEPT, steps: int = STEPS
) -> Solved:
    """Joints for N grasps that satisfy all constraints: `starts` postures are brought to the grasp without regard to collisions, by
    `steps` steps; if none of them will do, the `kept` that collide least go on for as many steps with all constraints.

    Minimises 1/2 sum (reach / (1 cm, 0.05 rad))^2 + 1/2 sum (max(0, collision) / 1 cm)^2 within the joint limits, which are clipped.
    """
    reach: Any = constraints["reach"]
    others: list[Any] = [constraints[name] for name in ("self_collision", "scene_collision") if name in constraints]
    robot = reach.robot
    scale = jnp.array([0.01] * 3 + [0.05] * 3)

    def moved(grasp: Grasp, q, collisions):
        aux = {"joints": q}
        residual = [reach.residual(grasp, aux, None) / scale]
        jacobian = [jax.jacfwd(lambda q: reach.residual(grasp, {"joints": q}, None))(q) / scale[:, None]]
        for constraint in collisions:
            row, rate = constraint.jacobian(grasp, aux, None)
            active = jnp.where(row > 0, 100.0, 0.0)
            residual.append(active * row)
            jacobian.append(active[:, None] * rate)
        r, J = jnp.concatenate(residual), jnp.concatenate(jacobian)
        p = -jnp.linalg.solve(J.T @ J + 1e-2 * jnp.eye(q.size), J.T @ r)
        p = p * jnp.minimum(1.0, 0.5 / jnp.max(jnp.abs(p)))
        return jnp.clip(q + jnp.where(jnp.isfinite(p), p, 0.0), robot.lower, robot.upper)

    def descend(grasp: Grasp, q, collisions):

        def body(q, _):
            return (jax.vmap(lambda q: moved(grasp, q, collisions))(q), None)

        return jax.lax.scan(body, q, length=steps)[0]

    def one(grasp: Grasp):
        def judged(q):
            report = constraints.report(grasp, {"joints": q}, None)
            missed = jnp.linalg.norm(reach.residual(grasp, {"joints": q}, None))
            depth = sum((jnp.maximum(report.violation[c.name], 0) for c in others), jnp.zeros(()))
            return report.satisfied, jnp.where(missed < 0.02, depth, 1e3 + missed)

        q = descend(grasp, robot.nearest_seeds(grasp.wrist, starts), [])
        good, merit = jax.vmap(judged)(q)

        def further():
            more = descend(grasp, q[jax.lax.top_k(-merit, kept)[1]], others)
            fine, _ = jax.vmap(judged)(more)
            return Solved(joints=more[jnp.argmax(fine)], feasible=jnp.any(fine))

        ready = Solved(joints=q[jnp.argmax(good)], feasible=jnp.any(good))
        return jax.lax.cond(jnp.any(good) | (jnp.min(merit) >= 1e3), lambda: ready, further)

    return jax.lax.map(one, grasps)


@dataclass(frozen=True, kw_only=True)
class Share:
    """An estimate of the feasible share of the prior.

    Attributes:
      clear: share of the draws at which the floating gripper is clear of the scene.
      tried, feasible: how many of those were given to inverse kinematics, and how many of these are feasible.
    """

    clear: float
    tried: int
    feasible: int

    @property
    def estimate(self) -> float:
        return self.clear * self.feasible / self.tried if self.tried else 0.0

    @property
    def dial(self) -> str | None:
        """The one of `SHARES` that it belongs to."""
        return next((name for name, (low, high) in SHARES.items() if low <= self.estimate <= high), None)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """What is attainable, from one bank of exact draws of the prior; made by `Oracle.of`.

    Attributes:
      poses: normalised vectors.
      bank: their wrist poses in the object's frame, stacked.
      gripper: the hand at rest.
      fingers: its joints.
      block: how many poses are solved in one call.
    """

    poses: Float[np.ndarray, "M 9"]
    bank: Pose
    gripper: Gripper
    fingers: Float[np.ndarray, "J"]
    block: int = field(default=32)

    @staticmethod
    def of(policy: Any, robot: Embodiment, *, draws: int = 16384, seed: int = 99, block: int = 32) -> Oracle:
        """From a policy of `wrists` and the robot, wherever its base is."""
        x = policy.denoiser.sample(jax.random.key(seed), draws)
        vectors = policy.normalizer.denormalize(x)
        bank = jax.vmap(lambda v: policy.spec.decode(v, Pose.identity()).wrist)(vectors)
        return Oracle(
            poses=np.asarray(x),
            bank=bank,
            gripper=Gripper.of(robot),
            fingers=np.asarray(policy.spec.fingers),
            block=block,
        )

    def clear(self, problem: ReachProblem, most: int | None = None) -> np.ndarray:
        """Indices of the draws, or of the first `most`, at which the floating gripper is clear of the scene."""
        bank = jax.tree.map(lambda leaf: leaf[:most], self.bank)
        return np.flatnonzero(np.asarray(clear(self.gripper, problem.scene.shapes, problem.scene.placement @ bank)))

    def grasps(self, problem: ReachProblem, index: np.ndarray) -> Grasp:
        """Draws as grasps in the world."""
        wrist = problem.scene.placement @ jax.tree.map(lambda leaf: leaf[index], self.bank)
        fingers = jnp.broadcast_to(jnp.asarray(self.fingers, jnp.float32), (len(index), len(self.fingers)))
        return Grasp(position=wrist.position, rotation=wrist.rotation, joints=fingers, squeeze=jnp.zeros_like(fingers))

    def solve(self, problem: ReachProblem, index: np.ndarray) -> Solved:
        """Inverse kinematics for some draws, in blocks of one shape."""
        padded = np.resize(index, -(-len(index) // self.block) * self.block)
        out = [
            jax.tree.map(np.asarray, inverse_kinematics(problem.constraints, self.grasps(problem, part)))
            for part in padded.reshape(-1, self.block)
        ]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(index)], *out)
        return joined

    def feasible(self, problem: ReachProblem, index: np.ndarray) -> Bool[np.ndarray, "N"]:
        """Which of some draws are feasible by inverse kinematics and by the judge."""
        if not len(index):
            return np.zeros(0, bool)
        solved, judge = self.solve(problem, index), problem.judge
        grasps = jax.tree.map(np.asarray, self.grasps(problem, index))
        out = np.array(solved.feasible)
        for i in np.flatnonzero(out):
            out[i] = judge(jax.tree.map(lambda leaf, i=i: leaf[i], grasps), solved.joints[i]).feasible
        return out

    def exact(self, policy: Any, problem: ReachProblem, count: int) -> Float[np.ndarray, "count 9"]:
        """Exact draws of the posterior by rejection: normalised vectors, their rotations proper. Further banks are drawn as needed."""
        kept: list[np.ndarray] = []
        bank, seed = self, 1000
        while sum(map(len, kept)) < count:
            index = bank.clear(problem)
            for first in range(0, len(index), PART):  # no more inverse kinematics than it takes
                part = index[first : first + PART]
                kept.append(proper(policy, bank.poses[part[bank.feasible(problem, part)]]))
                if sum(map(len, kept)) >= count:
                    break
            bank, seed = Oracle.of(policy, problem.robot, draws=len(self.poses), seed=seed, block=self.block), seed + 1
        return np.concatenate(kept)[:count]
