"""Constraints of one configuration, along a path.

What has to hold of a robot at one instant (reach, limits, collisions) has to hold at every knot of a motion. `along(constraint, spec)`
gives the constraint that says so: its residual has one row of rows per knot, (H, m), the auxiliary unknown "joints" is (H, A), and the
derivative by the joints is one block per knot. `diffopt.sample` does this by itself for policies that plan paths.

A constraint sees each knot as a `Grasp` with the tool's pose and the hand's joints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import (
    Auxiliary,
    Bounded,
    Constraint,
    JointsLinear,
    JointsRealised,
    Labelled,
    LikeBase,
    OfRobot,
)
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.orientation_cone import OrientationCone
from diffopt.constraints.reach import Reach
from diffopt.constraints.set import ConstraintSet
from diffopt.paths import JointPath, Path, ToolPath, is_path
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import follow


class _Along(LikeBase):
    """A constraint along a path that is made of another."""

    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AtEveryKnot(_Along):
    """A constraint of one configuration, at every knot of a path.

    Attributes:
      base: the constraint.
    """

    base: Any

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H m"]:
        """The residual at each knot, in the units of the constraint."""
        return jax.vmap(lambda knot, aux: self.base.residual(grasp_at(knot, self.base), aux, context))(plan, aux)

    def blocks(
        self, plan: Path, rate: Path, aux: Auxiliary, context: Any
    ) -> tuple[Float[Array, "H m"], Float[Array, "H m A"]]:
        """The residual, and at each knot its derivative by the knot's joints.

        Args:
          rate: how the knots of the plan move with their own joints, see `JointsRealised`.
        """
        base = self.base
        if isinstance(base, JointsLinear):
            return jax.vmap(lambda knot, aux: base.jacobian(grasp_at(knot, base), aux, context))(plan, aux)

        def one(knot: Path, moving: Path, joints: Float[Array, "A"]):
            def residual(knot: Path, joints: Float[Array, "A"]) -> Float[Array, "m"]:
                return jnp.ravel(base.residual(grasp_at(knot, base), {"joints": joints}, context))

            def push(moving: Path, unit: Float[Array, "A"]):
                return jax.jvp(residual, (knot, joints), (moving, unit))

            return jax.vmap(push, out_axes=(None, 1))(moving, jnp.eye(joints.size))

        return jax.vmap(one, in_axes=(0, 1, 0))(plan, rate, aux["joints"])

    def labels(self) -> tuple[str, ...]:
        return self.base.labels() if isinstance(self.base, Labelled) else ()

    @staticmethod
    def example(key: Any) -> tuple[AtEveryKnot, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """An orientation cone along three knots; (plan, aux) within it, and with the last knot outside."""
        base, (_, held), (_, bent) = OrientationCone.example(key)
        good = jnp.tile(held["joints"], (3, 1))
        bad = good.at[2].set(bent["joints"])
        return AtEveryKnot(base=base), _held_along(base.robot, good), _held_along(base.robot, bad)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LimitsAlong(_Along):
    """Box bounds on the joints, at every knot.

    Attributes:
      base: the limits.
    """

    base: Any

    def bounds(self) -> dict[str, tuple[Float[Array, "A"], Float[Array, "A"]]]:
        return self.base.bounds()

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H A"]:
        """As the base's, at each knot."""
        return jax.vmap(lambda aux: self.base.residual(None, aux, context))(aux)

    def labels(self) -> tuple[str, ...]:
        return self.base.labels()

    @staticmethod
    def example(key: Any) -> tuple[LimitsAlong, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """Three knots within the limits, and with one of them outside (plan, aux)."""
        base, (_, inside), (_, outside) = JointLimits.example(key)
        good = jnp.tile(inside["joints"], (3, 1))
        bad = good.at[1].set(outside["joints"])
        return LimitsAlong(base=base), _held_along(base.robot, good), _held_along(base.robot, bad)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ReachAlong(_Along):
    """The arm holds the tool where the path wants it, knot by knot; or has the joints that the path names.

    Attributes:
      base: reach at one knot.
      by_joints: whether the paths are `JointPath`s, of which it remains that the joints are the path's [rad].
    """

    base: Any
    by_joints: bool = field(default=False, metadata=dict(static=True))

    @property
    def robot(self) -> Any:
        return self.base.robot

    @property
    def tolerance(self) -> Any:
        return 1e-4 if self.by_joints else self.base.tolerance

    @property
    def realises(self) -> tuple[str, ...]:
        return ("arm",) if self.by_joints else self.base.realises

    def auxiliary(self, plan: Path, context: Any) -> dict[str, Float[Array, "seeds H A"]]:
        """The path followed from each of the base's guesses for its first knot; for a joint path, its joints."""
        if isinstance(plan, JointPath):
            return {"joints": plan.arm[None]}
        first = jax.tree.map(lambda leaf: leaf[0], plan)
        guesses = self.base.auxiliary(grasp_at(first, self.base), context)["joints"]
        return {"joints": jax.vmap(lambda joints: follow(self.robot, joints, plan.tool))(guesses)}

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H m"]:
        """As the base's, at each knot [m, rad]; for a joint path the difference of the joints [rad]."""
        if isinstance(plan, JointPath):
            return aux["joints"] - plan.arm
        return jax.vmap(lambda knot, aux: self.base.residual(grasp_at(knot, self.base), aux, context))(plan, aux)

    def realise(self, plan: Path, aux: Auxiliary, context: Any) -> Path:
        if isinstance(plan, JointPath):
            return replace(plan, arm=aux["joints"])
        knot = jax.vmap(lambda knot, aux: self.base.realise(grasp_at(knot, self.base), aux, context))(plan, aux)
        return replace(plan, position=knot.position, rotation=knot.rotation)

    def realised(self, plan: Path, aux: Auxiliary, context: Any) -> tuple[Path, Path]:
        """The realised path, and how each of its knots moves with its own joints: leaves with a leading axis of A, then of H."""
        if isinstance(plan, JointPath):
            horizon, arm = aux["joints"].shape
            moved = jnp.broadcast_to(jnp.eye(arm)[:, None], (arm, horizon, arm))
            still = jnp.zeros((arm, *plan.joints.shape))
            return replace(plan, arm=aux["joints"]), replace(plan, arm=moved, joints=still)

        def one(knot: ToolPath, aux: Auxiliary) -> tuple[Grasp, Grasp]:
            return self.base.realised(grasp_at(knot, self.base), aux, context)

        knot, rate = jax.vmap(one, out_axes=(0, 1))(plan, aux)
        path = replace(plan, position=knot.position, rotation=knot.rotation)
        return path, replace(plan, position=rate.position, rotation=rate.rotation, joints=rate.joints)

    def labels(self) -> tuple[str, ...]:
        return self.base.robot.arm if self.by_joints else self.base.labels()

    @staticmethod
    def example(key: Any) -> tuple[ReachAlong, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """A path that the joints follow, and one that they miss by 5 cm at one knot (plan, aux)."""
        base, (_, held), _ = Reach.example(key)
        joints = held["joints"] + 0.1 * jnp.arange(3)[:, None]
        plan, aux = _held_along(base.robot, joints)
        missed = replace(plan, position=plan.position.at[1, 2].add(0.05))
        return ReachAlong(base=base), (plan, aux), (missed, aux)


def along(constraint: Constraint, spec: Any) -> Constraint:
    """The constraint, of one configuration, at every knot of the paths that `spec` (a `ToolPathSpec` or `JointPathSpec`) describes."""
    if isinstance(constraint, Bounded):
        return LimitsAlong(base=constraint)
    if isinstance(constraint, JointsRealised):
        return ReachAlong(base=constraint, by_joints=issubclass(spec.plan_type, JointPath))
    return AtEveryKnot(base=constraint)


def fit(constraints: ConstraintSet, spec: Any) -> ConstraintSet:
    """The set for plans of `spec`: if these are paths, constraints of one configuration are put on every knot."""
    if not is_path(spec.plan_type):
        return constraints
    return ConstraintSet(tuple(along(c, spec) if _of_one(c, spec.plan_type) else c for c in constraints))


def _of_one(constraint: Constraint, path: type) -> bool:
    types = constraint.plan_type if isinstance(constraint.plan_type, tuple) else (constraint.plan_type,)
    return Grasp in types and path not in types


def grasp_at(knot: Path, constraint: Constraint) -> Grasp:
    """One knot of a path, as the constraints of one configuration see it; the rotation of a joint path's tool costs kinematics, if used."""
    squeeze = jnp.zeros_like(knot.joints)
    if isinstance(knot, ToolPath):
        return Grasp(position=knot.position, rotation=knot.rotation, joints=knot.joints, squeeze=squeeze)
    if not isinstance(constraint, OfRobot) or constraint.robot is None:
        raise TypeError(
            f"constraint {constraint.name!r} knows of no robot, which a path of joints needs to say where its tool is"
        )
    pose = constraint.robot.tool_pose(knot.arm)
    return Grasp(position=pose.position, rotation=pose.rotation, joints=knot.joints, squeeze=squeeze)


def _held_along(robot: Embodiment, joints: Float[Array, "H A"]) -> tuple[ToolPath, Auxiliary]:
    """The path of the tool on which the arm has some joints, its hand at rest."""
    tool = jax.vmap(robot.tool_pose)(joints)
    hand = jnp.tile(robot.hand_home, (len(joints), 1))
    return ToolPath(position=tool.position, rotation=tool.rotation, joints=hand, dt=0.1), {"joints": joints}
