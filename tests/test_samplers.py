"""What OGD promises and what `sample` does, on priors and posteriors that are known exactly; for every sampler: test_sampler_contract."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.sample import _sample
from diffopt.samplers import OGD, load
from diffopt.schedules import Cosine

OGD_FAMILY = [
    OGD(anchor=anchor, constrain=constrain, hard=hard, every=1, window=(1.0, 0.0), particles=2, attempts=1)
    for anchor in ("sampled", "zero")
    for constrain in ("lookahead", "current", "next")
    for hard in (True, False)
]
ALL = [load("ogd"), *OGD_FAMILY]


def name_of(s):
    return f"{type(s).__name__}-{s.anchor}-{s.constrain}-{s.hard}" if isinstance(s, OGD) else type(s).__name__


each_sampler = pytest.mark.parametrize("sampler", ALL, ids=name_of)


def beyond(plan, normal, offset):
    return normal @ plan.values - offset


def half_space(offset=-0.5, normal=(1.0, 0.0)) -> ConstraintSet:
    """normal . x <= offset."""
    return ConstraintSet.of(from_residual(beyond, jnp.array(normal), offset, name="half_space", plan_type=Point))


POLICY = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)


def draw(sampler, key=1, constraints=None, policy=POLICY):
    """32 plans at 8 levels: one structure for as many tests as possible, so that each sampler compiles once."""
    return diffopt.sample(
        policy, half_space() if constraints is None else constraints, n=32, key=key, sampler=sampler, levels=8
    )


@each_sampler
def test_status_and_retracing(sampler):
    """The status is what the plan says, by the definition of the half-space; the same key repeats; new numbers do not retrace."""
    result = draw(sampler)
    excess = np.asarray(result.plans.values)[:, 0] + 0.5
    np.testing.assert_allclose(result.violation["half_space"], np.maximum(excess, 0), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.feasible), excess <= 1e-3)
    if isinstance(sampler, OGD) and sampler.hard:
        assert result.feasible.all()

    before = _sample.count()
    np.testing.assert_array_equal(draw(sampler).plans.values, result.plans.values)
    other = gaussian_mixture([[0.3, 0.1], [1.0, 1.2]], 0.5)
    draw(sampler, key=5, constraints=half_space(-0.7, (0.0, 1.0)), policy=other)
    assert _sample.count() == before


def energy_distance(x, y):
    def mean_distance(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1).mean()

    return 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)


def test_ogd_is_nearer_to_the_true_posterior_than_snap():
    """The posterior of the half-space, by exact rejection from the mixture."""
    draws = np.asarray(POLICY.denoiser.sample(jax.random.key(0), 20000))
    posterior = draws[draws[:, 0] <= -0.5][:800]

    def distance(sampler):
        result = diffopt.sample(POLICY, half_space(), n=800, key=1, sampler=sampler, levels=32)
        assert result.feasible.mean() > 0.98
        return energy_distance(np.asarray(result.plans.values)[np.asarray(result.feasible)], posterior)

    assert distance("ogd") < 0.5 * distance("snap")


def test_rejection_follows_the_posterior():
    draws = np.asarray(POLICY.denoiser.sample(jax.random.key(0), 20000))
    posterior = draws[draws[:, 0] <= -0.2][:1000]
    result = diffopt.sample(POLICY, half_space(-0.2), n=400, key=1, sampler=load("rejection", draws=32), levels=64)
    accepted = np.asarray(result.plans.values)[np.asarray(result.feasible)]
    assert len(accepted) > 380
    assert energy_distance(accepted, posterior) < 0.02


def test_gradients_through_the_least_squares_mode():
    """d(mean plan)/d(offset) against central differences."""

    def mean(offset):
        sampler = OGD(hard=False, every=1, window=(1.0, 0.0))
        return diffopt.sample(POLICY, half_space(offset), n=8, key=3, sampler=sampler).plans.values.mean()

    exact = jax.grad(mean)(-0.5)
    numerical = (mean(-0.5 + 5e-3) - mean(-0.5 - 5e-3)) / 1e-2
    assert abs(exact) > 1e-2
    np.testing.assert_allclose(exact, numerical, rtol=0.1, atol=1e-2)


def test_warm_starts_are_taken():
    first = diffopt.sample(POLICY, half_space(), n=4, key=1)
    again = diffopt.sample(POLICY, half_space(), n=4, key=2, warm=first.warm)
    assert again.feasible.all()


def test_an_unsatisfiable_set_is_reported_as_infeasible_with_its_size():
    impossible = half_space(-0.5) | replace(half_space(-0.5, (-1.0, 0.0))["half_space"], name="other_side")
    result = diffopt.sample(POLICY, impossible, n=4)
    assert not result.feasible.any()
    assert (result.status == diffopt.Status.INFEASIBLE).all()
    total = result.violation["half_space"] + result.violation["other_side"]
    np.testing.assert_allclose(
        total, 1.0, atol=0.05
    )  # the half-spaces are one apart, and the best compromise lies between
    with pytest.raises(diffopt.InfeasibleError, match=r"(?s)4 of 4 plans.*other_side"):
        result.check()


def test_bad_input_is_named():
    with pytest.raises(KeyError, match=r"ddim, .*ogd, .*rejection, .*snap"):
        diffopt.sample(POLICY, sampler="odg")
    with pytest.raises(TypeError, match=r"has no option 'track'; it has: .*tracks"):
        load("ogd", track=3)
    with pytest.raises(ValueError, match="sampled, zero"):
        OGD(anchor="none")
    with pytest.raises(ValueError, match="n=0"):
        diffopt.sample(POLICY, n=0)
    with pytest.raises(ValueError, match=r"policy\.given"):
        diffopt.sample(replace(POLICY, needs_observation=True))
    grasp_only = from_residual(lambda plan: plan.position, name="grasp_only", plan_type=diffopt.plans.Grasp)
    with pytest.raises(TypeError, match="'grasp_only' speaks about Grasp, but policy 'gaussian-mixture' plans a Point"):
        diffopt.sample(POLICY, ConstraintSet.of(grasp_only))
    with pytest.raises(ValueError, match="NaN"):
        diffopt.sample(POLICY, half_space(jnp.nan))


def test_a_nan_that_arises_inside_is_told_by_the_status():
    broken = ConstraintSet.of(from_residual(lambda plan: jnp.log(plan.values - 1e6), name="log", plan_type=Point))
    result = diffopt.sample(POLICY, broken, n=2)
    assert not result.feasible.any()


def test_a_solution_can_be_indexed():
    result = diffopt.sample(POLICY, half_space(), n=4)
    assert len(result[1]) == 1 and len(result[1:3]) == 2
    np.testing.assert_array_equal(result[-1].plans.values[0], result.plans.values[3])


def test_schedules_are_static():
    assert gaussian_mixture([[0.0]], 1.0).schedule == Cosine()
