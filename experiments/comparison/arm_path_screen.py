"""The instances of `problem=arm_paths`, found by screening: `python -m experiments.compare problem=arm_paths do=screen`.

Numbers are looked at one after the other, those that are reported and then those that serve for tuning, until every dial has enough. Exact
draws of the prior are judged block by block until `ENOUGH` are feasible, or all were judged. An instance without a feasible one among
the first `HOPELESS` is left out, and so is one with fewer than `LEAST`. Constraints are stricter than the judge (spheres cover the robot,
obstacles are grown); an instance is kept if they accept at least `ACCEPTED` of its feasible draws: what is left is solvable. The
instances go to `configs/compare/instances-arm_paths.json`.
"""

from __future__ import annotations

import json

import jax
import numpy as np
from rich.console import Console

from diffopt.constraints import fit
from diffopt.evaluation.reach_problems import SHARES
from diffopt.evaluation.report import provenance
from experiments.comparison import benches

DRAWS, BLOCK = 16384, 256
ENOUGH, HOPELESS, LEAST = 64, 4096, 5
ACCEPTED = 0.1


def look(place: benches.ArmPathBench, number: int, x: np.ndarray) -> list[float] | None:
    """Of an instance: number, feasible share, feasible draws, and the share of those that the constraints accept; None if left out."""
    problem, arm, good = place.problem(number), place.motions(x), np.zeros(0, bool)
    while len(good) < len(x) and good.sum() < ENOUGH and not (len(good) >= HOPELESS and not good.any()):
        good = np.concatenate([good, problem.feasible(arm[len(good) : len(good) + BLOCK])])
    share = float(good.mean())
    if good.sum() < LEAST or not any(low <= share <= high for low, high in SHARES.values()):
        return None
    found = np.flatnonzero(good)
    accepted = np.asarray(_accepted(place.policy, problem.constraints, x[np.resize(found, ENOUGH)]))[: len(found)]
    enough = accepted.mean() >= ACCEPTED
    return [number, round(share, 5), int(good.sum()), round(float(accepted.mean()), 3)] if enough else None


@jax.jit
def _accepted(policy, constraints, x):
    bound = policy.given(None)

    def one(v):
        plan = bound.decode(v)
        return fit(constraints, bound.spec).report(plan, {"joints": plan.arm}, bound.context).satisfied

    return jax.lax.map(one, x)


def screen(count: int, console: Console) -> None:
    """Instances until every dial has `count` that may be reported, and a half as many for tuning of those that serve for it."""
    place = benches.bench("arm_paths", 0.0)
    x = place.draws(99, DRAWS)
    kept: dict[str, list[list[float]]] = {dial: [] for dial in SHARES}
    for first, wanted, dials in ((0, count, list(SHARES)), (benches.APART, count // 2, ["10", "1"])):
        number, short = first, set(dials)
        while short:
            row = look(place, number, x)
            dial = None if row is None else next(d for d, (low, high) in SHARES.items() if low <= row[1] <= high)
            if row is not None and dial in short:
                kept[dial].append(row)
            short = {d for d in dials if sum(r[0] >= first for r in kept[d]) < wanted}
            number += 1
            if number % 20 == 0:
                console.print(f"up to {number}: " + ", ".join(f"{d} %: {len(rows)}" for d, rows in kept.items()))
                write(kept)
    write(kept)


def write(kept: dict[str, list[list[float]]]) -> None:
    body = {"robot": benches.ROBOT, "shares": SHARES, "tuning_from": benches.APART, "provenance": provenance()}
    lines = ",\n".join(f'  "{dial}": {json.dumps(rows)}' for dial, rows in kept.items())
    text = json.dumps(body, indent=1)[:-2] + ',\n "instances": {\n' + lines + "\n }\n}\n"
    benches.ARM_PATHS.write_text(text, encoding="utf-8")
