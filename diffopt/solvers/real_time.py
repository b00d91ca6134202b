"""One Gauss-Newton step per problem, for a sequence of problems that change slowly.

Model-predictive control solves at every sample time a problem that is close to the last one, and takes a single linearisation and a
single step for it (the real-time iteration; Diehl, Bock & Schloeder 2005, SIAM J. Control Optim. 43:1714). The levels of a sampler are
such a sequence. With the augmented Lagrangian of `augmented_lagrangian`, values v and Jacobian J at x,

    x+ = x + p,   p from the damped, bounded Gauss-Newton equations,   v+ = v + J p,   mu+ = max(0, mu + rho v+),   lam+ = lam + rho v+.

Multipliers are left alone where the step had to be shortened: far from a solution they would only wind up. Nothing is evaluated at x+:
cost and violations of the result are those that the linearisation predicts, and its status says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.solvers.base import Args, FlatProblem, Problem, SolverResult, Status, Terms, Unknown, Warm, flatten
from diffopt.solvers.jacobians import Jacobian


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RealTimeIteration:
    """See the module's docstring. A step that is not finite is not taken; bounds are kept by clipping it.

    Attributes:
      penalty: rho.
      damping: relative to the diagonal of the cost's part of A.
      longest: largest change of any unknown in one step, in its units.
      tolerance: on the violations, and on the step relative to 1 + max |x|, for a status of converged.
      hard: whether multipliers are updated; without, each problem is the least-squares relaxation, eq and ineq weighted by rho.
      passes: how often the step is computed at most; each but the first looks at the inequalities that the last one would violate, which
        along a path are many.
    """

    penalty: float | Float[Array, ""] = 10.0
    damping: float | Float[Array, ""] = 1e-2
    longest: float | Float[Array, ""] = 0.5
    tolerance: float | Float[Array, ""] = 1e-3
    hard: bool = field(default=True, metadata=dict(static=True))
    passes: int = field(default=1, metadata=dict(static=True))

    def cold(self, problem: Problem, z: Unknown, args: Args = None) -> Warm:
        flat = flatten(problem, z, args)
        _, e, i = flat.sizes
        dtype = flat.x.dtype
        return Warm(
            eq_multiplier=jnp.zeros(e, dtype),
            ineq_multiplier=jnp.zeros(i, dtype),
            penalty=jnp.asarray(self.penalty, dtype),
            damping=jnp.asarray(self.damping, dtype),
        )

    def __call__(self, problem: Problem, z: Unknown, args: Args = None, warm: Warm | None = None) -> SolverResult:
        flat = flatten(problem, z, args)
        warm = self.cold(problem, z, args) if warm is None else warm
        x = jnp.clip(flat.x, flat.lower, flat.upper)
        values, jacobian = flat.linearize(x)
        terms = flat.split(values)
        # Relative to the cost's own curvature: relative to all of A, a stiff constraint would freeze the directions along it.
        own = jacobian.squares(~(flat.is_ineq | flat.is_eq))

        newton = partial(self._newton, flat, jacobian, terms, warm, own)
        shift = warm.ineq_multiplier / warm.penalty
        active = terms.ineq + shift > 0

        def again(carry):
            count, active, step, _ = carry
            ahead = flat.split(values + jacobian.push(step)).ineq + shift > 0
            return count + 1, ahead, newton(ahead), jnp.any(ahead != active)

        carry = (jnp.ones((), jnp.int32), active, newton(active), jnp.asarray(True))
        if self.passes > 1 and self.hard:
            carry = jax.lax.while_loop(lambda carry: (carry[0] < self.passes) & carry[3], again, carry)
        elif self.passes > 1:  # as many whatever happens, which has a derivative
            carry = jax.lax.fori_loop(1, self.passes, lambda _, carry: again(carry), carry)
        step = carry[2]
        size = jnp.max(jnp.abs(step))
        step = step * jnp.minimum(1.0, self.longest / jnp.maximum(size, 1e-12))
        near = size <= self.longest
        finite = jnp.all(jnp.isfinite(step))
        step = jnp.clip(x + jnp.where(finite, step, 0.0), flat.lower, flat.upper) - x
        ahead = flat.split(values + jacobian.push(step))
        eq_violation = jnp.max(jnp.abs(ahead.eq), initial=0.0)
        ineq_violation = jnp.max(ahead.ineq, initial=0.0)
        still = jnp.max(jnp.abs(step)) <= self.tolerance * (1 + jnp.max(jnp.abs(x)))
        kept = jnp.maximum(eq_violation, ineq_violation) <= self.tolerance
        status = jnp.where(still, jnp.where(kept, Status.converged, Status.infeasible), Status.iteration_limit)
        if self.hard:
            eq = warm.eq_multiplier + warm.penalty * ahead.eq
            ineq = jnp.maximum(warm.ineq_multiplier + warm.penalty * ahead.ineq, 0)
            warm = replace(
                warm,
                eq_multiplier=jnp.where(near, eq, warm.eq_multiplier),
                ineq_multiplier=jnp.where(near, ineq, warm.ineq_multiplier),
            )
        return SolverResult(
            z=flat.unravel(x + step),
            status=jnp.where(finite, status, Status.nonfinite),
            iterations=jnp.ones((), jnp.int32),
            cost=0.5 * jnp.sum(ahead.cost**2),
            eq_violation=eq_violation,
            ineq_violation=ineq_violation,
            warm=warm,
        )

    def _newton(
        self, flat: FlatProblem, jacobian: Jacobian, terms: Terms, warm: Warm, own: Array, active
    ) -> Float[Array, "n"]:
        """The step on which those inequalities count that are `active`."""
        root = jnp.sqrt(warm.penalty)
        shift = warm.ineq_multiplier / warm.penalty
        residual = jnp.concatenate(
            [
                terms.cost,
                root * (terms.eq + warm.eq_multiplier / warm.penalty),
                root * jnp.where(active, terms.ineq + shift, 0),
            ]
        )
        weight = jnp.concatenate(
            [jnp.ones_like(terms.cost), jnp.full_like(terms.eq, root), jnp.where(active, root, 0.0)]
        )
        ridge = self.damping * jnp.maximum(own, 1e-2 * jnp.max(own)) + 1e-9
        return -jacobian.solve(weight, ridge, jacobian.pull(weight * residual))
