"""What a solver is given and what it answers.

A problem over one unknown pytree z, with the numbers it depends on in a second pytree `args`:

    minimise    1/2 |cost(z, args)|^2
    subject to  eq(z, args) = 0,   ineq(z, args) <= 0,   lower(args) <= z <= upper(args).

Every part may be left out. A solver looks at one problem; `jax.vmap` makes the batch. It never raises on account of
values: what happened is told by a `Status`, and violations are reported as they are, never clipped or hidden.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from diffopt.solvers.jacobians import Dense, Jacobian

Unknown = Any  # a pytree of floating-point arrays
Args = Any  # a pytree
Residual = Callable[[Unknown, Args], Float[Array, "m"]]


class Status(enum.IntEnum):
    """What became of one solve."""

    converged = 0  # a stationary point within the tolerances
    iteration_limit = 1  # the iterations ran out before
    infeasible = 2  # the violation is stationary: no step from here makes it smaller
    nonfinite = 3  # a NaN or an infinity in the numbers given; z is where it was last finite, or as given


class Terms(NamedTuple):
    """The values of the three parts of a problem, each (m,)."""

    cost: Array
    eq: Array
    ineq: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Problem:
    """The functions of a problem; the numbers are in `args`.

    Attributes:
      cost, eq, ineq: residuals of (z, args), each of any shape; see above.
      bounds: `bounds(args)` gives (lower, upper), each with the structure of z and leaves that broadcast to it.
      linearize: `linearize(z, args)` gives (values, Jacobian) where that is cheaper than differentiating: the values as `Terms`, the
        Jacobian of all of them, stacked in that order.
      sizes: `sizes(z, args)` gives the numbers of rows of cost, eq and ineq where that is cheaper than tracing them.
    """

    cost: Residual | None = field(default=None, metadata=dict(static=True))
    eq: Residual | None = field(default=None, metadata=dict(static=True))
    ineq: Residual | None = field(default=None, metadata=dict(static=True))
    bounds: Callable[[Args], tuple[Unknown, Unknown]] | None = field(default=None, metadata=dict(static=True))
    linearize: Callable[[Unknown, Args], tuple[Terms, Jacobian]] | None = field(
        default=None, metadata=dict(static=True)
    )
    sizes: Callable[[Unknown, Args], tuple[int, int, int]] | None = field(default=None, metadata=dict(static=True))

    def terms(self, z: Unknown, args: Args) -> Terms:
        """The values of all parts, each flattened to (m,); a part left out is (0,)."""
        parts = (self.cost, self.eq, self.ineq)
        return Terms(*(jnp.zeros(0) if part is None else jnp.ravel(part(z, args)) for part in parts))

    def count(self, z: Unknown, args: Args) -> tuple[int, int, int]:
        """The numbers of rows of cost, eq and ineq."""
        shapes = jax.eval_shape(self.terms, z, args)
        return shapes.cost.size, shapes.eq.size, shapes.ineq.size


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Warm:
    """What one solve leaves to the next, beside z: multipliers, penalty and damping."""

    eq_multiplier: Float[Array, "e"]
    ineq_multiplier: Float[Array, "i"]
    penalty: Float[Array, ""]
    damping: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SolverResult:
    """The answer to one problem.

    Attributes:
      z: the solution, with the structure of the initial guess.
      status: a `Status`, as an integer array.
      iterations: steps taken until the answer stopped changing.
      cost: 1/2 |cost residual|^2 at z.
      eq_violation: max |eq| at z.
      ineq_violation: max of ineq at z, and at least 0.
      warm: for the next solve of a similar problem.
    """

    z: Unknown
    status: Int[Array, ""]
    iterations: Int[Array, ""]
    cost: Float[Array, ""]
    eq_violation: Float[Array, ""]
    ineq_violation: Float[Array, ""]
    warm: Warm


class Solver(Protocol):
    """Solves one problem from an initial guess."""

    def __call__(self, problem: Problem, z: Unknown, args: Args = None, warm: Warm | None = None) -> SolverResult: ...

    def cold(self, problem: Problem, z: Unknown, args: Args = None) -> Warm:
        """The state from which a solve without `warm` starts: the first carry of a scan over similar problems."""
        ...


@dataclass(frozen=True)
class FlatProblem:
    """A problem over a vector x (n,), its three parts stacked as one vector of m = c + e + i values."""

    x: Float[Array, "n"]
    unravel: Callable[[Float[Array, "n"]], Unknown]
    lower: Float[Array, "n"]
    upper: Float[Array, "n"]
    bounded: bool
    sizes: tuple[int, int, int]
    evaluate: Callable[[Float[Array, "n"]], Float[Array, "m"]]
    linearize: Callable[[Float[Array, "n"]], tuple[Float[Array, "m"], Jacobian]]

    @property
    def is_eq(self) -> np.ndarray:
        """Which of the stacked values are equalities."""
        return np.repeat([False, True, False], self.sizes)

    @property
    def is_ineq(self) -> np.ndarray:
        """Which of the stacked values are inequalities."""
        return np.repeat([False, False, True], self.sizes)

    def split(self, stacked: Array) -> Terms:
        """The parts of a stacked array."""
        c, e, _ = self.sizes
        return Terms(stacked[:c], stacked[c : c + e], stacked[c + e :])


def flatten(problem: Problem, z: Unknown, args: Args) -> FlatProblem:
    """The problem over a vector; errors name what does not fit."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(z):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"unknown z{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; unknowns are floating-point arrays"
            )
    x, unravel = ravel_pytree(z)
    if x.size == 0:
        raise ValueError("the unknown z has no elements")

    def stack(x: Float[Array, "n"]) -> Float[Array, "m"]:
        return jnp.concatenate(problem.terms(unravel(x), args))

    sizes = (problem.sizes or problem.count)(z, args)
    if sum(sizes) == 0:
        raise ValueError("the problem has no cost, no equality and no inequality: nothing to solve")

    def linearize(x: Float[Array, "n"]) -> tuple[Float[Array, "m"], Jacobian]:
        if problem.linearize is not None:
            values, jacobian = problem.linearize(unravel(x), args)
            return jnp.concatenate(values), jacobian
        values, columns = jax.vmap(lambda t: jax.jvp(stack, (x,), (t,)), out_axes=(None, 0))(
            jnp.eye(x.size, dtype=x.dtype)
        )
        return values, Dense(columns=columns)

    bounded = problem.bounds is not None
    lower, upper = jnp.full_like(x, -jnp.inf), jnp.full_like(x, jnp.inf)
    if problem.bounds is not None:
        lower, upper = (
            _broadcast(bound, z, name) for bound, name in zip(problem.bounds(args), ("lower", "upper"), strict=True)
        )
    return FlatProblem(x, unravel, lower, upper, bounded, sizes, stack, linearize)


