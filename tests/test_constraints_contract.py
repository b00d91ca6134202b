"""What every constraint promises: each is found by its `example`, and goes through the same tests.

A constraint is a class in a file of `diffopt/constraints` with a static method `example(key)`, which gives the constraint, a feasible and
an infeasible (plan, auxiliary unknowns).
"""

import importlib
import inspect
import pathlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt.constraints
from diffopt.constraints import AtEveryKnot, ConstraintSet, JointsLinear, Labelled, Windowed
from diffopt.solvers import Knots, Window

STEP = 1e-3
CHECKED = 4  # postures at which derivatives are compared


def kinds():
    """The constraints there are, by name."""
    found = {}
    for module in pkgutil.iter_modules(diffopt.constraints.__path__, "diffopt.constraints."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and value.__module__ == module.name and hasattr(value, "residual"):
                found[name] = value
    del found["Constraint"]  # the protocol
    return found


KINDS = kinds()


LONG = {
    "AtEveryKnot",
    "ContactForces",
    "FollowerLimits",
    "LoopClosure",
    "NearPath",
    "ReachAlong",
    "TorqueLimits",
    "Tracking",
}  # to compile; their own tests are quick
# the functions that make those which are not made by their class's name
MADE_BY = {
    "AtEveryKnot": ("along",),
    "FromCheck": ("from_check",),
    "FromResidual": ("from_residual",),
    "Later": ("later",),
    "LimitsAlong": ("along",),
    "MotionLimits": ("velocity_limits",),
    "ReachAlong": ("along",),
    "Softened": ("soften",),
    "SoftenedJoints": ("soften",),
    "SoftenedWindows": ("soften",),
    "TorqueLimits": ("torque_limits",),
    "Carried": ("Carried", "retarget"),
    "WorkspaceBox": ("WorkspaceBox", "WorkspaceBox.between"),
}
DOCS = pathlib.Path(__file__).parent.parent / "docs"
# made of others, whose pictures they share, or without a zero set in two numbers
NOT_DRAWN = {
    "Overlap",
    "Later",
    "AtEveryKnot",
    "LimitsAlong",
    "ReachAlong",
    "Softened",
    "SoftenedJoints",
    "SoftenedWindows",
}


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
        seen["paid"] = jnp.stack([0.5 * jnp.sum(constraint.residual(*one, None) ** 2) for one in (good, bad)])
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
        if isinstance(constraint, AtEveryKnot):
            seen["stated"] = jax.vmap(by_blocks)(postures)
        return seen

    def by_windows(q):
        rows, windows = constraint.windows(good[0], good[1] | {"joints": q.reshape(shape)}, None)
        pieces = tuple(Window(blocks=blocks, first=first) for first, blocks in windows)
        return jnp.ravel(rows), Knots(pieces=pieces, horizon=shape[0], width=shape[1]).dense().T

    def by_blocks(q):
        still = jax.tree.map(lambda leaf: jnp.zeros((shape[1], *leaf.shape)), good[0])
        rows, blocks = constraint.blocks(good[0], still, good[1] | {"joints": q.reshape(shape)}, None)
        pieces = (Window(blocks=blocks[:, :, None]),)
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
    if constraint.kind == "cost":  # is not asked for, and is larger where it should be
        assert seen["good"].satisfied and seen["bad"].satisfied and not seen["bad"].violation
        assert seen["paid"][1] > 10 * seen["paid"][0]
        return
    assert seen["good"].satisfied and not seen["bad"].satisfied
    assert seen["bad"].violation[constraint.name] > np.max(constraint.tolerance)


def test_labels_name_every_row(looked_at):
    constraint, _, seen = looked_at
    if isinstance(constraint, Labelled) and constraint.labels():
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


def test_all_have_an_example_and_are_public_and_documented():
    """A constraint that is added without an example, a public name, an equation or a picture is found here."""
    text = (DOCS / "constraints.md").read_text()
    for name, kind in KINDS.items():
        assert hasattr(kind, "example"), f"{name} has no example(key), which the tests of every constraint need"
        calls = MADE_BY.get(name, (name,))
        assert any(c in diffopt.constraints.__all__ or hasattr(ConstraintSet, c) for c in calls), (
            f"{name} is not public"
        )
        sections = [s for s in re.split(r"^#+ ", text, flags=re.M) if any(f"{c}(" in s for c in calls)]
        equations = [
            s for s in sections if re.search(r"^    \S.*$", re.sub(r"```.*?```", "", s, flags=re.S), flags=re.M)
        ]
        assert equations, f"docs/constraints.md has no section with {' or '.join(calls)} and its equation"
        if name not in NOT_DRAWN:
            picture = f"constraints/{kind.__module__.rsplit('.', 1)[1]}.png"
            assert f"({picture})" in text and (DOCS / picture).is_file(), (
                f"docs/constraints.md has no picture of {name}"
            )
