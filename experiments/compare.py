"""Every sampler on problems whose prior has a known density: `python -m experiments.compare problem=reach method=all dial=all`.

The feasible share of the prior (50, 10, 1, 0.1 %) is a dial, and every instance is known to be solvable: an oracle has found draws of the
prior that are feasible. So the attainable bound is 100 %. A cell is one method at one dial: success by an
independent judge, with intervals, and tested against the default on the same trials. With `budget=one` every sampler does what it does when
it is asked for one plan; the default draws again what failed by its own account. With `budget=matched` all do that, by the same rule
(`diffopt.attempts`), until the clock has run out that the default needed for the cell. `distance=true` measures how far plans are from
the exact posterior.
Rows go to the output folder, which is resumed if it holds the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig
from rich.console import Console

import diffopt
from diffopt.evaluation.posteriors import Reference, energy_distance
from diffopt.evaluation.reach_problems import SHARES
from diffopt.evaluation.report import open_results, provenance, table
from diffopt.evaluation.statistics import mcnemar, paired_bootstrap, wilson
from diffopt.samplers import Sampler
from experiments import arm_path_screen, comparing, reach_screen
from experiments.benches import PROBLEMS, Bench, bench
from experiments.comparing import Trial
from experiments.settings import settings

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
DISTANCE_COLUMNS = {
    "method": "method",
    "dial": "dial %",
    "plans": "plans",
    "distance": "distance",
    "exact": "exact draws",
}
DISTANCE_COLUMNS |= {"ratio": "ratio"}
MOST = 4096  # draws of one plan where the clock decides
EXACT = 512  # exact draws of a posterior
NEAR, PARTS = 4, 4  # instances per dial that they are drawn for; over how many distances a row is averaged
TUNING: dict[str, Any] = {"dials": ["1", "10"], "instances": 8, "keys": 8, "seed": 7}
GROWING = ("method", "dial", "methods", "do")  # settings under which a folder of results may grow


def listed(config: Mapping[str, Any], key: str, there: list[str]) -> list[str]:
    """The names asked for under a key; a ValueError lists what there is."""
    value = config[key]
    names = there if value == "all" else [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
    for name in names:
        if name not in there:
            raise ValueError(f"{key}={name!r}; there are: {', '.join(there)}, all")
    return names


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that make no sense, before any work."""
    for name in ("instances", "keys", "chunk"):
        if not (isinstance(config[name], int) and config[name] >= 1):
            raise ValueError(f"{name}={config[name]!r}; expected a whole number of at least 1")
    for name, there in (("budget", ("one", "matched")), ("do", ("compare", "tune", "time", "screen"))):
        if config[name] not in there:
            raise ValueError(f"{name}={config[name]!r}; there are: {', '.join(there)}")
    if config["problem"] not in PROBLEMS:
        raise ValueError(f"problem={config['problem']!r}; there are: {', '.join(PROBLEMS)}")
    if config["default"] not in config["methods"]:
        raise ValueError(f"default={config['default']!r}; there are: {', '.join(config['methods'])}")


def samplers(config: Mapping[str, Any], names: list[str]) -> dict[str, Sampler]:
    """The samplers of some methods, tuned if asked for."""
    tuned = comparing.read(comparing.kept("tuned", config["problem"]), "values") if config["tuned"] else {}
    return {name: comparing.method(config["methods"][name], tuned) for name in names}


def methods(config: Mapping[str, Any], place: Bench) -> list[str]:
    """The methods asked for, without those that need what there is not here."""
    there = [
        name
        for name, entry in config["methods"].items()
        if "joints" not in diffopt.samplers.describe(entry["name"]).needs or "joints" in place.needs
    ]
    return listed(config, "method", there)


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


