"""What every sampler of the catalogue promises: each is found by its card, and goes through the same tests."""

import pathlib
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.sample import _sample
from diffopt.samplers import available, describe, load
from diffopt.samplers.registry import cards
from diffopt.schedules import Flow, clean_estimate, regression_target

SMALL = {  # options that keep the tests short, and a clip that does not cut the derivative
    "rejection": dict(draws=4),
    "ogd": dict(every=2, attempts=1),
    "ogd_chain": dict(iterations=3),
    "latent": dict(iterations=3),
    "particles": dict(count=4),
    "twisted": dict(count=4),
    "model_based": dict(rollouts=32),
    "nudge": dict(strength=0.01, clip=100.0),
}
ON_POINTS = [name for name in available() if "joints" not in describe(name).needs]
every = pytest.mark.parametrize("name", ON_POINTS)
POLICY = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4, schedule=Flow())
N, LEVELS = 16, 8


def sampler_of(name):
    return load(name, **SMALL.get(name, {}))


def beyond(plan, normal, offset):
    return normal @ plan.values - offset


def half_space(offset=-0.3, normal=(1.0, 0.0)) -> ConstraintSet:
    """normal . x <= offset."""
    return ConstraintSet.of(from_residual(beyond, jnp.array(normal), offset, name="half_space", plan_type=Point))


def draw(name, key=1, constraints=None, policy=POLICY):
    constraints = half_space() if constraints is None else constraints
    return diffopt.sample(policy, constraints, n=N, key=key, sampler=sampler_of(name), levels=LEVELS)


@every
def test_status_keys_and_traces(name):
    """The status is what the plan says, by the definition of the half-space; a key repeats; new numbers do not retrace."""
    result = draw(name)
    excess = np.asarray(result.plans.values)[:, 0] + 0.3
    np.testing.assert_allclose(result.violation["half_space"], np.maximum(excess, 0), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.feasible), excess <= 1e-3)
    for leaf in jax.tree.leaves(result.stats):
        assert np.isfinite(leaf).all() and (np.asarray(leaf) >= 0).all()

    before = _sample.count()
    np.testing.assert_array_equal(draw(name).plans.values, result.plans.values)
    other = gaussian_mixture([[0.3, 0.1], [1.0, 1.2]], 0.5, schedule=Flow())
    draw(name, key=5, constraints=half_space(-0.7, (0.0, 1.0)), policy=other)
    assert _sample.count() == before


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counting:
    """A denoiser that tells when it is asked."""

    base: Any
    seen: Any = field(metadata=dict(static=True))

    def __call__(self, x, t, condition):
        jax.debug.callback(self.seen, x[0], t)
        return self.base(x, t, condition)


class Count:
    def __init__(self):
        self.value = 0

    def __call__(self, x, t):
        self.value += 1


@every
def test_one_plan_alone_inside_jit(name):
    """One plan of a network that counts, asked for inside `jit`: the same plan as in the batch, as many evaluations as the statistics
    say, and where the card promises it a finite derivative."""
    count = Count()
    policy = replace(POLICY, denoiser=Counting(POLICY.denoiser, count)).bound()
    keys = jax.random.split(jax.random.key(1), N)[3:4]

    def alone(offset):
        result = _sample(policy, half_space(offset), keys, sampler_of(name), 1.0, None, None, LEVELS)
        return result.plans.values.mean(), result

    if describe(name).differentiable:
        slope, result = jax.block_until_ready(jax.jit(jax.grad(alone, has_aux=True))(-0.3))
        assert np.isfinite(slope)
    else:
        result = jax.block_until_ready(jax.jit(alone)(-0.3)[1])
    jax.effects_barrier()
    np.testing.assert_allclose(draw(name).plans.values[3], result.plans.values[0], atol=1e-3)
    assert count.value == int(result.stats.evaluations[0])


@every
def test_without_constraints_it_is_the_plain_one(name):
    """Of every sampler the same plans; `rejection` draws other keys, and screens nothing."""
    if name == "rejection":
        pytest.skip("draws its plans with keys of its own")
    process = ReverseProcess.of(POLICY.bound(), count=LEVELS)
    key = jax.random.key(2)
    expected = _plain(process, key)
    found = jax.eval_shape(lambda key: sampler_of(name)(process, ConstraintSet(), key, None), key)
    assert found.x.shape == expected.shape
    np.testing.assert_allclose(_jitted(sampler_of(name), process, key), expected, atol=1e-6)


@jax.jit
def _plain(process, key):
    return load("ddim")(process, ConstraintSet(), key, None).x


@jax.jit
def _jitted(sampler, process, key):
    return sampler(process, ConstraintSet(), key, None).x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AsNetwork:
    """The exact denoiser behind the output that a network of some parameterisation would have."""

    base: Any
    parameterisation: Any = field(metadata=dict(static=True))

    def __call__(self, x, t, condition):
        alpha, sigma = self.base.schedule.scales(jnp.asarray(t))
        clean = self.base(x, t, condition)
        noise = (x - alpha * clean) / jnp.maximum(sigma, 1e-6)
        output = regression_target(clean, noise, alpha, sigma, self.parameterisation)
        return clean_estimate(output, x, alpha, sigma, self.parameterisation)


@pytest.mark.slow
@pytest.mark.parametrize("parameterisation", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("name", ["dps", "projected"])
def test_plans_do_not_depend_on_the_parameterisation(name, parameterisation):
    policy = POLICY if parameterisation == "flow" else gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)
    network = replace(policy, denoiser=AsNetwork(policy.denoiser, parameterisation))
    np.testing.assert_allclose(
        draw(name, policy=network).plans.values, draw(name, policy=policy).plans.values, atol=5e-3
    )


@pytest.mark.parametrize("name", available())
def test_the_card_is_true(name):
    card = cards()[name]
    assert card.name == name and card.paper and card.summary and 0 <= card.row <= 24
    assert getattr(diffopt.samplers, card.build.__name__) is card.build
    sampler = load(name)
    assert isinstance(sampler, diffopt.samplers.Sampler)
    if card.strength is not None:
        option, values = card.strength
        assert len(values) >= 3
        load(name, **{option: values[0]})
    module = __import__(card.build.__module__, fromlist=["x"])
    assert f"row {card.row}" in (module.__doc__ or "") or name == "rejection"


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(AttributeError, match="DPS"):
        diffopt.samplers.Dps  # noqa: B018
    with pytest.raises(KeyError, match="dps"):
        describe("Dps")


def test_every_file_with_a_card_is_listed_once():
    files = pathlib.Path(diffopt.samplers.__file__).parent.glob("*.py")
    assert {file.stem for file in files if "\nCARD = Card(" in file.read_text()} == set(available())


def test_the_documented_list_is_that_of_the_cards():
    from benchmarks.samplers_evidence import EVIDENCE
    from benchmarks.samplers_table import LIST

    for part in (LIST, EVIDENCE):
        text = part.page.read_text(encoding="utf-8")
        assert part.fresh(text) == text, f"run: python -m {part.command}"
