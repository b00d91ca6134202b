"""Soft constraints: violations that are paid for instead of ruled out.

    cost = sqrt(w) max(0, ineq)   or   sqrt(w) eq,      so that 1/2 |cost|^2 = w/2 (violation)^2 is added to the objective

A softened constraint is a cost: the report does not ask for it. An equality that was solved for a part of the plan (reach) no longer is:
plan and joints may then part, at that price.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffopt.constraints.base import (
    Auxiliary,
    Constraint,
    HasAuxiliary,
    JointsLinear,
    Kind,
    Labelled,
    NeedsRobot,
    Windowed,
)
from diffopt.constraints.function import FromResidual
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.motion_limits import MotionLimits


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Softened:
    """A constraint as a cost; see the module's docstring.

    Attributes:
      base: the constraint.
      weight: w [per squared unit of the residual].
    """

    base: Any
    weight: float | Float[Array, ""]

    kind: ClassVar[Kind] = "cost"

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def plan_type(self) -> type | tuple[type, ...]:
        return self.base.plan_type

    @property
    def tolerance(self) -> float | tuple[float, ...]:
        return self.base.tolerance

    @property
    def robot(self) -> Any:
        return getattr(self.base, "robot", None)

    def on(self, robot: Any) -> Softened:
        """With the base for `robot`, where that needs one."""
        return replace(self, base=self.base.on(robot)) if isinstance(self.base, NeedsRobot) else self

    def auxiliary(self, plan: Any, context: Any) -> dict[str, Float[Array, "seeds n"]]:
        return self.base.auxiliary(plan, context) if isinstance(self.base, HasAuxiliary) else {}

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "... m"]:
        """Violations times sqrt(w), in rows as the base has them."""
        return _paid(self.base, self.weight, self.base.residual(plan, aux, context))

    def labels(self) -> tuple[str, ...]:
        return self.base.labels() if isinstance(self.base, Labelled) else ()

    @staticmethod
    def example(key: Any) -> tuple[Softened, tuple[Any, Auxiliary], tuple[Any, Auxiliary]]:
        """A half-space, soft; (plan, aux) inside and outside of it."""
        base, good, bad = FromResidual.example(key)
        return Softened(base=base, weight=100.0), good, bad


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SoftenedJoints(Softened):
    """As `Softened`, of a constraint that knows its Jacobian by the joints."""

    def jacobian(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m J"]]:
        """Violations times sqrt(w), and their derivative by the joints."""
        rows, J = self.base.jacobian(plan, aux, context)
        active = _active(self.base, rows).reshape(*rows.shape, *(1,) * (J.ndim - rows.ndim))
        return _paid(self.base, self.weight, rows), jnp.sqrt(self.weight) * jnp.where(active, J, 0.0)

    @staticmethod
    def example(key: Any) -> tuple[SoftenedJoints, tuple[Any, Auxiliary], tuple[Any, Auxiliary]]:
        """Joint limits, soft; (plan, aux) within them, and outside."""
        base, good, bad = JointLimits.example(key)
        return SoftenedJoints(base=base, weight=100.0), good, bad


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SoftenedWindows(Softened):
    """As `Softened`, of a constraint of a path that knows its Jacobian by neighbouring knots."""

    def windows(self, plan: Any, aux: Auxiliary, context: Any):
        """Violations times sqrt(w), and their derivatives by the joints; see `Windowed`."""
        rows, pieces = self.base.windows(plan, aux, context)
        active, out, start = _active(self.base, rows), [], 0
        for first, blocks in pieces:
            here = active[start : start + len(blocks), :, None, None]
            out.append((first, jnp.sqrt(self.weight) * jnp.where(here, blocks, 0.0)))
            start += len(blocks)
        return _paid(self.base, self.weight, rows), tuple(out)

    @staticmethod
    def example(key: Any) -> tuple[SoftenedWindows, tuple[Any, Auxiliary], tuple[Any, Auxiliary]]:
        """Velocity limits, soft; a slow and a fast (plan, aux)."""
        base, good, bad = MotionLimits.example(key)
        return SoftenedWindows(base=base, weight=100.0), good, bad


def soft(constraint: Constraint, weight: float | Float[Array, ""]) -> Constraint:
    """The constraint as a cost of `weight`; of one that is a cost already the weight is multiplied.

    Raises:
      ValueError: a check, which has no derivative.
    """
    if constraint.kind == "check":
        raise ValueError(f"{constraint.name!r} is a check: without a derivative it cannot be a cost")
    if isinstance(constraint, Windowed):
        return SoftenedWindows(base=constraint, weight=weight)
    return (SoftenedJoints if isinstance(constraint, JointsLinear) else Softened)(base=constraint, weight=weight)


def _paid(base: Constraint, weight: Any, rows: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sqrt(weight) * (jnp.maximum(rows, 0) if base.kind == "ineq" else rows)


def _active(base: Constraint, rows: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Which rows cost anything when they move."""
    return rows > 0 if base.kind == "ineq" else jnp.ones(rows.shape, bool)
