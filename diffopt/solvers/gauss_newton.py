"""Damped Gauss-Newton (Levenberg-Marquardt) with a fixed number of iterations.

    minimise  f(x) = 1/2 |w * h(v(x) + s)|^2,   lower <= x <= upper,

where v stacks the values of the cost, the equalities and the inequalities, s are shifts (zero here; an augmented Lagrangian puts its
multipliers there), w are weights, and h is the hinge max(0, .) on inequalities and the identity elsewhere. With s = 0 and finite weights
this is the least-squares relaxation of the problem: what is violated is paid for.

One iteration, with A = J'J and g = J'r of the weighted residual r and its Jacobian J:

    (A + lam D) p = -g,    D = max(diag A, floor)                (Marquardt 1963)

on the variables that are not held at a bound, where a variable is held when it lies on a bound and -g points outward (Bertsekas 1982); variables
that p would carry over a bound are fixed on it and the rest is solved once more. The step is taken when the gain ratio
(f(x) - f(x + p)) / (-g'p - 1/2 p'Ap) is positive, and lam follows that ratio (Nielsen 1999). Both differences are padded by f's rounding error, so
that float32 does not refuse good steps near a minimum (Conn, Gould & Toint 2000, section 17.4.2). A lane that has converged, or whose numbers are
not finite, stops changing.

The derivative of the answer by `args` is that of the optimality condition x = clip(x - grad f(x, args)), by the implicit function
theorem, with the exact second derivative of f: no iteration is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from diffopt.solvers.base import Args, FlatProblem, Problem, SolverResult, Status, Unknown, Warm, all_finite, flatten, report

LEAST_DAMPING, MOST_DAMPING = 1e-5, 1e8
FREE_DAMPING = 1e-3  # up to here a step's size tells the distance to the solution
LEAST_GAIN = 1e-3  # of the predicted decrease, for a step to be taken
DIAGONAL_FLOOR = 1e-6  # of the largest element of diag A


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Weights:
    """Shift s and weight w of every stacked value."""

    shift: Float[Array, "m"]
    weight: Float[Array, "m"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Iterate:
    """One lane of the iteration: the point, its linearisation, the next candidate, and the damping."""

    x: Float[Array, "n"]
    values: Float[Array, "m"]
    jacobian: Float[Array, "n m"]  # transposed
    candidate: Float[Array, "n"]
    predicted: Float[Array, ""]  # decrease of f by the candidate, in the linear model
    small: Bool[Array, ""]  # whether the candidate is a nearly undamped step below the tolerance: x solves the problem
    damping: Float[Array, ""]
    raise_by: Float[Array, ""]  # factor on the damping at the next refusal
    steps: Int[Array, ""]
    taken: Bool[Array, ""]  # whether the last candidate was
    done: Bool[Array, ""]
    failed: Bool[Array, ""]


def begin(flat: FlatProblem, damping: Float[Array, ""]) -> Iterate:
    """The state before the first evaluation, whose candidate is the guess, moved inside the bounds."""
    n, m = flat.x.size, sum(flat.sizes)
    dtype = flat.x.dtype
    false = jnp.zeros((), bool)
    return Iterate(
        x=flat.x,
        values=jnp.full(m, jnp.inf, dtype),
        jacobian=jnp.zeros((n, m), dtype),
        candidate=jnp.clip(flat.x, flat.lower, flat.upper),
        predicted=jnp.zeros((), dtype),
        small=false,
        damping=jnp.asarray(damping, dtype),
        raise_by=jnp.asarray(4.0, dtype),
        steps=jnp.zeros((), jnp.int32),
        taken=false,
        done=false,
        failed=false,
    )


def weighted(flat: FlatProblem, values: Float[Array, "m"], weights: Weights) -> Float[Array, "m"]:
    """w * h(v + s)."""
    shifted = values + weights.shift
    return weights.weight * jnp.where(flat.is_ineq, jnp.maximum(shifted, 0), shifted)


def judge(flat: FlatProblem, old: Iterate, weights: Weights, first: Bool[Array, ""]) -> Iterate:
    """Evaluates the candidate and takes or refuses it. The first one is taken whatever it is."""
    values, jacobian = flat.linearize(old.candidate)
    residual, residual_old = weighted(flat, values, weights), weighted(flat, old.values, weights)
    f_old = 0.5 * jnp.sum(residual_old**2)
    decrease = 0.5 * jnp.sum((residual_old - residual) * (residual_old + residual))  # loses less than a difference of sums
    rounding = 10 * jnp.finfo(values.dtype).eps * f_old + jnp.finfo(values.dtype).tiny
    gain = (decrease + rounding) / (jnp.maximum(old.predicted, 0) + rounding)
    finite = all_finite(values, jacobian, old.candidate)
    take = (first | ((gain > LEAST_GAIN) & finite)) & ~old.done

    lowered = old.damping * jnp.clip(1 - (2 * gain - 1) ** 3, 0.25, 4.0)
    damping = jnp.where(first, old.damping, jnp.where(take, lowered, old.damping * old.raise_by))
    failed = old.failed | (first & ~finite)
    return replace(
        old,
        x=jnp.where(take, old.candidate, old.x),
        values=jnp.where(take, values, old.values),
        jacobian=jnp.where(take, jacobian, old.jacobian),
        damping=jnp.where(old.done, old.damping, jnp.clip(damping, LEAST_DAMPING, MOST_DAMPING)),
        raise_by=jnp.where(take, 4.0, 2 * old.raise_by),
        steps=old.steps + (~first & ~old.done),
        taken=take,
        failed=failed,
        done=old.done | failed,
    )


def propose(flat: FlatProblem, now: Iterate, weights: Weights, tolerance: float | Float[Array, ""]) -> Iterate:
    """The next candidate from the linearisation at x."""
    residual = weighted(flat, now.values, weights)
    active = jnp.where(flat.is_ineq, residual > 0, True) * weights.weight
    jacobian = now.jacobian * active
    A, g = jacobian @ jacobian.T, jacobian @ residual
    diagonal = jnp.diagonal(A)
    D = jnp.maximum(diagonal, DIAGONAL_FLOOR * jnp.max(diagonal) + jnp.finfo(A.dtype).tiny)

    def step(held: Bool[Array, "n"], fixed: Float[Array, "n"]) -> Float[Array, "n"]:
        """p with p = fixed where held, where fixed is 0 elsewhere, and the damped equations on the rest; NaN where they are singular."""
        free = jnp.where(held, 0.0, jnp.ones_like(g))
        matrix = A * free[:, None] * free + jnp.diag(jnp.where(held, 1.0, now.damping * D))
        right = jnp.where(held, fixed, -g - A @ fixed)
        factor = lax.linalg.cholesky(matrix)
        half = lax.linalg.triangular_solve(factor, right[:, None], left_side=True, lower=True)
        return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]

    if flat.bounded:
        held = ((now.x <= flat.lower) & (g > 0)) | ((now.x >= flat.upper) & (g < 0))
        target = now.x + step(held, jnp.zeros_like(g))
        over = (target < flat.lower) | (target > flat.upper)
        fixed = jnp.where(over, jnp.clip(target, flat.lower, flat.upper) - now.x, 0.0)
        candidate = jnp.clip(now.x + step(held | over, fixed), flat.lower, flat.upper)
    else:
        candidate = now.x + step(jnp.zeros_like(g, bool), jnp.zeros_like(g))
    p = candidate - now.x
    size = jnp.max(jnp.abs(p))
    return replace(
        now,
        candidate=jnp.where(now.done, now.candidate, candidate),
        predicted=-(g @ p) - 0.5 * jnp.sum((p @ jacobian) ** 2),
        small=(size <= tolerance * (1 + jnp.max(jnp.abs(now.x)))) & (now.damping <= FREE_DAMPING),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GaussNewton:
    """Solves the least-squares relaxation: hard parts become residuals with a weight. Differentiable by `args`.

    `Status.converged` says that the relaxation is solved; how far the constraints hold is in the violations.

    Attributes:
      iterations: steps, always all of them.
      eq_weight, ineq_weight: factors on 1/2 |eq|^2 and 1/2 |max(0, ineq)|^2.
      damping: lam at the start, relative to diag A.
      tolerance: a lane has converged when its step is below this, relative to 1 + max |x|.
    """

    iterations: int = field(default=15, metadata=dict(static=True))
    eq_weight: float | Float[Array, ""] = 100.0
    ineq_weight: float | Float[Array, ""] = 100.0
    damping: float | Float[Array, ""] = 1e-3
    tolerance: float | Float[Array, ""] = 1e-5

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations}; at least 1 is needed")

    def cold(self, problem: Problem, z: Unknown, args: Args = None) -> Warm:
        flat = flatten(problem, z, args)
        dtype = flat.x.dtype
        _, e, i = flat.sizes
        return Warm(
            eq_multiplier=jnp.zeros(e, dtype),
            ineq_multiplier=jnp.zeros(i, dtype),
            penalty=jnp.ones((), dtype),
            damping=jnp.asarray(self.damping, dtype),
        )

    def __call__(self, problem: Problem, z: Unknown, args: Args = None, warm: Warm | None = None) -> SolverResult:
        flat = flatten(problem, z, args)
        warm = self.cold(problem, z, args) if warm is None else warm
        weight = jnp.where(flat.is_eq, self.eq_weight, jnp.where(flat.is_ineq, self.ineq_weight, 1.0)).astype(flat.x.dtype)
        weights = Weights(shift=jnp.zeros_like(weight), weight=jnp.sqrt(weight))

        def iterate(k: Int[Array, ""], state: Iterate) -> Iterate:
            state = propose(flat, judge(flat, state, weights, k == 0), weights, self.tolerance)
            return replace(state, done=state.done | state.small)

        def solve(_: object, x: Float[Array, "n"]) -> tuple[Float[Array, "n"], Array]:
            end = lax.fori_loop(0, self.iterations + 1, iterate, begin(replace(flat, x=x), warm.damping))
            return end.x, jnp.stack([end.damping, end.steps, end.done, end.failed])  # as floats, which custom_root can carry

        def optimality(x: Float[Array, "n"]) -> Float[Array, "n"]:
            gradient = jax.grad(lambda x: 0.5 * jnp.sum(weighted(flat, flat.evaluate(x), weights) ** 2))(x)
            return x - jnp.clip(x - gradient, flat.lower, flat.upper)

        x, final = lax.custom_root(optimality, flat.x, solve, _dense_solve, has_aux=True)
        damping, steps, done, failed = lax.stop_gradient(final)
        status = jnp.where(failed > 0, Status.nonfinite, jnp.where(done > 0, Status.converged, Status.iteration_limit))
        return report(flat, x, status, steps.astype(jnp.int32), replace(warm, damping=damping))


def _dense_solve(linear, y: Float[Array, "n"]) -> Float[Array, "n"]:  # type: ignore[no-untyped-def]
    """x with linear(x) = y; directions that the problem leaves free stay put."""
    matrix = jax.vmap(linear, out_axes=1)(jnp.eye(y.size, dtype=y.dtype))
    diagonal = jnp.abs(jnp.diagonal(matrix))
    ridge = LEAST_DAMPING * jnp.maximum(diagonal, DIAGONAL_FLOOR * jnp.max(diagonal))
    return jnp.linalg.solve(matrix + jnp.diag(ridge), y)
