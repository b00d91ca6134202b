"""How many plans inverse kinematics finds joints for, that have some: `python -m benchmarks.guesses [--dial 1 10] [--output FILE]`.

Exact draws of the posterior, on validation instances of `experiments.compare problem=reach`, are judged as a move judges what it has drawn,
again and again with other keys: the guesses are those for a vector that is `aside` standard deviations beside the plan.

    found     share of looks that find joints
    ever      share of plans that one look or more finds joints for;      always   every look
    worst     found and ever of the instance where least is ever found
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from diffopt.evaluation.report import provenance, table
from diffopt.moves import WITHIN
from diffopt.sample import mover
from diffopt.samplers.base import begun_at
from experiments.comparison.benches import bench
from experiments.comparison.trials import LEVELS, Places, Trial, program

HOLD, LOOKS = 0.03, 6
ASIDES = (0.0, 0.3, 0.6, 1.0, 1.5)
COLUMNS = dict(
    dial="share %", aside="aside", found="found", ever="ever", always="always", worst="worst", ms="ms a look"
)


def looked(places: Places, block: list[Trial], exact: np.ndarray, aside: float) -> tuple[np.ndarray, float]:
    """Whether joints were found, by look and plan, and milliseconds of a look."""
    judge, start = replace(mover(places.bench.policy), aside=aside), begun_at(jnp.asarray(exact, jnp.float32), 0)
    found, begun = [], 0.0
    for look in range(LOOKS):
        arguments = places.arguments(block, [look] * len(block))
        solution = jax.block_until_ready(program(*arguments, judge, start, LEVELS)).solution
        found.append(np.asarray(solution.feasible & (solution.stats.terminal_move <= WITHIN)))
        begun = begun or time.process_time()  # the first may compile
    return np.array(found), 1e3 * (time.process_time() - begun) / ((LOOKS - 1) * len(block))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dial", nargs="*", default=["1", "10"])
    parser.add_argument("--instances", type=int, default=16)
    parser.add_argument("--plans", type=int, default=128)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    place, rows, console = bench("reach", HOLD), [], Console(width=120)
    for dial in options.dial:
        seen: dict[float, list[tuple[np.ndarray, float]]] = {aside: [] for aside in ASIDES}
        for number in place.instances(dial, options.instances, validation=True):
            exact = place.exact(dial, number, options.plans)
            block = [Trial(dial=dial, number=number, key=950_000 + k) for k in range(options.plans)]
            places = Places.of(place, block)
            for aside, list_of in seen.items():
                list_of.append(looked(places, block, exact, aside))
        rows += [row(dial, aside, list_of) for aside, list_of in seen.items()]
    console.print(table("joints found of exact draws", COLUMNS, rows))
    if options.output:
        body = dict(provenance=provenance(0), settings=vars(options) | dict(output=None), rows=rows)
        options.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def row(dial: str, aside: float, looks: list[tuple[np.ndarray, float]]) -> dict[str, Any]:
    """Means over the instances of a share."""
    shares = np.array([(found.mean(), found.any(axis=0).mean(), found.all(axis=0).mean()) for found, _ in looks])
    found, ever, always = (round(float(x), 3) for x in shares.mean(axis=0))
    worst = shares[np.argmin(shares[:, 1])]
    ms = round(float(np.median([ms for _, ms in looks])), 3)
    return dict(
        dial=dial, aside=aside, found=found, ever=ever, always=always, worst=f"{worst[0]:.2f}, {worst[1]:.2f}", ms=ms
    )


if __name__ == "__main__":
    main()
