"""Writes the tables and plots of docs/samplers.md: `python -m benchmarks.samplers_evidence [--check]`.

It reads what `python -m experiments.compare` wrote, kept in `benchmarks/results` as
`reach-{one,matched,distance,distance-moves,distance-moves24}-cpu2.json` and
`{arm_paths,avoiding,maze}-{one,matched}-cpu2.json`; a file that is not there leaves its part out. Plots: success against time,
success against distance to the posterior, success against feasible share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.page import DOCS, Part
from diffopt.samplers.registry import cards

RESULTS, PLOTS = DOCS.parent / "benchmarks" / "results", DOCS / "samplers"
DIALS = ("50", "10", "1", "0.1")
SHOWN = {"ogd", "ogd_particles", "snap", "direct", "clean_projection", "ddim"}  # with a name in the plots


def results(kind: str, problem: str = "reach") -> dict[str, Any] | None:
    """One file of results."""
    path = RESULTS / f"{problem}-{kind}-cpu2.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def by_method(summary: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Entries by method and dial, methods in the order of their mean success (or, for distances, of their mean ratio)."""
    out: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in summary:
        out.setdefault(entry["method"], {})[entry["dial"]] = entry
    merit = "success" if "success" in summary[0] else "plans"
    return dict(sorted(out.items(), key=lambda item: -sum(e[merit] for e in item[1].values()) / len(item[1])))


def success_table(body: Mapping[str, Any]) -> str:
    """Success by method and dial, with intervals, and which differ from the default's."""
    config = body["config"]
    entries = by_method(body["summary"])
    dials = [d for d in DIALS if any(d in row for row in entries.values())]
    head = (
        "| method | options | draws a plan | "
        + " | ".join(f"{d} %" for d in dials)
        + " | ms a plan |\n"
        + "|---" * (len(dials) + 4)
        + "|\n"
    )
    lines = []
    for name, row in entries.items():
        first = next(iter(row.values()))
        cells = []
        for dial in dials:
            entry = row.get(dial)
            if entry is None:
                cells.append("")
                continue
            mark = "" if entry.get("p") is None or entry["p"] >= 0.01 else " *"
            cells.append(f"{100 * entry['success']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]{mark}")
        ms = ", ".join(f"{row[d]['ms']:.1f}" for d in dials if d in row and row[d].get("ms") is not None)
        drawn = ", ".join(f"{row[d]['draws']:.1f}" for d in dials if d in row)
        lines.append(f"| `{name}` | {main_option(first)} | {drawn} | " + " | ".join(cells) + f" | {ms} |")
    note = (
        f"\n\n{config['instances']} instances x {config['keys']} keys a cell, seed {config['seed']}; in brackets Wilson's 95 % interval; "
        f"* differs from `{config['default']}` with p < 0.01 (exact McNemar test on the same trials). {made(body)}\n"
    )
    return head + "\n".join(lines) + note


def main_option(entry: Mapping[str, Any]) -> str:
    """The main option of a method as it stood, for the table."""
    for card in cards().values():
        if card.strength is not None and entry["method"].startswith(card.name):
            for part in entry["options"].split(", "):
                if part.startswith(card.strength[0] + "="):
                    return part
    return ""


def distance_table(bodies: Sequence[Mapping[str, Any]]) -> str:
    """Energy distance to exact draws over that of as many exact draws; a part for each number of moves."""
    dials = [d for d in DIALS if any(e["dial"] == d for body in bodies for e in body["summary"])]
    head = "| method | moves | " + " | ".join(f"{d} %" for d in dials) + " |\n" + "|---" * (len(dials) + 2) + "|\n"
    lines = []
    for body in bodies:
        for name, row in by_method(body["summary"]).items():
            cells = [f"{row[d]['ratio_text']} ({row[d]['instances']})" if d in row else "too few" for d in dials]
            lines.append(f"| `{name}` | {body['config']['moves']} | " + " | ".join(cells) + " |")
    note = f"{bodies[0]['config']['chunk']} draws; in brackets a bootstrap interval over instances, and their number."
    return head + "\n".join(lines) + f"\n\n{note} {made(bodies[0])}\n"


