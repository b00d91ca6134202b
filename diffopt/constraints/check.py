"""Checks that nobody can differentiate: a simulator, a table, a rule in plain Python.

    value(plan, aux) <= 0,      or a predicate: 0 where it holds, 1 where it does not

The function runs on the host. It has no gradient, and no solver sees it: what it decides is the report, and with it the status of a plan,
and every choice that a sampler makes by reports, among draws (rejection), members of a population (particles), tracks and particles (OGD).
A sampler that follows gradients alone is not helped by it, and told the truth about its plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.plans import Point


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FromCheck:
    """A check that the user writes; see `from_check`."""

    function: Callable[..., Any] = field(metadata=dict(static=True))
    numbers: tuple[Any, ...] = ()
    rows: int = field(default=1, metadata=dict(static=True))
    batched: bool = field(default=False, metadata=dict(static=True))
    name: str = field(metadata=dict(static=True))
    kind: Kind = field(default="check", metadata=dict(static=True))
    plan_type: type | tuple[type, ...] = field(default=object, metadata=dict(static=True))
    tolerance: float | tuple[float, ...] = field(default=0.0, metadata=dict(static=True))

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """The function's values, satisfied when <= 0; of a predicate 0 or 1. Its derivative is zero."""
        given = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, (plan, aux, self.numbers)))
        ranks = [leaf.ndim for leaf in jax.tree.leaves(given)]
        shape = jax.ShapeDtypeStruct((self.rows,), jnp.float32)
        return jax.pure_callback(partial(self._ask, ranks), shape, *given, vmap_method="broadcast_all")

    def _ask(self, ranks: list[int], *given: Any) -> Float[np.ndarray, "*batch m"]:
        """On the host: the values of all plans of a batch, which may have several leading axes or none."""
        leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, given))
        leading = leaves[0].shape[: leaves[0].ndim - ranks[0]] if leaves else ()
        count = math.prod(leading)
        flat = [leaf.reshape(count, *leaf.shape[len(leading) :]) for leaf in leaves]

        def ask(rows: list[np.ndarray]) -> np.ndarray:
            plan, aux, numbers = jax.tree.unflatten(structure, rows)
            try:
                found = np.asarray(self.function(plan, aux, *numbers))
            except Exception as error:
                raise RuntimeError(f"check {self.name!r} failed with {type(error).__name__}: {error}") from error
            if found.dtype.kind not in "biuf":
                raise TypeError(
                    f"check {self.name!r} gave {found!r}; expected a number (satisfied when <= 0) or a truth value"
                )
            return 1.0 - found if found.dtype == bool else found

        one_by_one = range(0 if self.batched else count)
        values = (
            ask(flat)
            if self.batched
            else np.stack([np.atleast_1d(ask([leaf[i] for leaf in flat])) for i in one_by_one])
        )
        if values.size != count * self.rows:
            raise ValueError(
                f"check {self.name!r} gave {values.shape} for {count} plans; expected rows={self.rows} number(s) or truth values per plan"
            )
        return values.astype(np.float32).reshape(*leading, self.rows)

    @staticmethod
    def example(key: Any) -> tuple[FromCheck, tuple[Point, Auxiliary], tuple[Point, Auxiliary]]:
        """A table of forbidden cells, a feasible and an infeasible (plan, aux)."""
        free = np.array([[True, False], [False, True]])
        constraint = from_check(_in_a_free_cell, free, name="free_cell", plan_type=Point)
        inside = jax.random.uniform(key, (2,), minval=0.05, maxval=0.95)
        return constraint, (Point(values=inside + 1), {}), (Point(values=inside + jnp.array([1.0, 0.0])), {})


def _in_a_free_cell(plan: Point, aux: Auxiliary, free: np.ndarray) -> bool:
    i, j = np.floor(plan.values).astype(int)
    return bool(0 <= i < free.shape[0] and 0 <= j < free.shape[1] and free[i, j])


def from_check(
    function: Callable[..., Any],
    *numbers: Any,
    name: str,
    rows: int = 1,
    batched: bool = False,
    plan_type: type | tuple[type, ...] = object,
    tolerance: float | tuple[float, ...] = 0.0,
) -> FromCheck:
    """A constraint from any Python function, which need not be differentiable and is never looked into.

    Args:
      function: `function(plan, aux, *numbers)`, all of NumPy arrays, `aux["joints"]` the arm's joints where a constraint asks for them.
        Either True where the plan is fine, or a signed value that is <= 0 there [its own unit], which ranks infeasible plans better. It
        must be the same function object from call to call, or every call compiles anew, and must always give the same for the same.
      numbers: pytrees of arrays that are handed to the function; new values do not retrace.
      name: how the set and the solution call it.
      rows: how many values it gives.
      batched: whether it is asked for many plans at once: all leaves, those of `numbers` too, have a leading axis of B plans, and (B,) or
        (B, rows) comes back.
      plan_type: type of plan that it speaks about.
      tolerance: what still counts as satisfied, per row or for all.
    """
    if rows < 1:
        raise ValueError(f"rows={rows}; a check gives at least one value")
    return FromCheck(
        function=function,
        numbers=numbers,
        rows=rows,
        batched=batched,
        name=name,
        plan_type=plan_type,
        tolerance=tolerance,
    )
