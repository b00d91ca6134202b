"""What every constraint promises: each is found by its `example`, and goes through the same tests.

A constraint is a class in a file of `diffopt/constraints` with a static method `example(key)`, which gives the constraint, a feasible and
an infeasible (plan, auxiliary unknowns).
"""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt.constraints
from diffopt.constraints import ConstraintSet, JointsLinear, Labelled, Windowed
from diffopt.solvers import Knots, Window

STEP = 1e-3
CHECKED = 4  # postures at which derivatives are compared


def kinds():
    """The constraints there are, by name."""
    found = {}
    for module in pkgutil.iter_modules(diffopt.constraints.__path__, "diffopt.constraints."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and value.__module__ == module.name and hasattr(value, "example"):
                found[name] = value
    return found


KINDS = kinds()


LONG = {"ContactForces", "FollowerLimits", "TorqueLimits", "Tracking"}  # to compile; their own tests are quick


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in KINDS]
)
def looked_at(request):
    """A kind, its example, and everything that the tests want to know of it, from one compilation."""
    constraint, good, bad = KINDS[request.param].example(jax.random.key(0))

    @jax.jit
    def look(constraint, good, bad, postures):
        def report(plan, aux):
            return ConstraintSet.of(constraint).report(plan, aux, None)

        seen = {"good": report(*good), "bad": report(*bad), "rows": constraint.residual(*good, None)}
        if postures is None:
            return seen

        def residual(q):
            return jnp.ravel(constraint.residual(good[0], good[1] | {"joints": q.reshape(shape)}, None))

        moves = STEP * jnp.eye(postures.shape[1])
        seen["values"] = jax.vmap(jax.vmap(residual))(
            postures[:, None] + jnp.concatenate([moves, -moves, 0 * moves[:1]])
        )
        seen["derivative"] = jax.vmap(jax.jacfwd(residual))(postures)
        if isinstance(constraint, JointsLinear):

            def stated(q):
                rows, J = constraint.jacobian(good[0], good[1] | {"joints": q.reshape(shape)}, None)
                return jnp.ravel(rows), J.reshape(-1, q.size)

            seen["stated"] = jax.vmap(stated)(postures)
        if isinstance(constraint, Windowed):
            seen["stated"] = jax.vmap(by_windows)(postures)
        return seen

    def by_windows(q):
        rows, windows = constraint.windows(good[0], good[1] | {"joints": q.reshape(shape)}, None)
        pieces = tuple(Window(blocks=blocks, first=first) for first, blocks in windows)
        return jnp.ravel(rows), Knots(pieces=pieces, horizon=shape[0], width=shape[1]).dense().T

    joints = good[1].get("joints")
    postures, shape = None, np.shape(joints)
    if joints is not None:
        away = 0.3 * jax.random.normal(jax.random.key(1), (CHECKED - 1, joints.size))
        postures = jnp.concatenate([joints.ravel() + away, bad[1]["joints"].ravel()[None] + 0.05])
    return constraint, good, jax.tree.map(np.asarray, look(constraint, good, bad, postures))


def test_examples_are_what_they_say(looked_at):
    constraint, (plan, _), seen = looked_at
    assert isinstance(plan, constraint.plan_type) and constraint.name
    assert constraint.kind in ("eq", "ineq", "cost", "check")
    assert seen["good"].satisfied and not seen["bad"].satisfied
    assert seen["bad"].violation[constraint.name] > np.max(constraint.tolerance)


def test_labels_name_every_row(looked_at):
    constraint, _, seen = looked_at
    if isinstance(constraint, Labelled):
        assert len(constraint.labels()) == seen["rows"].shape[-1]
    assert np.ndim(constraint.tolerance) == 0 or len(constraint.tolerance) == seen["rows"].shape[-1]


def test_derivatives_are_exact(looked_at):
    """By automatic differentiation, and as the constraint states them for itself, against central differences."""
    _, _, seen = looked_at
    if "values" not in seen:
        pytest.skip("speaks about no joints")
    count = (seen["values"].shape[1] - 1) // 2
    above, below, here = np.split(seen["values"].astype(float), [count, 2 * count], axis=1)
    differences = np.moveaxis((above - below) / (2 * STEP), 1, 2)
    assert np.isfinite(seen["derivative"]).all()
    rounding = 4e-7 * np.abs(seen["values"]).max() / STEP  # of a difference of values in single precision
    off = np.abs(seen["derivative"] - differences).max(axis=2) > 5e-3 + rounding
    assert off.mean() < 0.15  # rows at a kink, where the nearest obstacle or the cell changes within the step
    if "stated" in seen:
        size = max(1.0, np.abs(here).max())
        np.testing.assert_allclose(seen["stated"][0], here[:, 0], atol=1e-6 * size)
        np.testing.assert_allclose(seen["stated"][1], seen["derivative"], atol=2e-5 * size)


def test_all_are_public():
    for name in KINDS:
        assert name in diffopt.constraints.__all__ or name in ("FromResidual",)