def compare(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """All cells that are not there yet; returns the summary."""
    place = bench(config["problem"], config["hold"])
    names, dials = methods(config, place), listed(config, "dial", list(SHARES))
    made = samplers(config, names)
    results = open_results(output, {k: v for k, v in config.items() if k not in GROWING})
    path = comparing.kept("times", config["problem"])
    times = {kind: comparing.read(path, kind) for kind in ("draw", "default")}
    for dial in dials:
        numbers = place.instances(dial, config["instances"], validation=config["validation"])
        wanted = comparing.trials(dial, numbers, config["keys"], config["seed"])
        for name in names:
            key = f"{name}/{dial}"
            if results.done(key):
                continue
            each = draws(config, name, dial, times)
            more = {} if each is None else {"most": MOST, "total": round(each * len(wanted))}
            outcome = comparing.run(place, made[name], wanted, config["chunk"], **more)
            row = {
                "method": name,
                "dial": dial,
                "options": comparing.described(made[name]),
                "draws": float(outcome.attempts.mean()),
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


def distances(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """Energy distances to exact draws of the posterior, beside that of as many exact draws; instance by instance.

    With pairs of a plan with itself counted in, so that an exact sampler has a distance too: about (1/n + 1/m) E|X - X'|. Of `PARTS` times
    as many draws, each part of `chunk` has a distance, and their mean is the row's.
    """
    place = bench(config["problem"], config["hold"])
    names, dials = methods(config, place), listed(config, "dial", [d for d in SHARES if d != "0.1"])
    made = samplers(config, names)
    results = open_results(output, {k: v for k, v in config.items() if k not in GROWING})
    n = config["chunk"]
    for dial in dials:
        for number in place.instances(dial, NEAR, validation=config["validation"]):
            waiting = [name for name in names if not results.done(f"{name}/{dial}/{number}")]
            if not waiting:
                continue
            exact = place.exact(dial, number, EXACT + PARTS * n)
            reference = Reference.of(exact[PARTS * n :])
            for name in waiting:
                wanted = [Trial(dial=dial, number=number, key=1000 * config["seed"] + k) for k in range(PARTS * n)]
                outcome = comparing.run(place, made[name], wanted, n)
                x = outcome.vectors[outcome.success]
                each = len(x) // PARTS
                row = {"method": name, "dial": dial, "number": number, "plans": each, "distance": None, "exact": None}
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
                summary.append({"method": name, "dial": dial, **entry, "ratio": entry["distance"] / entry["exact"]})
    results.finish(summary, config["seed"])
    console.print(table(f"{n} draws on {NEAR} instances a dial", DISTANCE_COLUMNS, summary))
    return summary


def _biased(x: np.ndarray, reference: Reference) -> float:
    """The energy distance with pairs of a point with itself counted in."""
    from scipy.spatial.distance import pdist

    unbiased = energy_distance(x, reference, resamples=1).estimate
    return unbiased + float(pdist(x).mean()) / len(x) + reference.among / len(reference.points)


def time_methods(config: dict[str, Any], console: Console) -> None:
    """Milliseconds a plan into `configs/compare/times-<problem>.json`, on one core where the process is held to one.

    `draw`: of one draw of a method, all of a block drawn in one call. `default`: of a plan by the default with all its attempts, by dial.
    """
    place, n = bench(config["problem"], config["hold"]), config["chunk"]

    def block(dial: str, count: int) -> list[Trial]:
        numbers = place.instances(dial, min(count, config["instances"]))
        return comparing.trials(dial, numbers, -(-count // len(numbers)), config["seed"])[:count]

    def keep(kind: str, name: str, seconds: float) -> None:
        entry = {name: round(1e3 * seconds, 4)}
        comparing.write(
            comparing.kept("times", config["problem"]), {kind: entry, "chunk": n, "provenance": provenance()}
        )
        console.print(f"{kind} {name}: {1e3 * seconds:.2f} ms")

    made = samplers(config, methods(config, place))
    for name, sampler in made.items():
        keep("draw", name, comparing.seconds(place, sampler, block("1", n)))
    if config["default"] in made:
        for dial in listed(config, "dial", list(SHARES)):
            spent = comparing.seconds_persistent(place, made[config["default"]], block(dial, 4 * n), n)
            keep("default", dial, spent)


def tune(config: dict[str, Any], console: Console) -> None:
    """The best of the card's five values of every method's main option on validation instances, into `tuned-<problem>.json`."""
    place = bench(config["problem"], config["hold"])
    path = comparing.kept("tuned", config["problem"])
    for name in dict.fromkeys(config["methods"][m]["name"] for m in methods(config, place)):
        card = diffopt.samplers.describe(name)
        if card.strength is None or name == "rejection":  # more draws are always better, and cost more
            continue
        tried = {}
        for value in card.strength[1]:
            sampler = diffopt.samplers.load(name, **{card.strength[0]: value})
            rates = []
            for dial in TUNING["dials"]:
                numbers = place.instances(dial, TUNING["instances"], validation=True)
                wanted = comparing.trials(dial, numbers, TUNING["keys"], TUNING["seed"])
                rates.append(comparing.run(place, sampler, wanted, config["chunk"], most=1).success.mean())
            tried[value] = float(np.mean(rates))
        body = {
            "values": {name: max(tried, key=tried.__getitem__)},
            "success": {name: {f"{value:g}": round(rate, 4) for value, rate in tried.items()}},
            "tuning": TUNING,
            "provenance": provenance(),
        }
        comparing.write(path, body)
        console.print(
            f"{name}, {card.strength[0]}: " + ", ".join(f"{value:g} -> {rate:.3f}" for value, rate in tried.items())
        )


def _bits(values: np.ndarray) -> str:
    return "".join("1" if v else "0" for v in values)


def _unbits(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


@hydra.main(version_base=None, config_path="../configs/compare", config_name="compare")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    output = config.pop("output")
    console = Console(width=170)
    try:
        check(config)
        if config["do"] == "tune":
            tune(config, console)
        elif config["do"] == "time":
            time_methods(config, console)
        elif config["do"] == "screen":
            screens = {"reach": reach_screen.screen, "arm_paths": arm_path_screen.screen}
            if config["problem"] not in screens:
                raise ValueError(
                    f"the instances of {config['problem']!r} are not screened; of these are: {', '.join(screens)}"
                )
            screens[config["problem"]](config["instances"], console)
        else:
            (distances if config["distance"] else compare)(config, output, console)
    except (FileExistsError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")


if __name__ == "__main__":
    main()
