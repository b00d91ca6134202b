"""Motions of an arm among obstacles: a Panda carries its open gripper from one side of a table to the other.

A plan is H = 16 postures of seven joints, `DT` apart, 112 numbers. The prior is the mixture of a narrow normal around each of 1024
demonstrated paths. Where a path goes is said by the cylinder coordinates of the gripper that points down: bearing b about the base,
radius r and height h. From a place on the right (b < 0) it goes through two gates to a place on the left; at each gate it is either

    straight   as high and as far out as at the ends        over      0.28 m higher
    inside     0.13 m nearer to the base                    outside   0.11 m further out

so there are 16 routes, 64 paths each. Joints are those of the closed form for an arm that is bent in one vertical plane (`posture`), to
which the elbow swings aside a little on the way.

At test time obstacles stand and hang in the way, and the velocity is limited, of which the demonstrations know nothing. An instance is
a number. Those of a feasible share of the prior near the dial are found by screening
(`experiments.comparison.arm_path_screen`); the judge is `path_judge`.

Collisions with the scene are looked at at the knots and halfway between them (`between_knots`). For what happens elsewhere, the constraint
sees the table and the obstacles grown by `GAP`; the judge, who looks at four postures per step, does not grow any.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffopt.constraints import ConstraintSet, SceneCollision, velocity_limits
from diffopt.evaluation.between_knots import BetweenKnots
from diffopt.evaluation.path_judge import PathJudge
from diffopt.geometry import Pose, Shapes
from diffopt.paths import JointPath, JointPathSpec
from diffopt.policies import Policy, gaussian_mixture
from diffopt.policies.base import Normalizer
from diffopt.robots.embodiment import Embodiment
from diffopt.scenes import Scene, tabletop
from diffopt.scenes.solids import Part
from diffopt.schedules import Cosine, Schedule

ROBOT = "panda-gripper"
H, DT = 16, 0.2  # knots; time between them [s]
OPEN = 0.04  # position of a finger [m]
BANDWIDTH = 0.12  # of the kernels, in standard deviations of a joint at a knot over all demonstrations
LEAST = 0.08  # such a standard deviation, at least [rad]
ENDS = (0.5, 0.5, 0.25)  # bearing [rad], radius and height [m] at the ends
GATES = {"straight": (0.0, 0.0), "over": (0.0, 0.28), "inside": (-0.13, 0.02), "outside": (0.11, 0.0)}
NEW = 6  # obstacles at test time, at most
GAP = 0.01  # by which the constraint grows them [m]
SLOW = (
    0.36,
    0.6,
)  # velocity limits, as shares of the robot's own: two fifths of the draws keep to the least, all to the highest
HIDDEN = Part(kind="sphere", size=(0.001,), position=(0.0, 0.0, -0.25))
UPPER, FORE = (
    (0.316, 0.0825),
    (0.384, 0.0825),
)  # from shoulder to elbow and on to the wrist: along the arm, and aside [m]
SHOULDER, OUT, DOWN = 0.333, 0.088, 0.107  # height of the shoulder; from the wrist to the gripper's origin [m]


def posture(
    bearing: Float[np.ndarray, "*n"], radius: Float[np.ndarray, "*n"], height: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 7"]:
    """Joints of the Panda [rad], elbow up, at which the gripper's origin is at a place [rad, m, m] and it points down; NaN out of reach.

    With D the distance from shoulder to wrist, U and F the lengths of the links, the law of cosines gives the angle at the elbow,
    cos g = (U^2 + F^2 - D^2) / 2UF, and at the shoulder, cos d = (U^2 + D^2 - F^2) / 2UD.
    """
    x, z = radius - OUT, height + DOWN - SHOULDER
    U, F, D = np.hypot(*UPPER), np.hypot(*FORE), np.hypot(x, z)
    with np.errstate(invalid="ignore"):
        bend = np.arccos((U**2 + F**2 - D**2) / (2 * U * F))
        lean = np.arccos((U**2 + D**2 - F**2) / (2 * U * D)) + np.arctan2(*UPPER[::-1])
    elbow = bend - 2 * np.pi + np.arctan2(*UPPER) + np.arctan2(*FORE)
    shoulder = np.arctan2(x, z) - lean
    still = np.zeros_like(elbow)
    return np.stack([bearing + still, shoulder, still, elbow, still, shoulder - elbow, still - np.pi / 4], axis=-1)


def routes() -> list[tuple[str, str]]:
    """Names of both gates, for every route."""
    return list(itertools.product(GATES, GATES))


def demonstrations(each: int = 64, seed: int = 0) -> Float[np.ndarray, "N H 7"]:
    """`each` paths per route [rad]: smooth curves through disturbed way points, no knot much further from the next than others are."""
    from scipy.interpolate import PchipInterpolator

    rng, out = np.random.default_rng([seed, 16]), []
    b, r, h = ENDS
    for route in routes():
        bent = np.array([(0.0, 0.0), *(GATES[name] for name in route), (0.0, 0.0)])
        way = np.column_stack([[-b, -b / 3, b / 3, b], np.array([r, h]) + bent])
        for _ in range(each):
            moved = way + [0.05, 0.015, 0.015] * rng.normal(size=way.shape)
            fine = PchipInterpolator(np.linspace(0, 1, 4), moved)(np.linspace(0, 1, 20 * H))
            joints = posture(*fine.T)
            joints[:, 6] += 0.1 * rng.normal()
            joints[:, [2, 4]] += np.sin(np.linspace(0, np.pi, len(fine)))[:, None] * 0.15 * rng.normal(size=2)
            run = np.concatenate([[0], np.cumsum(np.abs(np.diff(joints, axis=0)).max(axis=1) + 1e-9)])
            share = np.linspace(0, 1, H)
            hurry = share + rng.uniform(-0.08, 0.08) * np.sin(2 * np.pi * share)  # slow first, or late
            out.append(np.stack([np.interp(hurry * run[-1], run, q) for q in joints.T], axis=1))
    return np.array(out)


@dataclass(frozen=True, kw_only=True)
class ArmPathSpec:
    """Layout of a path of the arm's joints, knot after knot, as in `JointPathSpec`; the gripper stays open."""

    arm_names: tuple[str, ...]
    horizon: int = H
    dt: float = DT

    plan_type = JointPath

    @property
    def dim(self) -> int:
        return self._plain.dim

    @property
    def _plain(self) -> JointPathSpec:
        return JointPathSpec(arm_names=self.arm_names, horizon=self.horizon, dt=self.dt)

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> JointPath:
        return replace(self._plain.decode(vector, frame), joints=jnp.full((self.horizon, 1), OPEN, vector.dtype))

    def encode(self, plan: JointPath, frame: Pose) -> Float[Array, "n"]:
        return plan.arm.reshape(-1)

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        return (vector - reference) / scale

    def rows(self, *fields: str) -> np.ndarray:
        return self._plain.rows(*(name for name in fields if name == "arm")) if "arm" in fields else np.arange(0)


