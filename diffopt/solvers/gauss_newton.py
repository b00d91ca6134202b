"""Damped Gauss-Newton (Levenberg-Marquardt) with a fixed number of iterations.

    minimise  f(x) = 1/2 |w * h(v(x) + s)|^2,   lower <= x <= upper,

where v stacks the values of the cost, the equalities and the inequalities, s are shifts (zero here; an augmented
Lagrangian puts its multipliers there), w are weights, and h is the hinge max(0, .) on inequalities and the identity
elsewhere. With s = 0 and finite weights this is the least-squares relaxation of the problem: what is violated is paid
for.

One iteration minimises, over the step p and inside the bounds, a model that keeps the hinges and linearises what is
inside them,

    1/2 |w * h(v + s + J p)|^2 + 1/2 p'(S + lam D) p,       D = diag J'J, floored       (Marquardt 1963).

The model is convex and piecewise quadratic: a few semismooth Newton passes with an exact line search solve it, at the
cost of small matrices and of no evaluation of v. Bounds are kept by holding what lies on a bound with the slope
pointing outward (Bertsekas 1982). S >= 0 stands for the curvature of v, which matters where residuals stay large; it is
learnt from how J changes along the steps taken (Dennis, Gay & Welsch 1981).

The step is taken when f falls by a share of what the model promised, and lam follows that share (Nielsen 1999). Both
are padded by f's rounding error, so that float32 does not refuse good steps near a minimum (Conn, Gould & Toint 2000,
section 17.4.2). A lane that has converged, or whose numbers are not finite, stops changing.

The derivative of the answer by `args` is that of the optimality condition x = clip(x - grad f(x, args)), by the
implicit function theorem, with the exact second derivative of f: no iteration is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from diffopt.solvers.base import (
    Args,
    FlatProblem,
    Problem,
    SolverResult,
    Status,
    Unknown,
    Warm,
    all_finite,
    flatten,
    report,
)

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
    bend: Float[Array, "n n"]  # S: positive semidefinite estimate of the curvature that J'J leaves out
    candidate: Float[Array, "n"]
    predicted: Float[Array, ""]  # decrease of f by the candidate, in the model
    size: Float[Array, ""]  # max |candidate - x|
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
        bend=jnp.zeros((n, n), dtype),
        candidate=jnp.clip(flat.x, flat.lower, flat.upper),
        predicted=jnp.zeros((), dtype),
        size=jnp.full((), jnp.inf, dtype),
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
    values, linear = flat.linearize(old.candidate)
    jacobian = linear.dense()
    residual, residual_old = weighted(flat, values, weights), weighted(flat, old.values, weights)
    f_old = 0.5 * jnp.sum(residual_old**2)
    decrease = 0.5 * jnp.sum(
        (residual_old - residual) * (residual_old + residual)
    )  # loses less than a difference of sums
    rounding = 10 * jnp.finfo(values.dtype).eps * f_old + jnp.finfo(values.dtype).tiny
    gain = (decrease + rounding) / (jnp.maximum(old.predicted, 0) + rounding)
    finite = all_finite(values, jacobian, old.candidate)
    take = (first | ((gain > LEAST_GAIN) & finite)) & ~old.done

    lowered = old.damping * jnp.clip(1 - (2 * gain - 1) ** 3, 0.25, 4.0)
    damping = jnp.where(first, old.damping, jnp.where(take, lowered, old.damping * old.raise_by))
    failed = old.failed | (first & ~finite)
    pull = weights.weight * residual
    return replace(
        old,
        x=jnp.where(take, old.candidate, old.x),
        values=jnp.where(take, values, old.values),
        jacobian=jnp.where(take, jacobian, old.jacobian),
        bend=jnp.where(take & ~first, _bend(old, jacobian @ pull - old.jacobian @ pull), old.bend),
        damping=jnp.where(old.done, old.damping, jnp.clip(damping, LEAST_DAMPING, MOST_DAMPING)),
        raise_by=jnp.where(take, 4.0, 2 * old.raise_by),
        steps=old.steps + (~first & ~old.done),
        taken=take,
        failed=failed,
        done=old.done | failed,
    )


def _bend(old: Iterate, change: Float[Array, "n"]) -> Float[Array, "n n"]:
    """S after a step p whose curvature showed as `change` = (J(x + p) - J(x)) r(x + p): S p = change, as far as that leaves S >= 0."""
    p, S = old.candidate - old.x, old.bend
    missing = change - S @ p
    along, told = missing @ p, p @ S @ p
    clear = along > 0.1 * jnp.linalg.norm(missing) * jnp.linalg.norm(p)
    grown = S + jnp.outer(missing, missing) / jnp.where(clear, along, 1.0)
    shrunk = S * jnp.clip((p @ change) / jnp.where(told > 0, told, 1.0), 0.0, 1.0)
    noisy = old.size <= jnp.sqrt(jnp.finfo(p.dtype).eps) * (1 + jnp.max(jnp.abs(old.x)))
    return jnp.where(noisy, S, jnp.where(clear, grown, jnp.where(along < 0, shrunk, S)))


def propose(
    flat: FlatProblem, now: Iterate, weights: Weights, passes: int, tolerance: float | Float[Array, ""]
) -> Iterate:
    """The next candidate, from `passes` Newton steps on the model at x."""
    J = now.jacobian * weights.weight
    offset = weights.weight * (now.values + weights.shift)
    hinged = flat.is_ineq
    tiny = jnp.finfo(J.dtype).tiny
    curvature = jnp.sum(jnp.where(hinged & (offset <= 0), 0.0, J) ** 2, axis=1)
    D = jnp.maximum(curvature, DIAGONAL_FLOOR * jnp.max(jnp.sum(J**2, axis=1)) + tiny)
    damping = now.damping * D

    def hinge(a: Float[Array, "m"]) -> Float[Array, "m"]:
        return jnp.where(hinged, jnp.maximum(a, 0), a)

    def solve(
        A: Float[Array, "n n"], g: Float[Array, "n"], held: Bool[Array, "n"], fixed: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        """d = fixed where held (and fixed is 0 elsewhere), (A + S + lam D) d = -g on the rest; NaN where that is singular."""
        free = jnp.where(held, 0.0, jnp.ones_like(g))
        matrix = A * free[:, None] * free + jnp.diag(jnp.where(held, 1.0, damping))
        right = jnp.where(held, fixed, -g - A @ fixed)[:, None]
        factor = lax.linalg.cholesky(matrix)
        half = lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
        return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]

    def model(p: Float[Array, "n"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(hinge(offset + p @ J) ** 2) + 0.5 * p @ (damping * p + now.bend @ p)

    def newton(_: Int[Array, ""], p: Float[Array, "n"]) -> Float[Array, "n"]:
        a = offset + p @ J
        residual = hinge(a)
        active = J * jnp.where(hinged & (a <= 0), 0.0, 1.0).astype(J.dtype)
        g = active @ residual + now.bend @ p + damping * p
        A = active @ active.T + now.bend
        if flat.bounded:
            at = now.x + p
            held = ((at <= flat.lower) & (g > 0)) | ((at >= flat.upper) & (g < 0))
            free = solve(A, g, held, jnp.zeros_like(g))
            over = (at + free < flat.lower) | (at + free > flat.upper)
            fixed = jnp.where(over, jnp.clip(at + free, flat.lower, flat.upper) - at, 0.0)
            along = jnp.array([1.0, 0.5, 0.2, 0.05])[:, None] * free
            ways = jnp.stack([solve(A, g, held | over, fixed), *along, -g / (D + damping)])
            ways = jnp.clip(at + ways, flat.lower, flat.upper) - at
            d = ways[jnp.argmin(jax.vmap(model)(p + ways))]
        else:
            d = solve(A, g, jnp.zeros_like(g, bool), jnp.zeros_like(g))
        return p + _line_search(a, d @ J, hinge, (damping * p + now.bend @ p) @ d, (damping * d + now.bend @ d) @ d) * d

    p = lax.fori_loop(0, passes, newton, jnp.zeros_like(now.x))
    candidate = now.x + p
    if flat.bounded:
        candidate = jnp.clip(candidate, flat.lower, flat.upper)
    size = jnp.max(jnp.abs(p))
    return replace(
        now,
        candidate=jnp.where(now.done, now.candidate, candidate),
        predicted=0.5 * jnp.sum(hinge(offset) ** 2)
        - 0.5 * jnp.sum(hinge(offset + p @ J) ** 2)
        - 0.5 * p @ now.bend @ p,
        size=size,
        small=(size <= tolerance * (1 + jnp.max(jnp.abs(now.x)))) & (now.damping <= FREE_DAMPING),
    )


def _line_search(
    a: Float[Array, "m"],
    b: Float[Array, "m"],
    hinge: Callable[[Array], Array],
    c: Float[Array, ""],
    e: Float[Array, ""],
) -> Float[Array, ""]:
    """The minimum over t in [0, 1] of 1/2 |h(a + t b)|^2 + c t + 1/2 e t^2, which is convex with a piecewise linear slope."""

    def slope(t: float | Array) -> Array:
        return b @ hinge(a + t * b) + c + e * t

    def narrow(_: Array, bracket: tuple[Array, ...]) -> tuple[Array, ...]:
        """Regula falsi; the end that stays counts for half (Illinois)."""
        low, high, slope_low, slope_high = bracket
        t = jnp.clip(
            low + (high - low) * slope_low / jnp.minimum(slope_low - slope_high, -jnp.finfo(c.dtype).tiny), low, high
        )
        s = slope(t)
        below = s < 0
        left = jnp.where(below, t, low), jnp.where(below, high, t)
        return *left, jnp.where(below, s, 0.5 * slope_low), jnp.where(below, 0.5 * slope_high, s)

    start, end = slope(0.0), slope(1.0)
    low, high, _, _ = lax.fori_loop(0, 4, narrow, (jnp.zeros_like(c), jnp.ones_like(c), start, end))
    return jnp.where(end <= 0, 1.0, jnp.where(low > 0, low, high))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GaussNewton:
    """Solves the least-squares relaxation: hard parts become residuals with a weight. Differentiable by `args`.

    `Status.converged` says that the relaxation is solved; how far the constraints hold is in the violations.

    Attributes:
      iterations: steps, always all of them; each evaluates the problem and its Jacobian once.
      passes: Newton steps on the model in each.
      eq_weight, ineq_weight: factors on 1/2 |eq|^2 and 1/2 |max(0, ineq)|^2.
      damping: lam at the start, relative to diag A.
      tolerance: a lane has converged when its step is below this, relative to 1 + max |x|.
    """

    iterations: int = field(default=15, metadata=dict(static=True))
    passes: int = field(default=2, metadata=dict(static=True))
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
        weight = jnp.where(flat.is_eq, self.eq_weight, jnp.where(flat.is_ineq, self.ineq_weight, 1.0)).astype(
            flat.x.dtype
        )
        weights = Weights(shift=jnp.zeros_like(weight), weight=jnp.sqrt(weight))

        def iterate(k: Int[Array, ""], state: Iterate) -> Iterate:
            state = propose(flat, judge(flat, state, weights, k == 0), weights, self.passes, self.tolerance)
            return replace(state, done=state.done | state.small)

        def solve(_: object, x: Float[Array, "n"]) -> tuple[Float[Array, "n"], Array]:
            end = lax.fori_loop(0, self.iterations + 1, iterate, begin(replace(flat, x=x), warm.damping))
            return end.x, jnp.stack(
                [end.damping, end.steps, end.done, end.failed]
            )  # as floats, which custom_root can carry

        def optimality(x: Float[Array, "n"]) -> Float[Array, "n"]:
            gradient = jax.grad(lambda x: 0.5 * jnp.sum(weighted(flat, flat.evaluate(x), weights) ** 2))(x)
            return x - jnp.clip(x - gradient, flat.lower, flat.upper)

        x, final = lax.custom_root(optimality, flat.x, solve, _dense_solve, has_aux=True)
        damping, steps, done, failed = lax.stop_gradient(final)
        status = jnp.where(failed > 0, Status.nonfinite, jnp.where(done > 0, Status.converged, Status.iteration_limit))
        return report(flat, x, status, steps.astype(jnp.int32), replace(warm, damping=damping))


def _dense_solve(linear: Callable[[Array], Array], y: Float[Array, "n"]) -> Float[Array, "n"]:
    """x with linear(x) = y; directions that the problem leaves free stay put."""
    matrix = jax.vmap(linear, out_axes=1)(jnp.eye(y.size, dtype=y.dtype))
    diagonal = jnp.abs(jnp.diagonal(matrix))
    ridge = LEAST_DAMPING * jnp.maximum(diagonal, DIAGONAL_FLOOR * jnp.max(diagonal))
    return jnp.linalg.solve(matrix + jnp.diag(ridge), y)