def _broadcast(bound: Unknown, z: Unknown, name: str) -> Float[Array, "n"]:
    structures: list[object] = [jax.tree.structure(bound), jax.tree.structure(z)]
    if structures[0] != structures[1]:
        raise ValueError(f"the {name} bound has structure {structures[0]}; the unknown has {structures[1]}")
    full = jax.tree.map(
        lambda b, leaf: jnp.broadcast_to(jnp.asarray(b, jnp.result_type(leaf)), jnp.shape(leaf)), bound, z
    )
    return ravel_pytree(full)[0]


def report(
    flat: FlatProblem, x: Float[Array, "n"], status: Int[Array, ""], iterations: Int[Array, ""], warm: Warm
) -> SolverResult:
    """The result at x, with cost and violations evaluated there afresh."""
    terms = flat.split(flat.evaluate(x))
    return SolverResult(
        z=flat.unravel(x),
        status=status,
        iterations=iterations,
        cost=0.5 * jnp.sum(terms.cost**2),
        eq_violation=jnp.max(jnp.abs(terms.eq), initial=0.0),
        ineq_violation=jnp.max(terms.ineq, initial=0.0),
        warm=warm,
    )


def all_finite(*arrays: Array) -> Bool[Array, ""]:
    """Whether every element of every array is finite."""
    return jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]).all()
