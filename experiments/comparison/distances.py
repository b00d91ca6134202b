"""How far the plans of methods are from exact draws of the posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from diffopt.evaluation.posteriors import Reference, energy_distance
from diffopt.evaluation.reach_problems import SHARES
from diffopt.evaluation.report import open_results, table
from experiments.comparison import methods, trials
from experiments.comparison.benches import bench

COLUMNS = {
    "method": "method",
    "dial": "dial %",
    "plans": "plans",
    "distance": "distance",
    "exact": "exact draws",
    "ratio_text": "ratio [95 %]",
}
EXACT = 512  # exact draws of a posterior
RESAMPLES = 4000  # of instances, for an interval
PARTS = 4  # over how many distances a row is averaged


def measure(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """Energy distances to exact draws of the posterior, beside that of as many exact draws; instance by instance.

    With pairs of a plan with itself counted in, so that an exact sampler has a distance too: about (1/n + 1/m) E|X - X'|. Of `PARTS` times
    as many draws, each part of `chunk` has a distance, and their mean is the row's.
    """
    place = bench(config["problem"], config["hold"])
    names, dials = methods.names(config, place), methods.listed(config, "dial", [d for d in SHARES if d != "0.1"])
    made = methods.samplers(config, names)
    results = open_results(output, {k: v for k, v in config.items() if k not in methods.GROWING})
    n = config["chunk"]
    for dial in dials:
        for number in place.instances(dial, config["instances"], validation=config["validation"]):
            waiting = [name for name in names if not results.done(f"{name}/{dial}/{number}")]
            if not waiting:
                continue
            exact = place.exact(dial, number, EXACT + PARTS * n)
            reference = Reference.of(exact[PARTS * n :])
            for name in waiting:
                wanted = [
                    trials.Trial(dial=dial, number=number, key=1000 * config["seed"] + k) for k in range(PARTS * n)
                ]
                outcome = trials.run(place, made[name], wanted, n, moves=config["moves"])
                x = outcome.vectors[outcome.success]
                each = len(x) // PARTS
                row = {
                    "method": name,
                    "dial": dial,
                    "number": number,
                    "plans": each,
                    "moves": float(outcome.moves.mean()),
                    "distance": None,
                    "exact": None,
                }
                if each >= n // 4:
                    parts = range(0, PARTS * each, each)
                    row |= {
                        kind: float(np.mean([_biased(points[i : i + each], reference) for i in parts]))
                        for kind, points in (("distance", x), ("exact", exact))
                    }
                results.append(f"{name}/{dial}/{number}", row)
    summary = []
    for dial in dials:
        for name in dict.fromkeys(row["method"] for row in results.rows()):
            rows = [
                r for r in results.rows() if r["method"] == name and r["dial"] == dial and r["distance"] is not None
            ]
            if rows:
                entry = {k: float(np.mean([r[k] for r in rows])) for k in ("plans", "distance", "exact")}
                summary.append({"method": name, "dial": dial, "instances": len(rows), **entry, **ratio(rows)})
    results.finish(summary, config["seed"])
    console.print(table(f"{n} draws on {config['instances']} instances a dial", COLUMNS, summary))
    return summary


def ratio(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean distance over that of exact draws, with a bootstrap interval over instances."""
    far, exact = (np.array([row[key] for row in rows]) for key in ("distance", "exact"))
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    low, high = np.quantile(far[drawn].mean(axis=1) / exact[drawn].mean(axis=1), [0.025, 0.975])
    estimate = float(far.mean() / exact.mean())
    return {
        "ratio": estimate,
        "ratio_low": float(low),
        "ratio_high": float(high),
        "ratio_text": f"{estimate:.2f} [{low:.2f}, {high:.2f}]",
    }


def _biased(x: np.ndarray, reference: Reference) -> float:
    """The energy distance with pairs of a point with itself counted in."""
    from scipy.spatial.distance import pdist

    unbiased = energy_distance(x, reference, resamples=1).estimate
    return unbiased + float(pdist(x).mean()) / len(x) + reference.among / len(reference.points)
