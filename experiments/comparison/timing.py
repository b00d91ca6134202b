"""What methods cost: `python -m experiments.compare do=time`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from diffopt.evaluation.reach_problems import SHARES
from diffopt.evaluation.report import provenance
from diffopt.samplers import Sampler
from experiments.comparison import kept, methods, trials
from experiments.comparison.benches import Bench, bench
from experiments.comparison.trials import Trial


def measure(config: dict[str, Any], console: Console) -> None:
    """Milliseconds a plan into `configs/compare/times-<problem>.json`, on one core where the process is held to one.

    `draw`: of one draw of a method, all of a block drawn in one call. `default`: of a plan by the default with all its attempts, by dial.
    """
    place, n = bench(config["problem"], config["hold"]), config["chunk"]

    def block(dial: str, count: int) -> list[Trial]:
        numbers = place.instances(dial, min(count, config["instances"]))
        return trials.trials(dial, numbers, -(-count // len(numbers)), config["seed"])[:count]

    def keep(kind: str, name: str, seconds: float) -> None:
        entry = {name: round(1e3 * seconds, 4)}
        kept.write(kept.path("times", config["problem"]), {kind: entry, "chunk": n, "provenance": provenance()})
        console.print(f"{kind} {name}: {1e3 * seconds:.2f} ms")

    made = methods.samplers(config, methods.names(config, place))
    for name, sampler in made.items():
        keep("draw", name, seconds(place, sampler, block("1", n)))
    if config["default"] in made:
        for dial in methods.listed(config, "dial", list(SHARES)):
            spent = seconds_persistent(place, made[config["default"]], block(dial, 4 * n), n)
            keep("default", dial, spent)


def seconds(bench: Bench, sampler: Sampler, block: Sequence[Trial], repeats: int = 5) -> float:
    """Time of one draw [s], all of the block in one call: the median over repeats, compilation apart.

    Here and below it is the process's time on its processors, which does not depend on what else the machine does.
    """
    given = (*trials.Places.of(bench, block).arguments(block), sampler, None, trials.LEVELS)
    jax.block_until_ready(trials.program(*given))
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(trials.program(*given))
        spent.append((time.process_time() - start) / len(block))
    return float(np.median(spent))


def seconds_persistent(bench: Bench, sampler: Sampler, wanted: Sequence[Trial], chunk: int) -> float:
    """Time of a plan [s] with all the attempts that the sampler asks for, the second time that the same is done."""
    spent, places = 0.0, trials.Places.of(bench, wanted)
    for _ in range(2):
        start = time.process_time()
        trials.attempted(places, sampler, wanted, chunk, trials.own_attempts(bench, sampler))
        spent = time.process_time() - start
    return spent / len(wanted)
