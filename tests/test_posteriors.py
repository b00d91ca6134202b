"""The problems with a known posterior, and the experiment that uses them."""

import json

import jax
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from diffopt.evaluation.posteriors import KINDS, TOLERANCE, Reference, energy_distance, noise_floor, problem
from diffopt.plans import Point
from experiments import posterior


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 8, 32])
def test_the_constraint_and_the_judge_agree_and_the_share_is_the_one_asked_for(kind, dim):
    task = problem(kind, dim=dim, share=0.2, seed=3)
    x = np.asarray(task.policy.denoiser.sample(jax.random.key(7), 4000))
    constraint = task.constraints["region"]
    residual = np.asarray(jax.vmap(lambda v: constraint.residual(Point(values=v), {}, None))(x))[:, 0]
    clear = np.abs(residual - TOLERANCE) > 1e-4
    np.testing.assert_array_equal(task.judge(x)[clear], (residual <= TOLERANCE)[clear])
    assert abs(task.judge(x).mean() - 0.2) < 4 * np.sqrt(0.16 / 4000) + 0.005


def test_exact_draws_are_feasible_and_those_of_the_prior():
    """Of the prior's own draws the feasible ones have the posterior's mean."""
    task = problem("half_space", dim=2, share=0.3)
    exact = task.exact(1, 4000)
    assert task.judge(exact).all() and exact.shape == (4000, 2)
    prior = np.asarray(task.policy.denoiser.sample(jax.random.key(99), 20000))
    kept = prior[task.judge(prior)]
    np.testing.assert_allclose(exact.mean(0), kept.mean(0), atol=0.06)


def test_energy_distance_against_a_closed_form():
    """Normals in one dimension: 2 E|X - Y| - E|X - X'| - E|Y - Y'| with E|N(m, s)| in closed form."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 1.0, (4000, 1)), rng.normal(0.0, 1.0, (4000, 1))
    from scipy.stats import norm

    s, m = np.sqrt(2), 1.0
    across = s * np.sqrt(2 / np.pi) * np.exp(-(m**2) / (2 * s**2)) + m * (1 - 2 * norm.cdf(-m / s))
    expected = 2 * across - 2 * s * np.sqrt(2 / np.pi)
    found = energy_distance(x, Reference.of(y))
    np.testing.assert_allclose(found.estimate, expected, atol=0.05)
    assert found.low < found.estimate < found.high
    same = energy_distance(rng.normal(0.0, 1.0, (2000, 1)), Reference.of(y))
    assert abs(same.estimate) < 0.01


def test_the_floor_is_what_exact_draws_show():
    task = problem("ball", share=0.3)
    reference = Reference.of(task.exact(1, 1000))
    floor = noise_floor(task, 128, reference)
    below = [energy_distance(task.exact(50 + i, 128), reference, resamples=1).estimate <= floor for i in range(20)]
    assert np.mean(below) >= 0.8
    assert energy_distance(task.exact(2, 128) + 1.0, reference, resamples=1).estimate > 10 * floor


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="half_space, ball, shell, union, passage"):
        problem("cube")
    with pytest.raises(ValueError, match="share=2"):
        problem("ball", share=2)
    with pytest.raises(ValueError, match="at least two"):
        energy_distance(np.zeros((1, 2)), Reference(points=np.zeros((2, 2)), among=0.0))


def configuration(*overrides):
    directory = str(posterior.TUNED.parent)
    with initialize_config_dir(directory, version_base=None):
        config = OmegaConf.to_container(compose("posterior", overrides=list(overrides)))
    return {k: v for k, v in config.items() if k not in ("output", "tune", "hydra")}


def test_a_run_resumes_and_says_what_it_found(tmp_path):
    config = configuration(
        "sampler=[ddim,clean_projection]", "problem=half_space", "n=64", "levels=8", "budget=0.0", "strength=default"
    )
    console = Console(width=170, record=True, quiet=True)
    rows = posterior.compare(config, str(tmp_path / "out"), console)
    by_name = {row["sampler"]: row for row in rows}
    assert by_name["clean_projection"]["feasible"] > 0.9 > by_name["ddim"]["feasible"]
    assert all(row["contradicted"] == 0 and row["floor"] > 0 for row in rows)
    assert posterior.compare(config, str(tmp_path / "out"), console) == rows
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 2
    with pytest.raises(FileExistsError, match="levels"):
        posterior.compare(config | {"levels": 9}, str(tmp_path / "out"), console)
    (other,) = posterior.compare(config | {"sampler": "ddim", "problem": "ball"}, str(tmp_path / "out"), console)
    assert (other["sampler"], other["problem"]) == ("ddim", "ball")  # another call that shares the folder
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 3


def test_the_configuration_is_checked_before_any_work():
    with pytest.raises(ValueError, match=r"sampler='mppg'; there are: .*mpgd"):
        posterior.chosen(configuration("sampler=mppg"))
    with pytest.raises(ValueError, match="n=3"):
        posterior.check(configuration("n=3"))
    with pytest.raises(ValueError, match="cosine, flow"):
        posterior.check(configuration("schedule=linear"))


def test_tuned_values_are_options_that_exist():
    values = json.loads(posterior.TUNED.read_text())["values"]
    for name, value in values.items():
        options = posterior.options_of(name, "tuned", 0)
        assert list(options.values()) == [value]
        posterior.options_of(name, "default", 4)
