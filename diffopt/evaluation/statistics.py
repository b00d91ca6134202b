"""Intervals and tests for success rates. Closed forms only; SciPy for the distributions.

Wilson (1927): the interval of k successes in n trials, z the normal quantile, p = k / n,

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

McNemar (1947), exact: among pairs that disagree, b times only the first succeeds and c times only the second; under equal rates
b is binomial(b + c, 1/2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its interval at confidence `level`. `n` is the number of trials (or pairs)."""

    estimate: float
    low: float
    high: float
    level: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def _check_counts(successes: int, n: int, level: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: expected 0 <= successes <= n")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level = {level}: expected a confidence between 0 and 1")


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a success rate. Without trials the interval is [0, 1] and the estimate NaN."""
    _check_counts(successes, n, level)
    if n == 0:
        return Interval(estimate=float("nan"), low=0.0, high=1.0, level=level, n=0)
    z = float(stats.norm.ppf(0.5 + level / 2.0))
    p = successes / n
    centre = p + z * z / (2.0 * n)
    half = z * np.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    scale = 1.0 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(estimate=p, low=float(low), high=float(high), level=level, n=n)


def beta(successes: int, n: int, level: float = 0.95, prior: tuple[float, float] = (0.5, 0.5)) -> Interval:
    """Equal-tailed credible interval of a success rate; the default prior is Jeffreys'. The estimate is the posterior mean."""
    _check_counts(successes, n, level)
    posterior = stats.beta(successes + prior[0], n - successes + prior[1])
    low, high = posterior.ppf([0.5 - level / 2.0, 0.5 + level / 2.0])
    return Interval(estimate=float(posterior.mean()), low=float(low), high=float(high), level=level, n=n)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired comparison: how often only the first, only the second succeeded, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired trials need two vectors of one length; given shapes {first.shape} and {second.shape}")
    return first, second


def mcnemar(first: Bool[np.ndarray, "N"], second: Bool[np.ndarray, "N"]) -> Comparison:
    """Exact McNemar test of two methods on the same N trials."""
    first, second = _pairs(first, second)
    b = int(np.sum(first.astype(bool) & ~second.astype(bool)))
    c = int(np.sum(~first.astype(bool) & second.astype(bool)))
    p = 1.0 if b + c == 0 else float(stats.binomtest(b, b + c, 0.5).pvalue)
    return Comparison(only_first=b, only_second=c, p_value=p)


def paired_bootstrap(
    first: Float[np.ndarray, "N"],
    second: Float[np.ndarray, "N"],
    groups: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of mean(first - second), resampling pairs.

    Args:
      first, second: outcomes of two methods on the same N trials.
      groups: a label per trial (an object, a scene): whole groups are then resampled, because trials within one are not
        independent. None: every trial by itself.
    """
    first, second = _pairs(first, second)
    difference = first.astype(float) - second.astype(float)
    if len(difference) == 0:
        raise ValueError("paired_bootstrap needs at least one pair")
    labels = np.arange(len(difference)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    total = np.bincount(labels, weights=difference)
    count = np.bincount(labels)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 1000):
        drawn = rng.integers(0, len(total), size=(min(1000, resamples - start), len(total)))
        means[start : start + len(drawn)] = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.5 - level / 2.0, 0.5 + level / 2.0])
    return Interval(estimate=float(difference.mean()), low=float(low), high=float(high), level=level, n=len(difference))
