"""The parts that samplers are made of, against closed forms; and what single samplers promise beyond the contract."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.samplers.descent import descend
from diffopt.samplers.guidance import Guide
from diffopt.samplers.halfspaces import nearest
from diffopt.samplers.population import resampled
from diffopt.samplers.projection import Projection, tightened
from diffopt.samplers.real_time_chunking import RealTimeChunking, mask_weights
from diffopt.samplers.walk import renoised
from diffopt.schedules import Cosine, Flow

NORMAL, OFFSET = jnp.array([1.0, 0.0]), -0.3


def beyond(plan, normal, offset):
    return normal @ plan.values - offset


SET = ConstraintSet.of(from_residual(beyond, NORMAL, OFFSET, name="half_space", plan_type=Point))
POLICY = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)


def test_nearest_in_one_half_space_is_the_closed_form():
    u, a, b = jax.random.normal(jax.random.key(0), (3, 4))
    found = nearest(u, a[None], b[:1], sweeps=1)
    np.testing.assert_allclose(found, u + a * max(0.0, float((b[0] - a @ u) / (a @ a))), rtol=1e-5)


def test_nearest_satisfies_the_conditions_of_karush_kuhn_and_tucker():
    """Feasible, and the move is a nonnegative combination of the active normals."""
    A = jax.random.normal(jax.random.key(1), (3, 5))
    u, b = jnp.zeros(5), jnp.array([1.0, 0.5, -3.0])
    d = np.asarray(nearest(u, A, b, sweeps=200), np.float64)
    slack = A @ d - b
    assert slack.min() > -1e-4
    multipliers = np.linalg.lstsq(np.asarray(A, np.float64).T, d, rcond=None)[0]
    assert multipliers.min() > -1e-4
    np.testing.assert_allclose(np.asarray(A).T @ multipliers, d, atol=1e-4)
    np.testing.assert_allclose(multipliers * slack, 0, atol=1e-3)


def test_slack_takes_its_share_and_rows_of_zeros_ask_for_nothing():
    d = nearest(jnp.zeros(1), jnp.array([[1.0], [0.0]]), jnp.array([1.0, 5.0]), slack=1.0, sweeps=4)
    np.testing.assert_allclose(d, 0.5, atol=1e-6)  # min 1/2 d^2 + 1/2 s^2 with d + s >= 1


def test_the_cost_and_its_gradient_are_those_of_the_hinge():
    """Residual r = x_1 + 0.3 in units of softness * 0.01."""
    guide = Guide(policy=POLICY.bound(), constraints=SET, softness=10.0)
    value, gradient = guide.gradient(jnp.array([0.2, 1.0]), {})
    np.testing.assert_allclose(value, 0.5 * (0.5 / 0.1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(gradient, [0.5 / 0.01, 0.0], rtol=1e-5)
    inside, flat = guide.gradient(jnp.array([-0.4, 1.0]), {})
    assert inside == 0 and (flat == 0).all()
    np.testing.assert_allclose(guide.excess(jnp.array([0.2, 1.0]), {}), 5.0, rtol=1e-5)


def test_projection_is_the_nearest_point_and_idempotent():
    process = ReverseProcess.of(POLICY.bound(), count=4)
    projection = Projection.onto(process, SET, tracks=1, passes=3)

    @jax.jit
    def project(c):
        return projection(c, projection.start(jnp.zeros(2))).x

    for c in jax.random.normal(jax.random.key(2), (5, 2)) * 2:
        once = project(c)
        np.testing.assert_allclose(once, [min(float(c[0]), OFFSET), float(c[1])], atol=1e-4)
        np.testing.assert_allclose(project(once), once, atol=1e-4)


def test_a_tightened_set_keeps_its_margin():
    plan = Point(values=jnp.array([0.0, 0.0]))
    assert tightened(SET, 0.1)["half_space"].residual(plan, {}, None)[0] == pytest.approx(0.4)
    assert tightened(SET, 0.1)["half_space"].tolerance == SET["half_space"].tolerance


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda s: type(s).__name__)
def test_renoising_has_the_forward_process(schedule):
    """x_{k-1} of scales (alpha, sigma)_{k-1} becomes x_k of scales (alpha, sigma)_k."""
    process = ReverseProcess.of(replace(POLICY, schedule=schedule).bound(), count=8)
    k = 5
    clean, first, second = jax.random.normal(jax.random.key(3), (3, 20000))
    before = process.alpha[k - 1] * clean + process.sigma[k - 1] * first
    after = renoised(process, before, k, second)
    np.testing.assert_allclose(jnp.mean(after * clean), process.alpha[k], atol=0.03)
    np.testing.assert_allclose(jnp.var(after), process.alpha[k] ** 2 + process.sigma[k] ** 2, rtol=0.03)


def test_resampling_keeps_the_weights_on_average():
    weight = jnp.log(jnp.array([0.7, 0.1, 0.1, 0.1]))
    index, after = jax.vmap(lambda key: resampled(key, weight))(jax.random.split(jax.random.key(4), 2000))
    share = np.bincount(np.ravel(index), minlength=4) / index.size
    np.testing.assert_allclose(share, jnp.exp(weight), atol=0.02)
    assert (after == 0).all()
    stay, kept = resampled(jax.random.key(5), jnp.zeros(4))
    np.testing.assert_array_equal(stay, jnp.arange(4))
    assert (kept == 0).all()


def test_descent_finds_the_minimum_of_rosenbrock():
    def f(z):
        return (1 - z["a"]) ** 2 + 10 * (z["b"] - z["a"] ** 2) ** 2

    end = jax.jit(lambda z: descend(f, z, iterations=40))({"a": jnp.array(-1.0), "b": jnp.array(1.0)})
    np.testing.assert_allclose([end.z["a"], end.z["b"]], [1, 1], atol=2e-2)
    assert end.evaluations == 1 + 40 * 6


def test_masks_of_real_time_chunking():
    """H = 8, d = 2, s = 3: two firm, three between, three free (Black et al. 2025, eq. 5)."""
    np.testing.assert_array_equal(mask_weights(8, 2, 3, "zeros"), [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(mask_weights(8, 2, 3, "ones"), [1, 1, 1, 1, 1, 0, 0, 0])
    linear = mask_weights(8, 2, 3, "linear")
    np.testing.assert_allclose(linear[2:5], [3 / 4, 2 / 4, 1 / 4])
    np.testing.assert_allclose(mask_weights(8, 2, 3)[2:5], linear[2:5] * np.expm1(linear[2:5]) / np.expm1(1), rtol=1e-6)
    with pytest.raises(ValueError, match="zeros, ones, linear, exponential"):
        mask_weights(8, 2, 3, "soft")
    with pytest.raises(ValueError, match="delay=6"):
        mask_weights(8, 6, 3)


def test_real_time_chunking_holds_the_prefix_and_follows_its_mode():
    """Two modes of straight paths, up and down; the old chunk went down, so the new one goes on down, though the prior is even."""
    horizon = 8
    path = jnp.linspace(0, 1, horizon)
    policy = gaussian_mixture(jnp.stack([path, -path]), 0.05, schedule=Flow())
    sampler = RealTimeChunking.after(
        np.concatenate([np.zeros((2, 1)), -np.asarray(path)[:6, None]]), delay=4, executed=2
    )
    result = diffopt.sample(policy, n=64, key=0, sampler=sampler, levels=16)
    plain = diffopt.sample(policy, n=64, key=0, sampler="ddim", levels=16)
    down = np.asarray(result.plans.values)[:, -1] < 0
    assert down.mean() > 0.8 and 0.3 < (np.asarray(plain.plans.values)[:, -1] < 0).mean() < 0.7
    error = np.abs(np.asarray(result.plans.values)[down, :4] + np.asarray(path)[:4])
    assert error.mean() < 0.04


def test_what_belongs_together_is_asked_for_together():
    with pytest.raises(ValueError, match="a chunk and its weights"):
        diffopt.sample(POLICY, sampler=RealTimeChunking(chunk=jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"chunk \(3,\)"):
        diffopt.sample(POLICY, sampler=RealTimeChunking(chunk=jnp.zeros(3), weights=jnp.zeros(3)))


@pytest.mark.parametrize("name, option", [("safe_diffuser", "variant"), ("ogd_chain", "way"), ("ogd_chain", "anchor")])
def test_choices_are_checked(name, option):
    with pytest.raises(ValueError, match=f"{option}='x'; there are: "):
        diffopt.samplers.load(name, **{option: "x"})


@pytest.mark.parametrize("variant", ["res", "tvs"])
def test_the_other_barriers_hold_in_the_end(variant):
    sampler = diffopt.samplers.load("safe_diffuser", variant=variant, strength=1.0)
    result = diffopt.sample(POLICY, SET, n=32, key=1, sampler=sampler, levels=16)
    assert result.feasible.mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shooting", "least_squares", "hard"])
def test_the_chain_is_solved_by_every_way(way):
    """The plans lie within the half-space, by a margin that the relaxations are allowed; the hard way keeps it."""
    sampler = diffopt.samplers.load("ogd_chain", way=way)
    result = diffopt.sample(POLICY, SET, n=16, key=1, sampler=sampler, levels=8)
    excess = np.asarray(result.plans.values)[:, 0] - OFFSET
    assert (excess < (1e-3 if way == "hard" else 0.03)).all()
    corrected = diffopt.sample(POLICY, SET, n=16, key=1, sampler=replace(sampler, terminal=4), levels=8)
    assert corrected.feasible.all()


def test_a_terminal_correction_makes_a_guided_plan_feasible():
    sampler = diffopt.samplers.load("mpgd", terminal=4)
    result = diffopt.sample(POLICY, SET, n=32, key=1, sampler=sampler, levels=8)
    assert result.feasible.all()
    assert result.stats.terminal_move.max() > 0


def test_particles_need_no_derivative():
    """A check that is a step function: guidance sees nothing of it, particles do."""
    step = from_residual(lambda plan: jnp.sign(plan.values[0] - OFFSET), name="step", plan_type=Point)

    def share(sampler):
        return float(
            diffopt.sample(POLICY, ConstraintSet.of(step), n=128, key=1, sampler=sampler, levels=8).feasible.mean()
        )

    plain = share("ddim")
    assert 0 < plain < 0.2
    assert share("particles") > 4 * plain
