"""Every sampler against posteriors that are known exactly: `python -m experiments.posterior sampler=all problem=all dim=2`.

A row is one sampler on one problem: how many of its plans are feasible (by a judge of its own), how far the feasible ones are from the
exact posterior (beside the distance that as many exact draws as plans would show, the floor), control energy, network evaluations, and
time, compilation apart. Rows go to the output folder, which is resumed if it holds the same configuration and never overwritten; it may
hold more samplers and problems than were asked for, so that several calls can share it.
`tune=true` searches the main option of every sampler, five values each, on validation seeds, and writes `configs/posterior/tuned.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import jax
import numpy as np
from omegaconf import DictConfig
from rich.console import Console

import diffopt
from diffopt.evaluation.posteriors import KINDS, PosteriorProblem, Reference, energy_distance, noise_floor, problem
from diffopt.evaluation.report import open_results, provenance, table
from diffopt.evaluation.statistics import wilson
from diffopt.schedules import Cosine, Flow
from experiments.settings import settings

TUNED = Path(__file__).resolve().parent.parent / "configs" / "posterior" / "tuned.json"
REFERENCE = 2048  # exact draws that plans are compared with
FEWEST = 16  # feasible plans below which no distance is given
VALIDATION = (1000, 1001)
COLUMNS = {
    "sampler": "sampler",
    "problem": "problem",
    "option": "option",
    "feasible_text": "feasible % [95 %]",
    "distance_text": "distance [95 %]",
    "floor": "floor",
    "evaluations": "evaluations",
    "energy": "energy",
    "ms": "ms a plan",
    "compile_s": "compile s",
}


def chosen(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Names of samplers and problems; a ValueError lists what there is."""
    points = [name for name in diffopt.samplers.available() if "joints" not in diffopt.samplers.describe(name).needs]
    out = []
    for key, there in (("sampler", points), ("problem", list(KINDS))):
        value = config[key]
        names = there if value == "all" else [value] if isinstance(value, str) else list(value)
        for name in names:
            if name not in there:
                raise ValueError(f"{key}={name!r}; there are: {', '.join(there)}, all")
        out.append(names)
    return out[0], out[1]


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that make no sense, before any work."""
    for name, least in (("n", FEWEST), ("levels", 1), ("dim", 2), ("terminal", 0), ("attempts", 1), ("moves", 0)):
        if not (isinstance(config[name], int) and config[name] >= least):
            raise ValueError(f"{name}={config[name]!r}; expected a whole number of at least {least}")
    if config["schedule"] not in ("cosine", "flow"):
        raise ValueError(f"schedule={config['schedule']!r}; there are: cosine, flow")
    if config["strength"] not in ("tuned", "default") and not isinstance(config["strength"], (int, float)):
        raise ValueError(f"strength={config['strength']!r}; there are: tuned, default, or a number")
    if not config["budget"] >= 0:
        raise ValueError(f"budget={config['budget']!r}; expected milliseconds a plan, or 0")


def options_of(name: str, strength: Any, terminal: int) -> dict[str, Any]:
    """Options of a sampler: its main one as asked for, and the terminal correction where the paper's method is another without."""
    card = diffopt.samplers.describe(name)
    options: dict[str, Any] = {}
    if card.strength is not None and strength != "default":
        tuned = (
            json.loads(TUNED.read_text(encoding="utf-8"))["values"] if strength == "tuned" and TUNED.exists() else {}
        )
        value = tuned.get(name) if strength == "tuned" else strength
        if value is not None:
            options[card.strength[0]] = type(card.strength[1][0])(value)
    known = getattr(card.build, "__dataclass_fields__", {})
    if terminal and name != "ogd" and "terminal" in known:
        options["terminal"] = terminal
    return options