def made(body: Mapping[str, Any]) -> str:
    p = body["provenance"]
    return f"diffopt {p['diffopt']}, jax {p['jax']}, MuJoCo {p['mujoco']}, {p['cores']} cores of a CPU."


def section() -> str:
    """The text between the marks."""
    parts = []
    one, matched = results("one"), results("matched")
    far = [body for kind in ("distance", "distance-moves", "distance-moves24") if (body := results(kind))]
    if one:
        text = "What one call for one plan gives; only the default draws again what failed by its own account:"
        parts.append(text + "\n\n" + success_table(one))
        parts += pictures("time", "share")
    if matched:
        text = "The same clock for all: each draws again what fails by its own account, while the default's time for the cell lasts:"
        parts.append(text + "\n\n" + success_table(matched))
    if far:
        text = "Distance to the exact posterior, as a multiple of that of as many exact draws (energy distance, one instance at a time):"
        parts.append(text + "\n\n" + distance_table(far))
        parts += pictures("distance")
    for problem in ("arm_paths", "avoiding", "maze"):
        for kind, how in (("one", "one call for one plan"), ("matched", "the same clock for all")):
            if paths := results(kind, problem):
                parts.append(f"The problem `{problem}`, {how}:\n\n" + success_table(paths))
    return "\n".join(parts)


def pictures(*kinds: str) -> list[str]:
    """Links to the plots that there are."""
    there = [kind for kind in kinds if (PLOTS / f"{kind}.png").exists()]
    return [" ".join(f"![Success against {kind}](samplers/{kind}.png)" for kind in there) + "\n"] if there else []


def plot(kind: str, draw: Any, x: str, y: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.4), dpi=110)
    draw(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / f"{kind}.png", metadata={"Software": None})
    pyplot.close(figure)


def points(pairs: Mapping[str, tuple[float, float]], log: bool) -> Any:
    """Named points, and the front of those that no other beats in both."""

    def draw(axes: Any) -> None:
        if log:
            axes.set_xscale("log")
        best = -1.0
        front = []
        for _, (x, y) in sorted(pairs.items(), key=lambda item: item[1][0]):
            if y > best:
                best = y
                front.append((x, y))
        axes.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=1)
        for name, (x, y) in pairs.items():
            axes.plot(x, y, "o", markersize=4, color="C3" if name.startswith("ogd") else "C0")
            axes.annotate(name, (x, y), fontsize=6, xytext=(3, 2), textcoords="offset points")

    return draw


def plots() -> None:
    """The three plots, of what there is."""
    one, far = results("one"), results("distance")
    if not one:
        return
    hard = {e["method"]: e for e in one["summary"] if e["dial"] == "1"}
    timed = {name: (e["ms"], 100 * e["success"]) for name, e in hard.items() if e.get("ms")}
    if timed:
        plot("time", points(timed, True), "ms a plan", "success %, feasible share 1 %")

    def curves(axes: Any) -> None:
        for name, row in by_method(one["summary"]).items():
            dials = [d for d in DIALS if d in row]
            style = {"linewidth": 2, "label": name} if name in SHOWN else {"linewidth": 0.6, "color": "0.75"}
            axes.plot([float(d) for d in dials], [100 * row[d]["success"] for d in dials], marker=".", **style)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.legend(fontsize=6)

    if len({e["dial"] for e in one["summary"]}) > 1:
        plot("share", curves, "feasible share of the prior %", "success %")
    if far:
        dial = [d for d in DIALS if any(e["dial"] == d for e in far["summary"])][-1]
        ratio = {e["method"]: e["ratio"] for e in far["summary"] if e["dial"] == dial}
        there = {e["method"]: 100 * e["success"] for e in one["summary"] if e["dial"] == dial}
        both = {name: (ratio[name], success) for name, success in there.items() if name in ratio}
        if both:
            plot(
                "distance",
                points(both, False),
                "distance to the posterior / that of exact draws",
                f"success %, feasible share {dial} %",
            )


EVIDENCE = Part(
    page=DOCS / "samplers.md",
    begin="<!-- evidence: python -m benchmarks.samplers_evidence -->",
    end="<!-- end of evidence -->",
    make=section,
    command="benchmarks.samplers_evidence",
)

if __name__ == "__main__":
    EVIDENCE.main(__doc__, plots)
