"""What single draws are worth where they may be repeated: `python -m benchmarks.ogd_attempts [--draws 256] [--output FILE]`.

Draws of several settings of OGD, and of DiRecT, on the validation instances of `experiments.compare problem=reach`, none of them repeated:
how many are feasible, on the prior as well, accepted by the rule of `diffopt.attempts`, and of those how many are right; and how far the
accepted ones are from the exact posterior. The distance is the energy distance to exact draws, as a multiple of what 64 exact draws show:
1 + unbiased distance / ((1/64 + 1/M) E|X - X'|), from all accepted draws of an instance (at least `FEWEST`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from diffopt.evaluation.posteriors import Reference, energy_distance
from diffopt.evaluation.report import provenance, table
from diffopt.policies.base import Policy
from diffopt.samplers import OGD, load
from experiments.comparison.benches import Bench, bench
from experiments.comparison.trials import Places, Trial, draw, vectors

HOLD, CHUNK, EXACT, FEWEST, PLANS = 0.03, 64, 512, 20, 64
INSTANCES = {"50": 4, "10": 4, "1": 4, "0.1": 8}  # of which exact draws are made, but not at 0.1 %


def settings(policy: Policy) -> dict[str, Any]:
    """What is compared."""
    again = OGD().persistent(policy)
    return {
        "drawn once": OGD(),
        "where it may be drawn again": again,
        "that, b = alpha": replace(again, gain=1.0),
        "that, from the noisiest level on": replace(again, window=(1.0, 0.0)),
        "that, released at a tenth": replace(again, window=(0.8, 0.1)),
        "that, every other level": replace(again, every=2),
        "that, with margins twice as wide": replace(again, tighten=2 * again.tighten),
        **{f"that, joints among {n}": replace(again, search=n) for n in (1, 2, 3, 8)},
        "b = alpha, from 0.6 to a tenth, margins twice as wide": replace(
            again, gain=1.0, window=(0.6, 0.1), tighten=2 * again.tighten
        ),
        "DiRecT, share .75": load("direct", share=0.75),
    }


COLUMNS = dict(
    setting="setting",
    dial="share %",
    feasible="feasible",
    success="on the prior too",
    accepted="accepted",
    right="of these right",
    ratio="distance",
    ms="ms a draw",
)


def one(place: Bench, sampler: Any, dial: str, draws: int, exact: dict[int, Reference]) -> dict[str, Any]:
    """A row: means over the instances of a share."""
    rows = []
    for number in place.instances(dial, INSTANCES[dial], validation=True):
        block = [Trial(dial=dial, number=number, key=900_000 + k) for k in range(draws)]
        places, parts, start = Places.of(place, block), [], time.process_time()
        for first in range(0, draws, CHUNK):
            part = draw(places, sampler, block[first : first + CHUNK], CHUNK, [1] * CHUNK)
            parts.append(jax.tree.map(np.asarray, part))
        spent = (time.process_time() - start) / draws
        made = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        policy, frames, *_ = places.arguments(block)
        x = np.asarray(vectors(policy, frames, made.solution.plans))
        feasible, accepted, there = np.asarray(made.solution.feasible), np.asarray(made.accepted), place.support(x)
        ratio = np.nan
        if number in exact and accepted.sum() >= FEWEST:
            reference = exact[number]
            usual = reference.among * (1 / PLANS + 1 / EXACT)
            ratio = 1 + energy_distance(x[accepted], reference, resamples=1).estimate / usual
        rows.append(
            (feasible.mean(), np.mean(feasible & there), accepted.mean(), np.mean(accepted & there), ratio, spent)
        )
    f, s, a, r, _, _ = np.mean(rows, axis=0)
    ratios = [row[4] for row in rows if np.isfinite(row[4])]
    return dict(
        dial=dial,
        feasible=round(float(f), 3),
        success=round(float(s), 3),
        accepted=round(float(a), 3),
        right=round(float(r / a), 4) if a else None,
        ratio=round(float(np.mean(ratios)), 2) if ratios else None,
        ms=round(1e3 * float(np.median([row[5] for row in rows])), 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=256, help="per instance, a multiple of 64")
    parser.add_argument("--output", type=Path, default=Path("results/ogd-attempts.json"))
    options = parser.parse_args()
    place, rows = bench("reach", HOLD), []
    for dial in INSTANCES:
        numbers = place.instances(dial, INSTANCES[dial], validation=True) if dial != "0.1" else []
        exact = {number: Reference.of(place.exact(dial, number, EXACT)) for number in numbers}
        for name, sampler in settings(place.policy).items():
            rows.append({"setting": name} | one(place, sampler, dial, options.draws, exact))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    body = {"provenance": provenance(), "draws": options.draws, "instances": INSTANCES, "rows": rows}
    options.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    Console(width=160).print(table(f"{options.draws} draws an instance", COLUMNS, rows))


if __name__ == "__main__":
    main()
