"""What moves do to plans of the default: `python -m benchmarks.moves [--instances 4] [--plans 256] [--turns 5] [--guesses 5]`.

Plans of OGD with its own attempts, which look for joints among so many guesses, on the validation instances of `experiments.compare
problem=reach`, and the same plans after some moves (`diffopt.moves`), whose levels take turns in several ways: how far they are from
the exact posterior, as a multiple of what 64 exact draws show (1 + unbiased energy distance / ((1/64 + 1/M) E|X - X'|)), how many are
on the prior, how many moves changed a plan, and what plans and moves cost.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from diffopt import moves
from diffopt.evaluation.posteriors import Reference, energy_distance
from diffopt.evaluation.report import provenance, table
from diffopt.samplers import OGD, ogd
from experiments.comparison.benches import Bench, bench
from experiments.comparison.trials import Attempt, Places, Trial, attempted, move, own_attempts, vectors

HOLD, CHUNK, EXACT, PLANS = 0.03, 64, 512, 64
COUNTS = (0, 2, 4, 8, 16)
TURNS = ((0.8, 0.4, 0.2), (0.8, 0.4), (0.6, 0.3), (0.4, 0.2), (0.4,))
COLUMNS = dict(
    dial="share %",
    shares="levels",
    **{f"after{n}": str(n) for n in COUNTS},
    support="on the prior",
    changed="changed",
    ms="ms a move",
    plan_ms="ms a plan",
    attempts="draws a plan",
)


def one(place: Bench, dial: str, number: int, plans: int, turns: int) -> list[dict[str, Any]]:
    """Rows of an instance, one for each way in which levels take turns."""
    block = [Trial(dial=dial, number=number, key=950_000 + k) for k in range(plans)]
    places, reference = Places.of(place, block), Reference.of(place.exact(dial, number, EXACT))
    policy, frames, *_ = places.arguments(block)
    usual = reference.among * (1 / PLANS + 1 / EXACT)

    def ratio(made: Attempt) -> tuple[float, float]:
        x = np.asarray(vectors(policy, frames, made.solution.plans), float)
        there = place.support(x) & np.asarray(made.solution.feasible)
        return 1 + energy_distance(x[there], reference, resamples=1).estimate / usual, float(there.mean())

    sampler, rows = OGD(), []
    start = time.process_time()
    begun = attempted(places, sampler, block, CHUNK, own_attempts(place, sampler))
    drawn = time.process_time() - start
    for shares in TURNS[:turns]:
        with mock.patch.object(moves, "SHARES", shares):
            row: dict[str, Any] = {"dial": dial, "number": number, "shares": ", ".join(map(str, shares))}
            for count in COUNTS:
                start = time.process_time()
                made = move(places, begun, block, CHUNK, count) if count else begun
                spent = time.process_time() - start
                row[f"after{count}"], row["support"] = ratio(made)
            row |= {"changed": float(np.mean(made.solution.stats.moves)) / count, "ms": 1e3 * spent / plans / count}
            row |= {"plan_ms": 1e3 * drawn / plans, "attempts": float(np.mean(begun.solution.stats.attempts))}
        rows.append(row)
    return rows


def warm_up(place: Bench) -> None:
    """Compile what is timed, on an instance that may be hard."""
    (number,) = place.instances("1", 1, validation=True)
    block = [Trial(dial="1", number=number, key=k) for k in range(CHUNK)]
    attempted(Places.of(place, block), OGD(), block, CHUNK, own_attempts(place, OGD()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=4, help="per share")
    parser.add_argument("--plans", type=int, default=256, help="per instance, a multiple of 64")
    parser.add_argument("--turns", type=int, default=len(TURNS), help="how many of the ways in which levels take turns")
    parser.add_argument("--guesses", type=int, default=ogd.WIDER, help="of inverse kinematics")
    parser.add_argument("--output", type=Path, default=Path("results/moves.json"))
    options = parser.parse_args()
    place, rows = bench("reach", HOLD), []
    with mock.patch.object(ogd, "WIDER", options.guesses):
        warm_up(place)
        for dial in ("50", "10", "1"):
            for number in place.instances(dial, options.instances, validation=True):
                rows += one(place, dial, number, options.plans, options.turns)
    means = []
    for dial, shares in dict.fromkeys((row["dial"], row["shares"]) for row in rows):
        some = [row for row in rows if (row["dial"], row["shares"]) == (dial, shares)]
        figures = {
            key: round(float(np.mean([r[key] for r in some])), 3)
            for key in some[0]
            if key not in ("dial", "number", "shares")
        }
        means.append({"dial": dial, "shares": shares} | figures)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "provenance": provenance(),
        "plans": options.plans,
        "guesses": options.guesses,
        "instances": options.instances,
        "means": means,
        "rows": rows,
    }
    options.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    Console(width=160).print(
        table(f"distance to the posterior after so many moves, {options.plans} plans", COLUMNS, means)
    )


if __name__ == "__main__":
    main()
