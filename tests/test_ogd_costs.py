"""What soft constraints do to the problem of a level, against a quadratic program."""

from dataclasses import replace

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.samplers import OGD
from diffopt.samplers.correction import Correction
from diffopt.solvers import RealTimeIteration

A, B = jnp.array([[1.0, -0.5], [0.3, 2.0]]), jnp.array([1.2, -0.7])  # of the cost
NORMAL, OFFSET = jnp.array([0.6, 0.8]), -0.4  # of the half-space
STRICT = from_residual(lambda plan, n: n @ plan.values - OFFSET, NORMAL, name="half_space", plan_type=Point)
CHARGED = from_residual(lambda plan, a: a @ plan.values - B, A, name="charged", kind="cost", plan_type=Point)
COUNT = 16


@pytest.mark.parametrize("k", (14, 8, 4))
def test_a_level_weighs_costs_against_the_energy_of_its_control(k):
    """min 1/2 |d - anchor|^2 + 1/2 |cost(c + s/b (d - anchor))|^2, c + s/b (d - anchor) feasible; the iterate moves by s (d - anchor)."""
    policy = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)
    process = ReverseProcess.of(policy, count=COUNT, eta=1.0)
    sampler = OGD(tighten=0.0, steps=60)
    clean = jnp.array([0.8, 0.9])
    correction = Correction.of(policy, ConstraintSet.of(STRICT, CHARGED), tracks=1, search=1)
    solver = RealTimeIteration(penalty=sampler.penalty)
    tracks = correction.seeds(clean, solver)
    move, *_ = sampler._solve(process, correction, solver, clean, clean, tracks, jnp.asarray(k), jax.random.key(0))

    s, b = float(process.std[k]), min(float(process.alpha[k - 1]) ** sampler.gain, sampler.most_gain)
    away = cp.Variable(2)  # d - anchor
    at = np.asarray(clean) + s / b * away
    energy = cp.sum_squares(away) + cp.sum_squares(np.asarray(A) @ at - np.asarray(B))
    cp.Problem(cp.Minimize(0.5 * energy), [np.asarray(NORMAL) @ at <= OFFSET]).solve()
    np.testing.assert_allclose(move, s * away.value, atol=2e-3)
    assert np.linalg.norm(s * away.value) > 0.1


def test_without_a_price_nothing_is_weighed():
    """Only the half-space: the nearest feasible vector, at any level."""
    policy = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)
    process = ReverseProcess.of(policy, count=COUNT, eta=1.0)
    sampler, clean = replace(OGD(), tighten=0.0, steps=30), jnp.array([0.8, 0.9])
    correction = Correction.of(policy, ConstraintSet.of(STRICT), tracks=1, search=1)
    solver = RealTimeIteration(penalty=sampler.penalty)
    move, *_ = sampler._solve(
        process, correction, solver, clean, clean, correction.seeds(clean, solver), jnp.asarray(8), jax.random.key(0)
    )
    b = min(float(process.alpha[7]) ** sampler.gain, sampler.most_gain)
    np.testing.assert_allclose(move, -b * (NORMAL @ clean - OFFSET) * NORMAL, atol=2e-3)
