"""`ik`: postures that hold the tool at given poses, within the joint limits and clear of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet, Reach
from diffopt.constraints.base import NeedsRobot, OfRobot
from diffopt.geometry import Pose
from diffopt.inverse.guesses import bank
from diffopt.inverse.search import BLOCK, Tolerance, search
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Postures:
    """Postures for n poses; every leaf has a leading axis of n.

    Attributes:
      joints: of the arm [rad, m]; where a pose is not solved, the best that was found.
      solved: whether the tool is at the pose within the tolerances and every constraint holds within its own, as recomputed from
        `joints` by the robot's forward kinematics and the constraints, apart from the search.
      position_error, rotation_error: of the tool [m], [rad].
      violation: by the constraint's name, the largest violation in its own units; 0 where it holds exactly.
      attempts: descents that were made.
    """

    joints: Float[Array, "n A"]
    solved: Bool[Array, "n"]
    position_error: Float[Array, "n"]
    rotation_error: Float[Array, "n"]
    violation: dict[str, Float[Array, "n"]]
    attempts: Int[Array, "n"]

    def __len__(self) -> int:
        return self.solved.shape[0]


def ik(
    robot: Embodiment,
    poses: Pose,
    constraints: ConstraintSet | None = None,
    *,
    hand: Float[Array, "H"] | Float[Array, "n H"] | None = None,
    key: int | Array = 0,
    attempts: int = 64,
    position_tolerance: float = 1e-3,
    rotation_tolerance: float = float(np.deg2rad(0.5)),
) -> Postures:
    """Postures of the arm that hold the tool at `poses` and satisfy the constraints.

    Poses are worked on in blocks of fixed size, so that their number does not matter for compilation, and blocks in parallel.

    Args:
      robot: whose arm.
      poses: n poses T_world_tool, stacked.
      constraints: what the postures have to satisfy: joint limits, collisions, your own on a `Grasp` and "joints"; default the
        robot's own. A `Reach` in it is not looked at: the poses and the tolerances stand for it.
      hand: positions of the hand's joints, for all or for each pose; default the robot's `hand_home`.
      key: a PRNG key or an integer seed, for the guesses.
      attempts: a pose is given up after as many descents from different guesses (or a few more, when lanes are idle).
      position_tolerance, rotation_tolerance: [m], [rad].

    Raises:
      ValueError: if the robot has no arm, a shape or an argument does not fit, a pose is not finite or no rotation.
      TypeError: if `poses` is no `Pose`, or a constraint does not speak about a `Grasp`.
    """
    if not robot.arm:
        raise ValueError(
            f"{robot.name!r} has no arm: its tool {robot.tool!r} floats, so there are no joints to solve for"
        )
    n = _check_poses(poses)
    constraints = _checked(robot, robot.constraints if constraints is None else constraints)
    for name, value in (
        ("attempts", attempts),
        ("position_tolerance", position_tolerance),
        ("rotation_tolerance", rotation_tolerance),
    ):
        if not isinstance(value, jax.core.Tracer) and not value > 0:
            raise ValueError(f"{name}={value}: has to be positive")
    hand = robot.hand_home if hand is None else jnp.asarray(hand, jnp.float32)
    if hand.shape not in ((len(robot.hand),), (n, len(robot.hand))):
        raise ValueError(
            f"hand has shape {hand.shape}; expected ({len(robot.hand)},) or ({n}, {len(robot.hand)}) for {robot.name!r}"
        )
    hand = jnp.broadcast_to(hand, (n, len(robot.hand)))
    plans = Grasp(
        position=jnp.asarray(poses.position, jnp.float32),
        rotation=jnp.asarray(poses.rotation, jnp.float32),
        joints=hand,
        squeeze=jnp.zeros_like(hand),
    )
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(int(key))
    tolerance = Tolerance(jnp.float32(position_tolerance), jnp.float32(rotation_tolerance))
    guesses = _bank(robot, key)
    blocks = []
    for first in range(0, n, BLOCK):  # not waited for: the blocks run in parallel
        block = jax.tree.map(lambda leaf: _padded(leaf[first : first + BLOCK]), plans)  # noqa: B023
        wanted = jnp.arange(BLOCK) < n - first
        blocks.append(_block(robot, constraints, tolerance, block, wanted, guesses, jnp.int32(attempts)))
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:n], *blocks)
    return Postures(
        joints=found.joints,
        solved=found.verdict.satisfied,
        position_error=found.verdict.position,
        rotation_error=found.verdict.rotation,
        violation=found.verdict.report.violation,
        attempts=found.attempts,
    )


_bank, _block = jax.jit(bank), jax.jit(search)  # without the options of `compiling`, which would halve the speed


def _padded(leaf: Any) -> Any:
    return jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (BLOCK - len(leaf), *leaf.shape[1:]))])


def _checked(robot: Embodiment, constraints: ConstraintSet) -> ConstraintSet:
    """The constraints without any reach; those that wait for a robot get this one."""
    out = []
    for k in constraints:
        kinds = k.plan_type if isinstance(k.plan_type, tuple) else (k.plan_type,)
        if not issubclass(Grasp, kinds):
            raise TypeError(
                f"constraint {k.name!r} speaks about {' or '.join(t.__name__ for t in kinds)}, but a posture with its pose is a Grasp; "
                f"take it out with constraints.remove({k.name!r})"
            )
        if isinstance(k, NeedsRobot) and k.robot is None:
            k = k.on(robot)
        if isinstance(k, OfRobot) and k.robot.name != robot.name:
            raise ValueError(f"constraint {k.name!r} is about the robot {k.robot.name!r}, not {robot.name!r}")
        if not isinstance(k, Reach):
            out.append(k)
    return ConstraintSet(tuple(out))


def _check_poses(poses: Pose) -> int:
    """Their number."""
    if not isinstance(poses, Pose):
        raise TypeError(f"poses is a {type(poses).__name__}; expected a diffopt.geometry.Pose of n stacked poses")
    p, R = jnp.shape(poses.position), jnp.shape(poses.rotation)
    if len(p) != 2 or p[1] != 3 or (p[0], 3, 3) != R or p[0] == 0:
        raise ValueError(f"poses have position {p} and rotation {R}; expected (n, 3) and (n, 3, 3), n > 0")
    if isinstance(poses.position, jax.core.Tracer) or isinstance(poses.rotation, jax.core.Tracer):
        return p[0]
    position, rotation = np.asarray(poses.position), np.asarray(poses.rotation)
    bad = ~(np.isfinite(position).all(axis=1) & np.isfinite(rotation).all(axis=(1, 2)))
    if bad.any():
        raise ValueError(f"pose {int(np.argmax(bad))} is not finite")
    off = np.abs(np.einsum("nji,njk->nik", rotation, rotation) - np.eye(3)).max(axis=(1, 2))
    off = np.where(np.linalg.det(rotation) > 0, off, np.inf)
    if off.max() > 1e-3:
        raise ValueError(
            f"the rotation of pose {int(np.argmax(off))} is no rotation matrix (R^T R - 1 is up to {off.max():.2g})"
        )
    return p[0]
