"""Tables of policies on arms in docs/visuomotor.md, from what `experiments.arms` wrote: `python -m benchmarks.arms_table [--check]`.

Folders below results/arms are gathered into benchmarks/results/arms-cpu2.json first, cells that are there already with more episodes than
the folder has are kept, and the tables are made from that file. An episode counts if the task is solved without a collision and
without a command beyond the limits; pairs are the episodes that both samplers have run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import diffopt
from benchmarks.page import DOCS, Part
from diffopt.evaluation.report import ResultsFolder, provenance
from diffopt.evaluation.statistics import mcnemar, paired_bootstrap, wilson

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "arms-cpu2.json"
FOLDER = ROOT / "results" / "arms"
SCENE = ("task", "policy", "embodiment", "placement", "posts", "slow", "weak", "attempts")
REFERENCE = "ogd"
ORDER = (
    "servo",
    "snap",
    "projected",
    "clean_projection",
    "sigma_guidance",
    "nudge",
    "nudge-eta0",
)  # the paper's baselines first

Cell = dict[str, Any]


def gathered(folder: Path) -> Cell | None:
    """A results folder as a cell: its configuration, and of its episodes what the tables need."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = ResultsFolder(folder).rows()
    if not rows:
        return None
    chunks: Counter[str] = Counter()
    for row in rows:
        chunks.update(row["chunks"])
    latency = 1e3 * np.array([x for row in rows for x in row["latency"]])
    ran = [row for row in rows if sum(row["chunks"].values())]
    return dict(
        config=config,
        seeds=[row["seed"] for row in rows],
        **{name: [int(row[name]) for row in rows] for name in ("success", "hits", "beyond")},
        touched=sum(row["touched"] for row in rows),
        beyond_planned=sum(row["beyond_planned"] for row in rows),
        chunks=dict(chunks),
        tracking_mm=round(1e3 * float(np.median([row["tracking"] for row in ran])), 1),
        seam_jerk=round(float(np.median([row["seam_jerk"] for row in ran])), 1),
        latency_ms=[round(float(np.quantile(latency, share)), 1) for share in (0.5, 0.95)],
        reasons=dict(Counter(row["reason"] for row in rows if row["reason"])),
    )


def name_of(cell: Cell) -> tuple[Any, ...]:
    return (*(cell["config"][name] for name in SCENE), cell["config"]["label"], cell["config"]["first"])


def collect() -> None:
    """Folders into the file."""
    cells = {name_of(cell): cell for cell in (json.loads(FILE.read_text())["cells"] if FILE.exists() else [])}
    for file in sorted(FOLDER.glob("*/*/rows.jsonl")):
        cell = gathered(file.parent)
        if cell and len(cell["seeds"]) >= len(cells.get(name_of(cell), dict(seeds=[]))["seeds"]):
            cells[name_of(cell)] = cell
    body = [json.dumps(cells[name]) for name in sorted(cells, key=str)]
    about = json.dumps(provenance(0))
    FILE.write_text('{"about": ' + about + ',\n"cells": [\n' + ",\n".join(body) + "\n]}\n", encoding="utf-8")


def counts(cell: Cell) -> np.ndarray:
    """Which episodes count."""
    return np.array(cell["success"], bool) & (np.array(cell["hits"]) == 0) & (np.array(cell["beyond"]) == 0)


