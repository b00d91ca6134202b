"""An oracle on the host for convex problems: the same `Problem`, handed to cvxpy in double precision. For tests, not for
speed.

The problem must be what cvxpy can be told exactly: an affine cost residual, affine equalities, and inequalities that
are convex quadratics (affine ones included). The coefficients are read off by differentiation at zero and checked at
another point; what is not of this form is refused by name. Needs the extra `reference` (cvxpy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from diffopt.solvers.base import Args, Problem, SolverResult, Status, Unknown, Warm, flatten

PROBE_TOLERANCE = 1e-6  # relative misfit of the quadratic model at the probe, above which the problem is refused


def solve_by_cvxpy(problem: Problem, z: Unknown, args: Args = None) -> SolverResult:
    """The global optimum of a convex problem; z only gives the structure.

    Raises:
      ValueError: a part of the problem is not affine or convex quadratic as described above.
      ImportError: cvxpy is not installed.
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("the reference solver needs cvxpy: pip install 'diffopt[reference]'") from error

    with jax.enable_x64(True):
        z64, args64 = (jax.tree.map(_double, tree) for tree in (z, args))
        flat = flatten(problem, z64, args64)
        value, slope, curvature = _taylor(flat.evaluate, flat.x.size)
        lower, upper = np.asarray(flat.lower), np.asarray(flat.upper)
    c, e, _ = flat.sizes
    if np.abs(curvature[: c + e]).max(initial=0) > PROBE_TOLERANCE:
        raise ValueError("the cost residual or an equality is not affine in z")

    x = cp.Variable(flat.x.size)
    affine = value + slope @ x
    constraints: list[Any] = [x[i] >= lower[i] for i in np.flatnonzero(np.isfinite(lower))]
    constraints += [x[i] <= upper[i] for i in np.flatnonzero(np.isfinite(upper))]
    equalities = [affine[c : c + e] == 0] if e else []
    inequalities = [affine[j] + _convex_quadratic(cp, x, curvature[j]) <= 0 for j in range(c + e, value.size)]
    objective = cp.Minimize(0.5 * cp.sum_squares(affine[:c]) if c else 0)
    model = cp.Problem(objective, constraints + equalities + inequalities)
    model.solve(solver=cp.CLARABEL)

    solution: np.ndarray
    if model.status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE):
        solution, status = np.full(flat.x.size, np.nan), Status.infeasible
        eq_multiplier, ineq_multiplier = np.full(e, np.nan), np.full(len(inequalities), np.nan)
    else:
        solution, status = (
            np.asarray(x.value),
            Status.converged if model.status == cp.OPTIMAL else Status.iteration_limit,
        )
        eq_multiplier = np.concatenate([np.ravel(k.dual_value) for k in equalities]) if e else np.zeros(0)
        ineq_multiplier = np.array([float(np.squeeze(k.dual_value)) for k in inequalities])
    stacked = value + slope @ solution + 0.5 * np.einsum("mij,i,j->m", curvature, solution, solution)
    return SolverResult(
        z=ravel_pytree(z)[1](jnp.asarray(solution, jnp.float32)),
        status=jnp.asarray(status),
        iterations=jnp.asarray(model.solver_stats.num_iters or 0),
        cost=jnp.asarray(0.5 * np.sum(stacked[:c] ** 2)),
        eq_violation=jnp.asarray(np.abs(stacked[c : c + e]).max(initial=0)),
        ineq_violation=jnp.asarray(stacked[c + e :].max(initial=0)),
        warm=Warm(
            eq_multiplier=jnp.asarray(eq_multiplier),
            ineq_multiplier=jnp.asarray(ineq_multiplier),
            penalty=jnp.ones(()),
            damping=jnp.zeros(()),
        ),
    )


def _double(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return jnp.asarray(array.astype(np.float64)) if np.issubdtype(array.dtype, np.floating) else leaf


def _taylor(function: Callable[[jax.Array], jax.Array], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value (m,), Jacobian (m, n) and Hessians (m, n, n) at zero; refuses what they do not describe."""
    zero, probe = jnp.zeros(n), jnp.asarray(np.random.default_rng(0).normal(size=n))
    derivatives = function, jax.jacfwd(function), jax.jacfwd(jax.jacfwd(function))
    value, slope, curvature = (np.asarray(derivative(zero)) for derivative in derivatives)
    told = value + slope @ probe + 0.5 * np.einsum("mij,i,j->m", curvature, probe, probe)
    misfit = np.abs(told - np.asarray(function(probe)))
    if not np.all(misfit <= PROBE_TOLERANCE * (1 + np.abs(told))):
        raise ValueError(
            f"the reference takes affine and quadratic functions; rows {np.flatnonzero(misfit > PROBE_TOLERANCE).tolist()} are neither"
        )
    return value, slope, curvature


def _convex_quadratic(cp: Any, x: Any, hessian: np.ndarray) -> Any:
    """1/2 x'Hx for cvxpy, as a sum of squares."""
    eigenvalues, vectors = np.linalg.eigh(hessian)
    if eigenvalues.min() < -PROBE_TOLERANCE:
        raise ValueError(f"an inequality is not convex: its Hessian has the eigenvalue {eigenvalues.min():.3g}")
    kept = eigenvalues > PROBE_TOLERANCE
    root = (vectors[:, kept] * np.sqrt(eigenvalues[kept])).T
    return 0.5 * cp.sum_squares(root @ x) if kept.any() else 0.0
