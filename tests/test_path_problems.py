"""Paths of a point: demonstrations, test-time discs, and a judge that looks between the points."""

import jax
import numpy as np
import pytest

import diffopt
from diffopt.evaluation.path_problems import (
    FIELDS,
    POINTS,
    RADIUS,
    UNIT,
    clearance,
    demonstrations,
    fixed,
    path_prior,
    path_problem,
    routes,
)
from diffopt.plans import Point


@pytest.mark.parametrize("field, count", [("avoiding", 24), ("maze", 20)])
def test_every_route_is_demonstrated_and_clear_of_the_fixed_discs(field, count):
    assert len(routes(field)) == count
    paths = demonstrations(field, each=1)
    assert paths.shape == (count, POINTS, 2)
    dense = np.concatenate([paths[:, :-1] + s * np.diff(paths, axis=1) for s in np.linspace(0, 1, 9)], axis=1)
    apart = np.linalg.norm(dense[:, :, None] - fixed(field), axis=-1).min(axis=(1, 2)) - RADIUS
    assert apart.min() > 0
    np.testing.assert_allclose(clearance(paths, fixed(field), np.full(len(fixed(field)), RADIUS)), apart, atol=2e-3)
    length = np.linalg.norm(np.diff(paths, axis=1), axis=-1)
    assert (length.std(axis=1) / length.mean(axis=1)).max() < 0.1  # constant speed


def test_the_clearance_of_a_segment_is_that_of_its_nearest_point():
    path = np.array([[[0.0, 0.0], [1.0, 0.0]]])
    assert clearance(path, np.array([[0.5, 0.3]]), np.array([0.1]))[0] == pytest.approx(0.2)
    assert clearance(path, np.array([[2.0, 0.0]]), np.array([0.1]))[0] == pytest.approx(0.9)


@pytest.mark.parametrize("field", FIELDS)
def test_the_share_is_within_its_bounds_and_what_the_constraint_allows_the_judge_accepts(field):
    policy = path_prior(field, each=2)
    draws = np.asarray(policy.denoiser.sample(jax.random.key(0), 1024))
    problem = path_problem(field, draws, (0.05, 0.2), number=1)
    assert 0.05 <= problem.share <= 0.2 <= 0.05 + problem.judge(draws).mean() + 0.2
    report = jax.jit(jax.vmap(lambda v: problem.constraints.report(Point(values=v), {}, None).satisfied))(draws)
    assert not np.any(np.asarray(report) & ~problem.judge(draws))
    pushed = diffopt.sample(policy, problem.constraints, n=64, key=1)  # onto the borders of discs
    assert np.asarray(pushed.feasible).sum() > 4 and np.asarray(pushed.stats.terminal_move).max() > 0.1
    assert not np.any(np.asarray(pushed.feasible) & ~problem.judge(np.asarray(pushed.plans.values)))
    still = np.tile(np.array([0.02, 0.02]), POINTS)  # in a corner, clear of everything but perhaps a new disc
    assert problem.judge((still[None] - 0.5) / UNIT).shape == (1,)
    assert not problem.judge(np.full((1, 2 * POINTS), np.nan)).any()
    far = draws[:1].reshape(1, POINTS, 2).copy()
    far[0, POINTS // 2] += 1.0  # a jump
    assert not problem.judge(far.reshape(1, -1)).any()


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="avoiding, maze"):
        fixed("labyrinth")
    with pytest.raises(ValueError, match="was found"):
        path_problem("maze", np.zeros((8, 2 * POINTS)), (2.0, 3.0), 0)