def arm_path_prior(robot: Embodiment, *, each: int = 64, schedule: Schedule | None = None) -> Policy:
    """The policy. Its kernels are about as wide as the noise of the last of 16 levels: narrower ones such a process does not draw."""
    paths = demonstrations(each).reshape(len(routes()) * each, -1)
    normalizer = Normalizer.fit(paths, smallest=LEAST)
    means = np.asarray(normalizer.normalize(jnp.asarray(paths, jnp.float32)))
    spec = ArmPathSpec(arm_names=robot.arm)
    made = gaussian_mixture(means, BANDWIDTH, schedule=schedule or Cosine(), spec=spec)
    return replace(made, normalizer=normalizer, name="arm-paths")


@dataclass(frozen=True, kw_only=True)
class ArmPathProblem:
    """Obstacles on the table, and limits on the velocity.

    Attributes:
      number: from which it was made.
      velocity: limits of the joints [rad/s].
    """

    number: int
    robot: Embodiment
    scene: Scene
    velocity: Float[np.ndarray, "A"]

    @property
    def constraints(self) -> ConstraintSet:
        """Reach, joint limits, self-collision; the scene, obstacles grown by `GAP`; velocity limits."""
        shapes: Shapes = self.scene.shapes
        grown = replace(shapes, radius=shapes.radius + GAP)
        clear = BetweenKnots(base=SceneCollision(shapes=grown, robot=self.robot))
        return self.robot.constraints | clear | velocity_limits(self.robot, limit=self.velocity)

    @cached_property
    def judge(self) -> PathJudge:
        return PathJudge.of(self.robot, self.scene, self.velocity, DT, np.array([OPEN]))

    def feasible(self, arm: Float[np.ndarray, "N H 7"]) -> Bool[np.ndarray, "N"]:
        """The judge's verdicts on many motions [rad]."""
        good = self.judge.within(np.asarray(arm, np.float64))
        for i in np.flatnonzero(good):
            good[i] = self.judge(arm[i])
        return good


def arm_path_problem(robot: Embodiment, paths: Float[np.ndarray, "N H 7"], number: int) -> ArmPathProblem:
    """The instance of a number: up to `NEW` posts, boxes and balls, each near the gripper at a knot of one of the demonstrated `paths`.

    The velocity limit is a share of the robot's own within `SLOW`.
    """
    rng = np.random.default_rng([number, 78])
    parts = []
    for _ in range(rng.integers(1, NEW + 1)):
        on = np.asarray(robot.tool_pose(jnp.asarray(paths[rng.integers(len(paths)), rng.integers(3, H - 3)])).position)
        parts.append(_obstacle(rng, on + 0.03 * rng.normal(size=3)))
    hidden = (HIDDEN,) * (NEW - len(parts))
    share = rng.uniform(*SLOW)
    return ArmPathProblem(
        number=number,
        robot=robot,
        scene=tabletop(obstacles=(*parts, *hidden)),
        velocity=share * np.asarray(robot.velocity, np.float64),
    )


def _obstacle(rng: np.random.Generator, on: Float[np.ndarray, "3"]) -> Part:
    """A post, a box that stands on the table, or a ball that hangs, at a place [m]; what stands ends 0.2 m below to 0.1 m above it."""
    kind, wide = rng.choice(["cylinder", "box", "sphere"]), rng.uniform(0.02, 0.06, 2)
    if kind == "sphere":
        return Part(kind="sphere", size=(float(wide[0] + 0.02),), position=tuple(on))
    half = float(np.clip(on[2] + rng.uniform(-0.2, 0.1), 0.05, 0.9)) / 2
    place = (float(on[0]), float(on[1]), half)
    if kind == "cylinder":
        return Part(kind="cylinder", size=(float(wide[0]), half), position=place)
    turn = rng.uniform(-np.pi, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    return Part(kind="box", size=(float(wide[0]), float(wide[1]), half), position=place, rotation=rotation)
