"""Constraints written as plain functions of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.plans import Point


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FromResidual:
    """A residual that the user writes; see `from_residual`."""

    function: Callable[..., Float[Array, "m"]] = field(metadata=dict(static=True))
    numbers: tuple[Any, ...] = ()
    name: str = field(metadata=dict(static=True))
    kind: Kind = field(default="ineq", metadata=dict(static=True))
    plan_type: type | tuple[type, ...] = field(default=object, metadata=dict(static=True))
    tolerance: float | tuple[float, ...] = field(default=1e-3, metadata=dict(static=True))

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        try:
            rows = self.function(plan, *self.numbers)
        except Exception as error:
            there = ", ".join(f.name for f in fields(plan)) if is_dataclass(plan) else type(plan).__name__
            error.add_note(
                f"in the function of constraint {self.name!r}, which was given a {type(plan).__name__} ({there}) and "
                f"{len(self.numbers)} numbers; it is traced by JAX: compute with jax.numpy, or use from_check for any other code"
            )
            raise
        if rows is None or jnp.issubdtype(jnp.result_type(rows), jnp.bool_):
            gave = "nothing" if rows is None else "truth values"
            raise TypeError(
                f"the function of constraint {self.name!r} gave {gave}; a residual is an array of numbers (for truth values: from_check)"
            )
        return jnp.atleast_1d(rows)

    @staticmethod
    def example(key: Any) -> tuple[FromResidual, tuple[Point, Auxiliary], tuple[Point, Auxiliary]]:
        """The half-space n.x <= b, a feasible and an infeasible (plan, aux)."""
        normal = jax.random.normal(key, (2,))
        constraint = from_residual(
            lambda plan, n, b: n @ plan.values - b, normal, 0.5, name="half_space", plan_type=Point
        )
        return constraint, (Point(values=-normal), {}), (Point(values=normal / (normal @ normal)), {})


def from_residual(
    function: Callable[..., Float[Array, "m"]],
    *numbers: Any,
    name: str,
    kind: Kind = "ineq",
    plan_type: type | tuple[type, ...] = object,
    tolerance: float | tuple[float, ...] = 1e-3,
) -> FromResidual:
    """A constraint from a differentiable function.

    Args:
      function: `function(plan, *numbers)` gives the residual: zero ("eq"), <= 0 ("ineq"), or what is to be small ("cost"). It must be
        the same function object from call to call, or every call compiles anew; what changes belongs into `numbers`.
      numbers: pytrees of arrays that are handed to the function; new values do not retrace.
      name: how the set and the solution call it.
      kind: "eq", "ineq" or "cost".
      plan_type: type of plan that it speaks about.
      tolerance: what still counts as satisfied, per row or for all, in the residual's units.
    """
    if kind not in ("eq", "ineq", "cost"):
        raise ValueError(f"kind={kind!r}; there are: eq, ineq, cost")
    return FromResidual(
        function=function, numbers=numbers, name=name, kind=kind, plan_type=plan_type, tolerance=tolerance
    )
