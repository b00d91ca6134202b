"""The instances of `experiments.compare`, found by screening: `python -m experiments.compare do=screen`.

Numbers are looked at one after the other, until every dial has enough. Of those with much room for the gripper every fourth is looked at.
Draws at which the gripper is clear are given to inverse kinematics block by block until `ENOUGH` are feasible, at most `MOST`. Where the
arm hardly ever follows, in fewer than one of 64 tries, the share is not resolved and the instance is left out. Looks are kept in
`results/compare/screening.jsonl`, the instances go to `configs/compare/instances.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import diffopt
from diffopt.evaluation.reach_problems import SHARES, Oracle, ReachProblem, Share, reach_problem
from diffopt.evaluation.report import provenance
from diffopt.evaluation.wrists import wrist_prior
from experiments.comparison import benches

LOOKS = Path("results/compare/screening.jsonl")
ENOUGH, MOST, HOPELESS = 12, 192, 64
ROOM = 0.25  # share of draws at which the gripper is clear, above which three of four instances are left out: most of these are easy
LEAST = 5  # feasible draws that an instance needs: then it is solvable, and its share known to about a factor of two


def look(oracle: Oracle, problem: ReachProblem) -> dict[str, Any]:
    """The feasible share of an instance, and its dial, None where it has none or is not resolved."""
    room = float(oracle.clear(problem, 2048).size / 2048)
    if room > ROOM and problem.number % 4:
        return {"clear": room, "dial": None}
    index = oracle.clear(problem)
    good = np.zeros(0, bool)
    while len(good) < min(len(index), MOST) and good.sum() < ENOUGH and not (len(good) >= HOPELESS and not good.any()):
        block = index[len(good) : len(good) + oracle.block]
        good = np.concatenate([good, oracle.feasible(problem, block)])
    share = Share(clear=len(index) / len(oracle.poses), tried=len(good), feasible=int(good.sum()))
    return {**asdict(share), "share": share.estimate, "dial": share.dial if share.feasible >= LEAST else None}


def screen(count: int, console: Console) -> None:
    """Instances until every dial has `count` that may be reported."""
    robot = diffopt.embodiments.load(benches.ROBOT)
    oracle = Oracle.of(wrist_prior(), robot)
    LOOKS.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in LOOKS.read_text().splitlines()] if LOOKS.exists() else []
    number = len(rows)
    while min(_count(rows, dial) for dial in SHARES) < count:
        problem = reach_problem(robot, number)
        rows.append({"number": number, **({"dial": None} if problem is None else look(oracle, problem))})
        with LOOKS.open("a") as stream:
            stream.write(json.dumps(rows[-1]) + "\n")
        number += 1
        if number % 20 == 0:
            write(rows, count)
            console.print(f"{number} looked at; " + ", ".join(f"{dial} %: {_count(rows, dial)}" for dial in SHARES))
    write(rows, count)


def write(rows: list[dict[str, Any]], count: int) -> None:
    """The first `count` instances of every dial, as [number, share, feasible draws], after as many that serve for choosing and tuning."""
    found = {dial: [r for r in rows if r["dial"] == dial] for dial in SHARES}
    kept = {
        dial: [r for r in listed if r["number"] < benches.REPORTED][:count]
        + [r for r in listed if r["number"] >= benches.REPORTED][:count]
        for dial, listed in found.items()
    }
    text = {
        dial: json.dumps([[r["number"], round(r["share"], 5), r["feasible"]] for r in r_]) for dial, r_ in kept.items()
    }
    body = {
        "robot": benches.ROBOT,
        "shares": SHARES,
        "reported_from": benches.REPORTED,
        "looked_at": len(rows),
        "provenance": provenance(),
    }
    lines = ",\n".join(f'  "{dial}": {listed}' for dial, listed in text.items())
    benches.INSTANCES.write_text(
        json.dumps(body, indent=1)[:-2] + ',\n "instances": {\n' + lines + "\n }\n}\n", encoding="utf-8"
    )


def _count(rows: list[dict[str, Any]], dial: str) -> int:
    """How many instances of a dial there are that may be reported."""
    return sum(row["dial"] == dial and row["number"] >= benches.REPORTED for row in rows)
