"""The augmented Lagrangian method for equalities and inequalities, over damped Gauss-Newton.

    L(x; lam, mu, rho) = 1/2 |cost|^2 + rho/2 |eq + lam/rho|^2 + rho/2 |max(0, ineq + mu/rho)|^2          (Powell, Hestenes, Rockafellar)

is itself a sum of squares, so that its minimisation is the problem of `gauss_newton`, with shifts lam/rho and mu/rho.
After `inner` steps taken, or sooner when x minimises L,

    lam <- lam + rho eq,    mu <- max(0, mu + rho ineq),

and rho grows by `growth` where max(|eq|, |max(ineq, -mu/rho)|), the violation of feasibility and complementarity, has
not come down to a quarter (Birgin & Martinez 2014, algorithm 4.1) although x has come nearer to the minimum of L than
that. The minimisation is inexact on purpose: every linearisation is used, and each lane of a batch updates its
multipliers when it is ready rather than when the slowest is.

A lane has converged when that violation is below the tolerance and x minimises L with the new multipliers: the
conditions of Karush, Kuhn and Tucker. It is infeasible when a Gauss-Newton step on the violation alone promises next to
nothing: x is a stationary point of infeasibility.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from diffopt.solvers.base import Args, FlatProblem, Problem, SolverResult, Status, Unknown, Warm, flatten, report
from diffopt.solvers.gauss_newton import LEAST_DAMPING, Iterate, Weights, begin, judge, propose

ENOUGH = 0.25  # the share of the violation that an update of the multipliers may leave without raising rho
HOPELESS = 0.05  # the share of 1/2 |violation|^2 that a Gauss-Newton step must promise to remove


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Duals:
    """Multipliers of all stacked values (0 for the cost), penalty, and the violation when they were set."""

    multiplier: Float[Array, "m"]
    penalty: Float[Array, ""]
    violation: Float[Array, ""]
    age: Int[Array, ""]  # steps taken since

    def weights(self, flat: FlatProblem) -> Weights:
        constrained = flat.is_eq | flat.is_ineq
        return Weights(
            shift=self.multiplier / self.penalty,
            weight=jnp.where(constrained, jnp.sqrt(self.penalty), 1.0).astype(self.multiplier.dtype),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AugmentedLagrangian:
    """Solves the problem with hard constraints. Not differentiable by `args`: for that, see `GaussNewton`.

    Attributes:
      outer, inner: `outer` * `inner` steps, always all of them, each with one evaluation of the problem and its Jacobian; multipliers are
        updated after `inner` steps taken, or sooner.
      passes: Newton steps on the model in each.
      penalty: rho at the start.
      growth: factor on rho.
      most_penalty: where rho stops; rho * eps is the noise in the gradient, so float32 wants no more than about 1e4.
      damping: of Gauss-Newton at the start, relative to diag A.
      tolerance: of eq, ineq and complementarity, in their units; and of the last step, relative to 1 + max |x|.
    """

    outer: int = field(default=30, metadata=dict(static=True))
    inner: int = field(default=1, metadata=dict(static=True))
    passes: int = field(default=3, metadata=dict(static=True))
    penalty: float | Float[Array, ""] = 10.0
    growth: float | Float[Array, ""] = 4.0
    most_penalty: float | Float[Array, ""] = 1e4
    damping: float | Float[Array, ""] = 1e-3
    tolerance: float | Float[Array, ""] = 1e-5

    def __post_init__(self) -> None:
        if self.outer < 1 or self.inner < 1:
            raise ValueError(f"outer is {self.outer} and inner is {self.inner}; both must be at least 1")

    def cold(self, problem: Problem, z: Unknown, args: Args = None) -> Warm:
        flat = flatten(problem, z, args)
        dtype = flat.x.dtype
        _, e, i = flat.sizes
        return Warm(
            eq_multiplier=jnp.zeros(e, dtype),
            ineq_multiplier=jnp.zeros(i, dtype),
            penalty=jnp.asarray(self.penalty, dtype),
            damping=jnp.asarray(self.damping, dtype),
        )

    def __call__(self, problem: Problem, z: Unknown, args: Args = None, warm: Warm | None = None) -> SolverResult:
        flat = flatten(problem, z, args)
        warm = self.cold(problem, z, args) if warm is None else warm
        dtype = flat.x.dtype
        duals = Duals(
            multiplier=jnp.concatenate([jnp.zeros(flat.sizes[0], dtype), warm.eq_multiplier, warm.ineq_multiplier]),
            penalty=warm.penalty,
            violation=jnp.asarray(jnp.inf, dtype),
            age=jnp.zeros((), jnp.int32),
        )

        def iterate(k: Int[Array, ""], carry: tuple[Iterate, Duals]) -> tuple[Iterate, Duals]:
            old, duals = carry
            now = judge(flat, old, duals.weights(flat), k == 0)
            duals = replace(duals, age=duals.age + (now.taken & (k > 0)))
            duals = self._update(flat, now, duals, (duals.age >= self.inner) | (old.small & (k > 0)))
            now = propose(flat, now, duals.weights(flat), self.passes, self.tolerance)
            solved = now.small & (_violation(flat, now.values, duals) <= self.tolerance)
            return replace(now, done=now.done | solved), duals

        steps = self.outer * self.inner
        final, duals = lax.fori_loop(0, steps + 1, iterate, (begin(flat, warm.damping), duals))
        status = jnp.where(
            final.done,
            Status.converged,
            jnp.where(self._hopeless(flat, final), Status.infeasible, Status.iteration_limit),
        )
        status = jnp.where(final.failed, Status.nonfinite, status)
        parts = flat.split(duals.multiplier)
        warm = Warm(eq_multiplier=parts.eq, ineq_multiplier=parts.ineq, penalty=duals.penalty, damping=final.damping)
        return report(flat, final.x, status, final.steps, warm)

    def _update(self, flat: FlatProblem, now: Iterate, duals: Duals, ready: Array) -> Duals:
        """First-order multipliers and the penalty, where `ready`; lanes that are done keep theirs."""
        ready = ready & ~now.done
        violation = _violation(flat, now.values, duals)
        moved = duals.multiplier + duals.penalty * now.values
        multiplier = jnp.where(flat.is_ineq, jnp.maximum(moved, 0), jnp.where(flat.is_eq, moved, 0.0))
        slow = (violation > ENOUGH * duals.violation) & (violation > self.tolerance) & (now.size <= violation)
        penalty = jnp.where(
            slow, jnp.minimum(duals.penalty * self.growth, jnp.maximum(self.most_penalty, duals.penalty)), duals.penalty
        )
        new = Duals(multiplier=multiplier, penalty=penalty, violation=violation, age=jnp.zeros_like(duals.age))
        return jax.tree.map(lambda a, b: jnp.where(ready, a, b), new, duals)

    def _hopeless(self, flat: FlatProblem, final: Iterate) -> Array:
        """Whether the violation is above the tolerance and, to first order, cannot be made smaller."""
        weights = Weights(
            shift=jnp.zeros_like(final.values),
            weight=jnp.where(flat.is_eq | flat.is_ineq, 1.0, 0.0).astype(final.values.dtype),
        )
        eager = replace(
            final,
            bend=jnp.zeros_like(final.bend),
            damping=jnp.full_like(final.damping, LEAST_DAMPING),
            done=jnp.zeros_like(final.done),
        )
        promised = propose(flat, eager, weights, self.passes, self.tolerance).predicted
        terms = flat.split(final.values)
        violation = jnp.concatenate([terms.eq, jnp.maximum(terms.ineq, 0)])
        above = jnp.max(jnp.abs(violation), initial=0.0) > self.tolerance
        return above & (promised <= HOPELESS * 0.5 * jnp.sum(violation**2))


def _violation(flat: FlatProblem, values: Float[Array, "m"], duals: Duals) -> Float[Array, ""]:
    """max(|eq|, |max(ineq, -mu/rho)|): feasibility and complementarity."""
    terms, multipliers = flat.split(values), flat.split(duals.multiplier)
    slack = jnp.maximum(terms.ineq, -multipliers.ineq / duals.penalty)
    return jnp.max(jnp.abs(jnp.concatenate([terms.eq, slack])), initial=0.0)
