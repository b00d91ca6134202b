"""Violations level by level, on a prior and a half-space that are known exactly."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.evaluation.levels import Watched, written
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.samplers import OGD

LIMIT = -0.5


def beyond(plan, normal, offset):
    return normal @ plan.values - offset


def test_levels_before_and_after():
    """The clean estimates are the exact posterior means, so the violation at every level has a closed form; watching changes no sample."""
    policy = gaussian_mixture([[0.3, 0.0]], 0.4)
    limits = ConstraintSet.of(from_residual(beyond, jnp.array([1.0, 0.0]), LIMIT, name="half_space", plan_type=Point))
    watched = Watched()
    with pytest.raises(ValueError, match="draw a plan"):
        watched.levels(policy, limits)
    sampler = OGD(every=2, window=(1.0, 0.0))
    for key in (5, 3):  # the last one counts
        result = diffopt.sample(watched.policy(policy), limits, key=key, sampler=sampler, levels=8, attempts=1)
    plain = diffopt.sample(policy, limits, key=3, sampler=sampler, levels=8, attempts=1)
    np.testing.assert_array_equal(result.plans.values, plain.plans.values)

    plan = Point(values=result.plans.values[0])
    rows = watched.levels(policy, limits, plan, {})
    assert len(rows) == 8 and [r.time for r in rows] == sorted((r.time for r in rows), reverse=True)
    assert all(a.after == b.before for a, b in pairwise(rows))
    assert rows[0].before["half_space"] > 0.1  # noise: about the prior's mean, 0.8 beyond
    assert rows[-1].after["half_space"] == 0.0 and bool(result.feasible[0])
    assert sum(r.moved for r in rows) > 0.5
    _, last = watched.calls[-1]
    expected = max(0.0, float(last[0]) - LIMIT - 1e-3)
    assert rows[-1].before["half_space"] == pytest.approx(expected, abs=1e-5)
    assert len(written(rows).splitlines()) == 9
