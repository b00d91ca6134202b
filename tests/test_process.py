"""The reverse process against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.schedules import (
    PARAMETERISATIONS,
    Cosine,
    Discrete,
    Flow,
    Linear,
    clean_estimate,
    levels,
    regression_target,
)

SCHEDULES = [Cosine(), Linear(), Flow(), Discrete()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules_go_from_signal_to_noise(schedule):
    alpha, sigma = schedule.scales(jnp.linspace(0, 1, 101))
    assert alpha[0] == 1 and sigma[0] == 0
    assert jnp.all(jnp.diff(alpha) <= 0) and jnp.all(jnp.diff(sigma) >= 0)
    assert alpha[-1] < 0.01 and sigma[-1] > 0.99


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Discrete()], ids=lambda s: type(s).__name__)
def test_variance_preserving_schedules_preserve_variance(schedule):
    alpha, sigma = schedule.scales(jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)


def test_discrete_schedules_are_products_at_their_steps():
    """abar_i in double precision; between two steps the geometric mean."""
    for schedule, beta in (
        (Discrete(20, "linear", 0.01, 0.3), np.linspace(0.01, 0.3, 20)),
        (Discrete(4), 1 - np.array([0.8470, 0.4938, 0.1443, 0.0]) / np.array([1.0, 0.8470, 0.4938, 0.1443])),
    ):
        T = schedule.steps
        abar = np.cumprod(1 - np.minimum(beta, 0.999))
        alpha, _ = schedule.scales(jnp.arange(1, T + 1) / T)
        np.testing.assert_allclose(
            alpha**2, abar, rtol=2e-3 if T == 4 else 1e-5
        )  # the cosines are given to four digits
        between, _ = schedule.scales(jnp.asarray(2.5 / T))
        np.testing.assert_allclose(between**2, np.sqrt(abar[1] * abar[2]), rtol=2e-3 if T == 4 else 1e-5)
        np.testing.assert_array_equal(schedule.step(jnp.arange(T + 1) / T), np.arange(-1, T))
    with pytest.raises(ValueError, match="squaredcos_cap_v2, linear"):
        Discrete(10, "sigmoid").scales(jnp.zeros(()))


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_exact_output_of_every_parameterisation_gives_back_the_clean_vector(schedule, parameterisation):
    if parameterisation == "v" and isinstance(schedule, Flow):
        pytest.skip("v is defined for variance-preserving schedules")
    if parameterisation == "flow" and not isinstance(schedule, Flow):
        pytest.skip("flow is defined for the straight path")
    clean, noise = jax.random.normal(jax.random.key(0), (2, 5, 3))
    alpha, sigma = schedule.scales(jnp.linspace(0.05, 0.9, 5))
    x = alpha[:, None] * clean + sigma[:, None] * noise
    output = regression_target(clean, noise, alpha, sigma, parameterisation)
    np.testing.assert_allclose(clean_estimate(output, x, alpha, sigma, parameterisation), clean, atol=2e-5)


def test_unknown_parameterisation_is_answered_with_what_exists():
    one = jnp.ones(1)
    with pytest.raises(ValueError, match="eps, x0, v, flow"):
        clean_estimate(one, one, one[0], one[0], "epsilon")


def test_levels_need_at_least_one():
    with pytest.raises(ValueError, match="at least one"):
        levels(0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_clean_estimate_of_a_mixture_is_tweedies(schedule):
    """E[x0 | x] = (x + sigma^2 grad log p_t(x)) / alpha, with p_t by direct summation."""
    means, scales = jnp.array([[1.0, 2.0], [-2.0, 0.5]]), jnp.array([[0.3, 0.5], [0.2, 0.9]])
    weights = jnp.array([0.2, 0.8])
    policy = gaussian_mixture(means, scales, weights, schedule=schedule)
    alpha, sigma = schedule.scales(jnp.asarray(0.4))

    def log_p(x):
        v = alpha**2 * scales**2 + sigma**2
        return jax.nn.logsumexp(jnp.log(weights) - 0.5 * jnp.sum((x - alpha * means) ** 2 / v + jnp.log(v), axis=-1))

    for x in jax.random.normal(jax.random.key(1), (5, 2)):
        expected = (x + sigma**2 * jax.grad(log_p)(x)) / alpha
        np.testing.assert_allclose(policy.clean(x, jnp.asarray(0.4)), expected, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_plain_sampling_reproduces_the_mixture(schedule, eta):
    policy = gaussian_mixture([[1.0, 2.0], [-2.0, -1.0]], 0.3, [3.0, 1.0], schedule=schedule)
    process = ReverseProcess.of(policy, count=200, eta=eta)

    @jax.jit
    @jax.vmap
    def draw(key):
        init, noise = jax.random.split(key)
        return process.rollout(process.prior(init), jax.random.normal(noise, (200, 2)))

    x = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    right = x[:, 0] > 0
    assert abs(right.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000) + 0.01
    np.testing.assert_allclose(x[right].mean(0), [1, 2], atol=0.04)
    np.testing.assert_allclose(x[right].std(0), 0.3, atol=0.03)


def test_without_noise_the_flow_path_is_eulers_method():
    policy = gaussian_mixture([[1.0, 2.0], [-2.0, -1.0]], 0.3, schedule=Flow())
    process = ReverseProcess.of(policy, count=10, eta=0.0)
    x = jnp.array([0.3, -0.7])
    for k in range(9, 0, -1):
        velocity = (x - process.clean(x, k)) / process.sigma[k]
        euler = x + (process.times[k - 1] - process.times[k]) * velocity
        x = process.step(x, jnp.ones(2), k)
        np.testing.assert_allclose(x, euler, atol=1e-5)


def test_full_stochasticity_has_the_posterior_variance_of_ddpm():
    """beta~ = (1 - abar_r) / (1 - abar_t) (1 - abar_t / abar_r), Ho et al. 2020, eq. 7."""
    process = ReverseProcess.of(gaussian_mixture([[0.0]], 1.0), count=20, eta=1.0)
    abar = process.alpha**2
    expected = (1 - abar[:-1]) / (1 - abar[1:]) * (1 - abar[1:] / abar[:-1])
    np.testing.assert_allclose(process.std[1:] ** 2, expected, atol=1e-5)
    assert process.std[1] == 0
