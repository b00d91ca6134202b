"""The main option of methods, chosen on validation instances: `python -m experiments.compare do=tune`."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

import diffopt
from diffopt.evaluation.report import provenance
from experiments.comparison import kept, methods, trials
from experiments.comparison.benches import bench

TUNING: dict[str, Any] = {"dials": ["1", "10"], "instances": 8, "keys": 8, "seed": 7}


def tune(config: dict[str, Any], console: Console) -> None:
    """The best of the card's five values of every method's main option on validation instances, into `tuned-<problem>.json`."""
    place = bench(config["problem"], config["hold"])
    path = kept.path("tuned", config["problem"])
    for name in dict.fromkeys(config["methods"][m]["name"] for m in methods.names(config, place)):
        card = diffopt.samplers.describe(name)
        if card.strength is None or name == "rejection":  # more draws are always better, and cost more
            continue
        tried = {}
        for value in card.strength[1]:
            sampler = diffopt.samplers.load(name, **{card.strength[0]: value})
            rates = []
            for dial in TUNING["dials"]:
                numbers = place.instances(dial, TUNING["instances"], validation=True)
                wanted = trials.trials(dial, numbers, TUNING["keys"], TUNING["seed"])
                rates.append(trials.run(place, sampler, wanted, config["chunk"], most=1).success.mean())
            tried[value] = float(np.mean(rates))
        body = {
            "values": {name: max(tried, key=tried.__getitem__)},
            "success": {name: {f"{value:g}": round(rate, 4) for value, rate in tried.items()}},
            "tuning": TUNING,
            "provenance": provenance(),
        }
        kept.write(path, body)
        console.print(
            f"{name}, {card.strength[0]}: " + ", ".join(f"{value:g} -> {rate:.3f}" for value, rate in tried.items())
        )