def told(options: Mapping[str, Any]) -> list[str]:
    """Options in words."""
    return [f"{name}={value:g}" for name, value in options.items()]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A problem, exact draws of its posterior, and the distance that n exact draws have from them."""

    problem: PosteriorProblem
    reference: Reference
    floor: float


def task_of(config: Mapping[str, Any], kind: str, seed: int) -> Task:
    schedule = Flow() if config["schedule"] == "flow" else Cosine()
    made = problem(kind, dim=config["dim"], share=config["share"], seed=seed, schedule=schedule)
    reference = Reference.of(made.exact(seed + 1, REFERENCE))
    return Task(problem=made, reference=reference, floor=noise_floor(made, config["n"], reference))


def cell(config: Mapping[str, Any], name: str, options: Mapping[str, Any], task: Task, seed: int) -> dict[str, Any]:
    """One sampler on one problem."""
    sampler = diffopt.samplers.load(name, **options)
    judge, settings = task.problem.judge, {name: config[name] for name in ("n", "levels", "eta", "attempts", "moves")}

    def draw(key):
        start = time.perf_counter()
        result = diffopt.sample(task.problem.policy, task.problem.constraints, key=key, sampler=sampler, **settings)
        jax.block_until_ready(result)
        return time.perf_counter() - start, result

    first, result = draw(seed)
    seconds = float(np.median([draw(seed)[0] for _ in range(3)]))
    plans = np.asarray(result.plans.values)
    feasible = judge(plans)
    contradicted = int(np.sum(np.asarray(result.feasible) & ~feasible))
    calls = 1
    while config["budget"] and not feasible.all() and 1e3 * seconds * (calls + 1) <= config["budget"] * config["n"]:
        plans = np.where(feasible[:, None], plans, np.asarray(draw(seed + 7919 * calls)[1].plans.values))
        feasible, calls = judge(plans), calls + 1
    rate = wilson(int(feasible.sum()), len(feasible))
    row = {
        "sampler": name,
        "problem": task.problem.kind,
        "option": ", ".join(told(options)),
        "feasible": rate.estimate,
        "feasible_text": str(rate),
        "contradicted": contradicted,
        "distance": None,
        "distance_text": f"fewer than {FEWEST} feasible",
        "floor": task.floor,
        "evaluations": float(np.mean(result.stats.evaluations)) * calls,
        "energy": float(np.mean(result.stats.control_energy)),
        "terminal_move": float(np.mean(result.stats.terminal_move)),
        "calls": calls,
        "draws": float(np.mean(result.stats.attempts)) * calls,
        "ms": 1e3 * seconds / config["n"],
        "compile_s": max(0.0, first - seconds),
    }
    if feasible.sum() >= FEWEST:
        distance = energy_distance(plans[feasible], task.reference)
        row |= {"distance": distance.estimate, "distance_low": distance.low, "distance_high": distance.high}
        row["distance_text"] = str(distance)
    return row


def compare(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """All cells that are not there yet; returns the rows."""
    samplers, kinds = chosen(config)
    options = {name: options_of(name, config["strength"], config["terminal"]) for name in samplers}
    results = open_results(
        output, {name: value for name, value in config.items() if name not in ("sampler", "problem")}
    )
    tasks = {kind: task_of(config, kind, config["seed"]) for kind in kinds}
    asked = []
    for name in samplers:
        for kind, task in tasks.items():
            asked.append("/".join((name, kind, *told(options[name]))))
            if not results.done(asked[-1]):
                results.append(asked[-1], cell(config, name, options[name], task, config["seed"]))
    every = sorted(results.rows(), key=lambda row: (row["problem"], -(row["feasible"] or 0), row["sampler"]))
    results.finish(every, config["seed"])
    rows = [row for row in every if row["key"] in asked]
    console.print(table(f"dimension {config['dim']}, {100 * config['share']:g} % of the prior feasible", COLUMNS, rows))
    console.print(f"results: {results.path}")
    return rows


def loss(rows: Sequence[Mapping[str, Any]]) -> float:
    """What tuning minimises: the share that is not feasible plus the distance of what is, at most 1 (and 1 where there is too little)."""
    far = [1.0 if row["distance"] is None else min(max(row["distance"], 0.0), 1.0) for row in rows]
    return float(np.mean([1 - row["feasible"] + distance for row, distance in zip(rows, far, strict=True)]))


def tune(config: dict[str, Any], console: Console) -> None:
    """The best of the card's values of every sampler's main option, on validation seeds; written with all that was tried.

    Samplers that were not asked for keep what the file has.
    """
    samplers, kinds = chosen(config)
    tasks = [(seed, task_of(config, kind, seed)) for seed in VALIDATION for kind in kinds]
    settings = {k: config[k] for k in ("problem", "dim", "share", "n", "levels", "eta", "schedule", "terminal")}
    for name in samplers:
        card = diffopt.samplers.describe(name)
        if card.strength is None or name == "rejection":  # more draws are always better, and cost more
            continue
        tried = {}
        for value in card.strength[1]:
            options = options_of(name, value, config["terminal"])
            tried[value] = loss([cell(config, name, options, task, seed) for seed, task in tasks])
        body = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {"values": {}, "loss": {}}
        body["values"][name] = min(tried, key=tried.__getitem__)
        body["loss"][name] = {f"{value:g}": round(figure, 4) for value, figure in tried.items()}
        body |= {"config": settings, "validation_seeds": list(VALIDATION), "provenance": provenance()}
        TUNED.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        console.print(
            f"{name}, {card.strength[0]}: " + ", ".join(f"{value:g} -> {figure:.3f}" for value, figure in tried.items())
        )


@hydra.main(version_base=None, config_path="../configs/posterior", config_name="posterior")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    output, tuning = config.pop("output"), config.pop("tune")
    try:
        check(config)
        if tuning:
            tune(config, Console(width=170))
        else:
            compare(config, output, Console(width=170))
    except (FileExistsError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")


if __name__ == "__main__":
    main()