def pairs(cell: Cell, other: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Which episodes count with either, of those that both have run."""
    mine, theirs = (dict(zip(c["seeds"], counts(c), strict=True)) for c in (cell, other))
    both = sorted(set(mine) & set(theirs))
    return np.array([mine[s] for s in both]), np.array([theirs[s] for s in both])


def against(cell: Cell, other: Cell) -> str:
    """Episodes that count with `other` only, and with `cell` only, among their pairs; and McNemar's p."""
    mine, theirs = pairs(cell, other)
    found = mcnemar(theirs, mine)
    return f"{found.only_first} : {found.only_second}, p = {found.p_value:.1g}"


def gain(cell: Cell, reference: Cell) -> str:
    """How many points more of their pairs count with `reference`."""
    mine, theirs = pairs(cell, reference)
    return str(paired_bootstrap(theirs, mine)).replace(" %", "", 1)


def share(hits: Any) -> str:
    """A rate with its interval, without the sign."""
    hits = np.asarray(hits, bool)
    return str(wilson(int(hits.sum()), len(hits))).replace(" %", "", 1)


HEAD = (
    "| sampler | episodes | counts % | solved % | without collision % | more with OGD : more with it | collided, violated "
    "| chunks a run | feasible % (touched) | tracking mm | seam jerk | latency ms, 95 % | OGD's gain, points [95 %] |\n|"
    + "---|" * 13
    + "\n"
)


def line(cell: Cell, reference: Cell | None, scene: str = "") -> str:
    """A row of a table; with `scene`, that stands before the sampler."""
    hits, beyond = np.array(cell["hits"]) > 0, np.array(cell["beyond"]) > 0
    total, planned = sum(cell["chunks"].values()), cell["chunks"].get("planned", 0)
    solved = np.array(cell["success"], bool)
    alone = reference is None or reference is cell
    versus, more = ("", "") if alone else (against(cell, reference), gain(cell, reference))
    feasible = f"{100 * planned / total:.1f} ({cell['touched']} of {planned})" if planned else "-"
    return (
        f"| {scene}`{cell['config']['label']}` | {len(hits)} | {share(counts(cell))} | {100 * solved.mean():.1f} | {share(solved & ~hits)} "
        f"| {versus} | {hits.sum()}, {beyond.sum()} | {total / len(hits):.1f} | {feasible} | {cell['tracking_mm']} "
        f"| {cell['seam_jerk']} | {cell['latency_ms'][0]}, {cell['latency_ms'][1]} | {more} |\n"
    )


def title(scene: Mapping[str, Any]) -> str:
    """A scene in words."""
    stand = {"around": "bases all around", "lab": "one base"}[scene["placement"]]
    other = "" if scene["policy"] == scene["task"] else f" by `{scene['policy']}`"
    parts = [f"`{scene['task']}`{other}, {scene['embodiment']}, {stand}", f"{scene['posts']} posts"]
    for name, what in (("slow", "velocity"), ("weak", "torque")):
        if scene[name] != 1.0:
            parts.append(f"{100 * scene[name]:.0f} % of its {what} limits")
    if scene["attempts"] == 1:
        parts.append("one draw a chunk instead of up to three")
    return ", ".join(parts)


def ceiling(policy: str) -> str:
    """The floating gripper's success, from the policy's card."""
    card = Path(diffopt.__file__).parent / "policies" / "weights" / f"{policy}.json"
    test = json.loads(card.read_text(encoding="utf-8"))["test"]
    return f"{100 * test['success']:.1f} % of {test['episodes']}"


FREE = (
    "| task | arm | floating % | OGD: counts % | solved % | `servo`: counts % | solved % | more with OGD : more with it "
    "| `snap`: counts % | more with OGD : more with it | OGD's feasible chunks (touched) |\n|" + "---|" * 11 + "\n"
)


def free(scene: Mapping[str, Any], by: Mapping[str, Cell]) -> str:
    """A row of the table of scenes in which OGD and plain chunks were run, and perhaps snapped ones."""
    ogd, servo = by[REFERENCE], by["servo"]
    solved = [100 * float(np.mean(cell["success"])) for cell in (ogd, servo)]
    total, planned = sum(ogd["chunks"].values()), ogd["chunks"].get("planned", 0)
    arm, snap = scene["embodiment"].removesuffix("-gripper"), by.get("snap")
    snapped = "| | " if snap is None else f"| {share(counts(snap))} of {len(snap['seeds'])} | {against(snap, ogd)} "
    return (
        f"| `{scene['task']}` | {arm} | {ceiling(scene['policy'])} | {share(counts(ogd))} of {len(ogd['seeds'])} | {solved[0]:.1f} "
        f"| {share(counts(servo))} of {len(servo['seeds'])} | {solved[1]:.1f} | {against(servo, ogd)} "
        f"{snapped}| {planned} of {total} ({ogd['touched']}) |\n"
    )


def tables() -> str:
    """A table for every scene in which several samplers were compared, one of those without posts, and one of what is not compared yet."""
    read = json.loads(FILE.read_text(encoding="utf-8"))
    scenes: dict[tuple, dict[str, Cell]] = defaultdict(dict)
    for cell in read["cells"]:
        if not cell["config"]["first"]:
            scenes[tuple(cell["config"][name] for name in SCENE)][cell["config"]["label"]] = cell
    several, unobstructed, alone = [], [], []
    for key, by in sorted(scenes.items(), key=lambda item: (-sum(len(c["seeds"]) for c in item[1].values()), item[0])):
        scene = dict(zip(SCENE, key, strict=True))
        whole = (
            scene["slow"] == scene["weak"] == 1.0
            and not scene["posts"]
            and scene["policy"] == scene["task"]
            and scene["attempts"] > 1
        )
        if whole and {REFERENCE, "servo"} <= set(by) <= {REFERENCE, "servo", "snap"}:
            unobstructed.append(free(scene, by))
            continue
        if len(by) == 1:
            (cell,) = by.values()
            alone.append(line(cell, None, f"{title(scene)} ({ceiling(scene['policy'])}): "))
            continue
        labels = [n for n in (REFERENCE, *ORDER) if n in by] + sorted(n for n in by if n not in (REFERENCE, *ORDER))
        rows = "".join(line(by[name], by.get(REFERENCE)) for name in labels)
        several.append(f"{title(scene)}; the floating gripper: {ceiling(scene['policy'])}\n\n{HEAD}{rows}\n")
    if unobstructed:
        several.append(f"Bases all around, no posts\n\n{FREE}{''.join(sorted(unobstructed))}\n")
    if alone:
        several.append(
            f"Scenes with one sampler so far; in brackets the floating gripper\n\n{HEAD}{''.join(sorted(alone))}\n"
        )
    about = read["about"]
    versions = f"diffopt {about['diffopt']}, jax {about['jax']}, MuJoCo {about['mujoco']}, {about['cores']} shared cores of a CPU"
    return (
        "\n".join(several)
        + f"\n{versions}. Brackets: Wilson's 95 % intervals; pairs: episodes that both ran, exact McNemar test.\n"
    )


TABLES = Part(
    page=DOCS / "visuomotor.md",
    begin="<!-- arms: python -m benchmarks.arms_table -->",
    end="<!-- end of arms -->",
    make=tables,
    command="benchmarks.arms_table",
)

if __name__ == "__main__":
    TABLES.main(__doc__.splitlines()[0], also=collect)
