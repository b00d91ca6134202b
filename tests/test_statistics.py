"""Intervals and tests against SciPy and closed forms; results folders."""

import json

import numpy as np
import pytest
from scipy import stats

from diffopt.evaluation import report, statistics


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (130, 200)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(k, n, level):
    ours = statistics.wilson(k, n, level)
    theirs = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)
    assert ours.low <= ours.estimate <= ours.high


def test_wilson_covers_at_its_level():
    n, p = 50, 0.7
    k = np.arange(n + 1)
    inside = np.array([statistics.wilson(int(i), n).low <= p <= statistics.wilson(int(i), n).high for i in k])
    assert 0.93 < stats.binom.pmf(k, n, p)[inside].sum() < 0.97


def test_beta_with_a_flat_prior_and_no_trials_is_uniform():
    interval = statistics.beta(0, 0, 0.95, prior=(1.0, 1.0))
    np.testing.assert_allclose([interval.estimate, interval.low, interval.high], [0.5, 0.025, 0.975], atol=1e-12)


def test_no_trials_say_nothing():
    interval = statistics.wilson(0, 0)
    assert np.isnan(interval.estimate)
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        statistics.wilson(3, 2)


def test_mcnemar_closed_form():
    first = np.array([1] * 6 + [0] * 1 + [1] * 5, bool)
    second = np.array([0] * 6 + [1] * 1 + [1] * 5, bool)
    comparison = statistics.mcnemar(first, second)
    assert (comparison.only_first, comparison.only_second) == (6, 1)
    assert comparison.p_value == pytest.approx(2 * (1 + 7) / 2**7)


def test_mcnemar_of_a_method_with_itself_is_one():
    same = np.array([True, False, True])
    assert statistics.mcnemar(same, same).p_value == 1.0


def test_bootstrap_finds_the_normal_interval():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1.0, 1.0, 400), rng.normal(0.5, 1.0, 400)
    interval = statistics.paired_bootstrap(first, second)
    difference = first - second
    half = 1.96 * difference.std() / np.sqrt(400)
    np.testing.assert_allclose([interval.low, interval.high], difference.mean() + np.array([-half, half]), atol=0.01)


def test_bootstrap_of_repeated_groups_is_as_wide_as_that_of_the_groups():
    rng = np.random.default_rng(2)
    effect = rng.normal(0.0, 1.0, 60)
    repeated = np.repeat(effect, 20)
    labels = np.repeat(np.arange(60), 20)
    by_group = statistics.paired_bootstrap(repeated, 0 * repeated, groups=labels)
    plain = statistics.paired_bootstrap(effect, 0 * effect)
    assert by_group.high - by_group.low == pytest.approx(plain.high - plain.low, rel=0.05)


def test_unpaired_input_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        statistics.mcnemar(np.ones(3, bool), np.ones(2, bool))


def test_results_resume_with_the_same_configuration(tmp_path):
    folder = report.open_results(tmp_path / "r", {"sampler": "ddim", "n": 3})
    folder.append("a", {"success": np.bool_(True), "time": np.float32(0.5)})
    again = report.open_results(tmp_path / "r", {"n": 3, "sampler": "ddim"})
    assert again.done("a") and not again.done("b")
    again.append("b", {"success": False, "time": float("nan")})
    assert [row["key"] for row in again.rows()] == ["a", "b"]
    assert again.rows()[1]["time"] is None


def test_results_of_another_configuration_are_refused_and_untouched(tmp_path):
    folder = report.open_results(tmp_path / "r", {"sampler": "ddim"})
    folder.append("a", {"x": 1})
    with pytest.raises(FileExistsError, match="sampler: there 'ddim', now 'ogd'"):
        report.open_results(tmp_path / "r", {"sampler": "ogd"})
    assert folder.rows() == [{"key": "a", "x": 1}]


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty"):
        report.open_results(tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_row_is_never_overwritten(tmp_path):
    folder = report.open_results(tmp_path / "r", {})
    folder.append("a", {"x": 1})
    with pytest.raises(ValueError, match="never overwritten"):
        folder.append("a", {"x": 2})
    assert folder.rows() == [{"key": "a", "x": 1}]


def test_a_row_cut_short_runs_again(tmp_path):
    folder = report.open_results(tmp_path / "r", {})
    folder.append("a", {"x": 1})
    with (folder.path / "rows.jsonl").open("a") as stream:
        stream.write('{"key": "b", "x"')
    assert not folder.done("b")
    folder.append("b", {"x": 2})
    assert folder.rows()[1] == {"key": "b", "x": 2}


def test_finished_results_carry_versions_and_device(tmp_path):
    folder = report.open_results(tmp_path / "r", {"sampler": "ddim"})
    folder.append("a", {"x": 1})
    folder.finish([{"sampler": "ddim", "success": 0.5}], seed=3)
    body = json.loads((folder.path / "results.json").read_text())
    assert body["provenance"]["seed"] == 3
    assert {"diffopt", "jax", "mujoco", "python", "device"} <= set(body["provenance"])
    assert (folder.path / "results.csv").read_text().splitlines() == ["sampler,success", "ddim,0.5"]
