"""The main job: `make demo`, or `python -m experiments.demo [--trials 200] [--output results/demo]`.

Held-out objects on a table with obstacles, a Franka Panda with an Allegro hand at random places around it. The shipped policy was trained
on the floating hand and never saw an arm. Five ways to sample it: plainly, followed by inverse kinematics; rejection, with as many draws
as fit into the time that OGD takes on this machine; OGD; OGD with several particles; and OGD asked for one plan at a time, where what
fails by its own account is drawn again. Every plan is judged by C MuJoCo and executed by the whole arm and hand.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import diffopt
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import mcnemar
from diffopt.physics.render import GREEN, RED, View, render_grid
from diffopt.samplers import OGD, Rejection, Snap
from experiments import grasping

PICTURES = 5  # per sampler
PARTICLES = 4
ORDER = ("ddim_snap", "rejection", "ogd", "ogd_particles", "ogd_one_by_one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--difficulty", default="medium", choices=("easy", "medium", "hard"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="default: results/demo-DIFFICULTY-seedSEED-TRIALS")
    options = parser.parse_args()
    output = options.output or Path(f"results/demo-{options.difficulty}-seed{options.seed}-{options.trials}")
    console = Console()
    config = {
        "policy": {"name": "grasp-allegro"},
        "embodiment": {"name": "panda-allegro"},
        "scene": {"difficulty": options.difficulty},
        "protocol": {"name": "lift-on-arm"},
        "engine": {"name": "c"},
        "trials": options.trials,
        "chunk": options.trials,
        "levels": 16,
        "seed": options.seed,
    }
    grasping.check(config)
    results = open_results(output, config)
    rows = results.rows()
    if not rows:
        rows = _run(config, results, console)
    _report(config, results, rows, console)


def _run(config: dict[str, Any], results: Any, console: Console) -> list[dict[str, Any]]:
    """All samplers on all instances, and the picture."""
    policy = diffopt.policies.load(config["policy"]["name"])
    robot = diffopt.embodiments.load(config["embodiment"]["name"])
    trials = config["trials"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    views: dict[str, list[View]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with Progress(*columns, console=console) as progress:
        making = progress.add_task("scenes", total=trials)
        problems = []
        for i in range(trials):
            problems += grasping.instances(robot, trials, config["seed"], config["scene"]["difficulty"], [i])
            progress.advance(making)
        seconds: dict[str, float] = {}
        for name in ("ogd", *(other for other in ORDER if other != "ogd")):
            task = progress.add_task(f"{name}: sampling", total=trials)
            if name == "rejection":
                probe = grasping.draw(
                    policy, problems, Rejection(draws=4), seed=1, numbers=range(trials), levels=config["levels"]
                )
                sampler = grasping.matched(probe.seconds / 4, seconds["ogd"])
            else:
                sampler = {"ogd_particles": OGD(particles=PARTICLES), "ddim_snap": Snap()}.get(name, OGD())
            last: dict[int, Any] = {}

            def observe(i: int, model: Any, data: Any, last: dict[int, Any] = last) -> None:
                if i < PICTURES:
                    last[i] = (model, copy.copy(data))

            def advance(n: int, task: Any = task, name: str = name) -> None:
                progress.update(task, advance=n, description=f"{name}: executing")

            cell = grasping.run_cell(
                policy,
                problems,
                sampler,
                config,
                range(trials),
                one_by_one=name == "ogd_one_by_one",
                progress=advance,
                observe=observe,
            )
            seconds[name] = cell.drawn.seconds
            label = f"rejection, best of {sampler.draws}" if isinstance(sampler, Rejection) else name
            rows |= {f"{name}-{i}": {"sampler": name, "label": label} | row for i, row in enumerate(cell.rows)}
            for i in range(min(PICTURES, trials)):  # what was never set in motion is drawn as it was planned
                model, data = last.get(i) or grasping.planned(problems[i], cell.drawn.solution, i)
                views.setdefault(name, []).append(
                    View(
                        model=model,
                        data=data,
                        lookat=np.asarray(problems[i].scene.placement.position) + np.array([0, 0, 0.1]),
                        distance=1.2,
                        frame=GREEN if cell.outcome.success[i] else RED,
                    )
                )
    results.extend(rows)
    picture = render_grid([v for name in ORDER for v in views[name]], results.path / "grasps.png", columns=PICTURES)
    console.print(
        f"picture (rows: {', '.join(ORDER)}; green: lifted and held): {picture.path or 'none: ' + picture.advice}"
    )
    return results.rows()


def _report(config: dict[str, Any], results: Any, rows: list[dict[str, Any]], console: Console) -> None:
    by = {name: [row for row in rows if row["sampler"] == name] for name in ORDER}
    summary = [grasping.summarise(cell[0]["label"], cell) for cell in by.values()]
    success = {name: np.array([row["success"] for row in cell]) for name, cell in by.items()}
    results.finish(summary, config["seed"])
    title = (
        f"{config['trials']} held-out objects, {config['embodiment']['name']}, {config['scene']['difficulty']} scenes"
    )
    console.print(table(title, grasping.COLUMNS, summary))
    for name in (name for name in ORDER if name != "ogd"):
        pair = mcnemar(success["ogd"], success[name])
        counts = f"{pair.only_first} trials only ogd, {pair.only_second} only {name}"
        console.print(f"ogd against {name}, paired: {counts} (exact McNemar p = {pair.p_value:.2g})")
    console.print(f"results: {results.path}/results.json, results.csv, rows.jsonl")


if __name__ == "__main__":
    main()
