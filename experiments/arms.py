"""A visuomotor policy of the floating gripper on an arm that it never saw, in a closed loop on held-out placements:
`python -m experiments.arms sampler=ogd posts=3`. The results folder resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import diffopt
from diffopt.evaluation.arm_loop import run, surroundings
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import wilson
from diffopt.geometry import Pose
from diffopt.tasks import visuomotor
from diffopt.tasks.clutter import Cluttered
from diffopt.tasks.workcell import Unreachable, Workcell, observation

COLUMNS = {
    "sampler": "sampler",
    "success": "solved %",
    "clean": "solved without a touch %",
    "hits_planned": "touches in chunks called feasible",
    "planned": "feasible chunks %",
    "latency_ms": "ms a chunk, median",
}


def base_of(config: dict[str, Any], seed: int) -> Pose:
    """T_world_base of an episode."""
    if config["placement"] == "lab":
        return Pose(position=jnp.asarray(config["base"], jnp.float32), rotation=jnp.eye(3))
    if config["placement"] != "around":
        raise ValueError(f"placement={config['placement']!r}; there are: lab, around")
    rng = np.random.default_rng([config["seed"], seed, 7])
    angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(*config["distance"])
    c, s = np.cos(angle), np.sin(angle)
    R = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], np.float32)
    return Pose(position=jnp.asarray(-distance * R[:, 0]), rotation=jnp.asarray(R))


def prepare(cell: Workcell, controller: diffopt.Controller, seed: int) -> bool:
    """Compile before anything is timed; whether the episode can begin, which that takes."""
    try:
        episode = cell.start(seed)
    except Unreachable:
        return False
    controller.prepare(observation([episode.moment()] * 2), surroundings(cell, episode))
    return True


def summary(config: dict[str, Any], rows: list[dict]) -> dict[str, Any]:
    """One line of the table."""
    chunks = Counter()
    for row in rows:
        chunks.update(row["chunks"])
    latency = [x for row in rows for x in row["latency"]]
    total = sum(chunks.values())
    return dict(
        sampler=config["sampler"],
        episodes=len(rows),
        success=str(wilson(sum(r["success"] for r in rows), len(rows))),
        clean=str(wilson(sum(r["success"] and not r["hits"] for r in rows), len(rows))),
        touched=sum(r["hits"] > 0 for r in rows),
        hits_planned=sum(r["hits_planned"] for r in rows),
        beyond=sum(r["beyond"] for r in rows),
        planned=round(100 * chunks["planned"] / total, 1) if total else None,
        chunks=dict(chunks),
        tracking=float(np.median([r["tracking"] for r in rows])),
        seam_jerk=float(np.median([r["seam_jerk"] for r in rows])),
        latency_ms=round(1e3 * float(np.median(latency)), 1) if latency else None,
        latency_ms_95=round(1e3 * float(np.quantile(latency, 0.95)), 1) if latency else None,
        reasons=dict(Counter(r["reason"] for r in rows if r["reason"])),
    )


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="arms")
def main(cfg: DictConfig) -> None:
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    console, output = Console(), config.pop("output")
    servo = config["sampler"] == "servo"
    strict = config["sampler"].startswith("ogd") if config["strict"] is None else config["strict"]
    policy = diffopt.policies.load(config["policy"])
    robot = diffopt.embodiments.load(config["embodiment"])
    robot = replace(robot, velocity=robot.velocity * config["slow"])
    task = visuomotor.load(config["task"])
    task = Cluttered(base=task, posts=config["posts"]) if config["posts"] else task
    controller = diffopt.Controller(
        policy=policy,
        robot=robot,
        sampler=diffopt.samplers.load("ddim" if servo else config["sampler"], **config["options"]),
        levels=config["levels"],
        eta=config["eta"],
        execute=config["execute"],
        attempts=config["attempts"] if strict else 1,
    )
    results = open_results(output, config)
    ready = False
    for seed in range(
        visuomotor.HELD_OUT + config["first"], visuomotor.HELD_OUT + config["first"] + config["episodes"]
    ):
        if results.done(str(seed)):
            continue
        placed = replace(controller, robot=robot.at(base_of(config, seed)))
        cell = Workcell(task, placed.robot, size=policy.encoder.images[2])
        if not ready and not servo:
            ready = prepare(cell, placed, seed)
        (row,) = run(cell, placed, [seed], constrained=not servo, strict=strict)
        cell.close()
        results.append(str(seed), asdict(row))
        console.print(f"{len(results.rows())}: {'solved' if row.success else row.reason}, touches {row.hits}")
    line = summary(config, results.rows())
    results.finish([line], config["seed"])
    console.print(line)
    console.print(table(f"{config['task']} on {config['embodiment']}, held-out placements", COLUMNS, [line]))


if __name__ == "__main__":
    main()
