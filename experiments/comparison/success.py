"""Success of methods at dials on the same trials, with intervals, tested against the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console

from diffopt.evaluation.reach_problems import SHARES
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import mcnemar, paired_bootstrap, wilson
from experiments.comparison import kept, methods, trials
from experiments.comparison.benches import bench

COLUMNS = {
    "method": "method",
    "dial": "dial %",
    "success_text": "success % [95 %]",
    "feasible": "feasible",
    "on_prior": "on the prior",
    "p": "p, McNemar",
    "gain_text": "default's gain [95 %]",
    "draws": "draws",
    "evaluations": "evaluations",
    "ms": "ms a plan",
}
MOST = 4096  # draws of one plan where the clock decides


def measure(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """All cells that are not there yet; returns the summary."""
    place = bench(config["problem"], config["hold"])
    names, dials = methods.names(config, place), methods.listed(config, "dial", list(SHARES))
    made = methods.samplers(config, names)
    results = open_results(output, {k: v for k, v in config.items() if k not in methods.GROWING})
    path = kept.path("times", config["problem"])
    times = {kind: kept.read(path, kind) for kind in ("draw", "default")}
    for dial in dials:
        numbers = place.instances(dial, config["instances"], validation=config["validation"])
        wanted = trials.trials(dial, numbers, config["keys"], config["seed"])
        for name in names:
            key = f"{name}/{dial}"
            if results.done(key):
                continue
            each = draws(config, name, dial, times)
            more = {} if each is None else {"most": MOST, "total": round(each * len(wanted))}
            outcome = trials.run(place, made[name], wanted, config["chunk"], **more, moves=config["moves"])
            row = {
                "method": name,
                "dial": dial,
                "options": methods.described(made[name]),
                "draws": float(outcome.attempts.mean()),
                "moves": float(outcome.moves.mean()),
                "success": _bits(outcome.success),
                "feasible": float(outcome.feasible.mean()),
                "on_prior": float(outcome.on_prior.mean()),
                "accepted": float(outcome.accepted.mean()),
                "accepted_right": float(outcome.success[outcome.accepted].mean()) if outcome.accepted.any() else None,
                "claimed_wrongly": int(np.sum(outcome.claimed & ~outcome.feasible)),
                "evaluations": float(outcome.evaluations.mean()),
                "energy": float(outcome.energy.mean()),
                "terminal_move": float(outcome.terminal_move.mean()),
                "spread": spread(outcome.vectors[outcome.success]),
            }
            results.append(key, row)
            console.print(f"{key}: {100 * outcome.success.mean():.1f} %")
    summary = summarise(results.rows(), config, times)
    results.finish(summary, config["seed"])
    title = f"{config['problem']}, {config['instances']} instances x {config['keys']} keys a cell, bound 100 %"
    console.print(table(title, COLUMNS, summary))
    console.print(f"results: {results.path}")
    return summary


def summarise(rows: list[dict[str, Any]], config: Mapping[str, Any], times: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rates with intervals, and tests against the default on the same trials."""
    out = []
    for row in rows:
        success = _unbits(row["success"])
        rate = wilson(int(success.sum()), len(success))
        entry = {k: v for k, v in row.items() if k not in ("success", "key")}
        entry |= {
            "success": rate.estimate,
            "low": rate.low,
            "high": rate.high,
            "trials": rate.n,
            "success_text": str(rate),
        }
        entry |= {"ms": spent(row, config, times), "p": None, "gain_text": ""}
        default = next((r for r in rows if r["method"] == config["default"] and r["dial"] == row["dial"]), None)
        if default is not None and row["method"] != config["default"]:
            ours = _unbits(default["success"])
            groups = np.arange(len(ours)) % config["instances"]
            gain = paired_bootstrap(ours, success, groups)
            entry |= {"p": mcnemar(ours, success).p_value, "gain": gain.estimate, "gain_text": str(gain)}
        out.append(entry)
    return sorted(out, key=lambda e: (-float(e["dial"]), -e["success"]))


def draws(config: Mapping[str, Any], name: str, dial: str, times: Mapping[str, Any]) -> float | None:
    """Draws that a method has for a plan on average, so that it takes as long as the default at this dial; None for its own way."""
    if config["budget"] == "one" or name == config["default"]:
        return None
    lasts, one = times.get("default", {}).get(dial), times.get("draw", {}).get(name)
    if lasts is None or one is None:
        raise ValueError(
            f"no time is known for {name if lasts is not None else config['default']!r} at {dial} %: first python -m experiments.compare "
            "do=time"
        )
    return max(1.0, lasts / one)


def spent(row: Mapping[str, Any], config: Mapping[str, Any], times: Mapping[str, Any]) -> float | None:
    """Milliseconds a plan: the default's as measured at the dial, another's from its time for one draw."""
    if row["method"] == config["default"]:
        return times.get("default", {}).get(row["dial"])
    one = times.get("draw", {}).get(row["method"])
    return None if one is None else one * row.get("draws", 1.0)


def spread(x: np.ndarray) -> float | None:
    """Mean distance of plans from each other, in the object's frame and normalised coordinates."""
    from scipy.spatial.distance import pdist

    return float(pdist(x).mean()) if len(x) > 1 else None


def _bits(values: np.ndarray) -> str:
    return "".join("1" if v else "0" for v in values)


def _unbits(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])
