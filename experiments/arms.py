"""A visuomotor policy of the floating gripper on an arm that it never saw, in a closed loop on held-out placements:
`python -m experiments.arms sampler=ogd posts=3`. The results folder resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig
from rich.console import Console

import diffopt
from diffopt.evaluation.arm_loop import ArmRun, run, surroundings
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import wilson
from diffopt.geometry import Pose
from diffopt.tasks import visuomotor
from diffopt.tasks.clutter import Cluttered
from diffopt.tasks.placement import Around
from diffopt.tasks.workcell import Unreachable, Workcell, observation
from experiments.settings import settings

COLUMNS = {
    "sampler": "sampler",
    "success": "solved %",
    "clean": "without a collision %",
    "safe": "nor a violation %",
    "touched": "chunks called feasible that touched",
    "planned": "feasible chunks %",
    "latency_ms": "ms a chunk, median",
}


def begin(config: dict[str, Any]) -> tuple[Workcell, diffopt.Controller]:
    """The scene and the controller of a configuration; the arm is not in its place yet."""
    policy = diffopt.policies.load(config["policy"])
    policy = replace(policy, spec=replace(policy.spec, **config["spec"]))
    robot = diffopt.embodiments.load(config["embodiment"])
    robot = replace(robot, velocity=robot.velocity * config["slow"])
    task = visuomotor.load(config["task"])
    if config["posts"]:
        task = Cluttered(base=task, posts=config["posts"], heights=tuple(config["heights"]))
    controller = diffopt.Controller(
        policy=policy,
        robot=robot,
        sampler=diffopt.samplers.load(
            "ddim" if config["sampler"] == "servo" else config["sampler"], **config["options"]
        ),
        levels=config["levels"],
        eta=config["eta"],
        execute=config["execute"],
        attempts=config["attempts"],
        **({} if config["clearance"] is None else {"clearance": config["clearance"]}),
        guard=config["guard"] and tuple(config["guard"]),
        patience=config["patience"],
        opens=1.0,
    )
    return Workcell(task, robot, size=policy.encoder.images[2], weak=config["weak"]), controller


def stand(cell: Workcell, config: dict[str, Any], seed: int) -> bool:
    """Puts the arm to where it stands in an episode; whether there is such a place."""
    if config["placement"] == "lab":
        cell.move_base(Pose(position=jnp.asarray(config["base"], jnp.float32), rotation=jnp.eye(3)))
        return True
    if config["placement"] != "around":
        raise ValueError(f"placement={config['placement']!r}; there are: lab, around")
    try:
        Around(**{name: tuple(config[name]) for name in ("distance", "height", "turn")}).place(cell, seed)
    except Unreachable:
        return False
    return True


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
    chunks: Counter[str] = Counter()
    for row in rows:
        chunks.update(row["chunks"])
    latency = [x for row in rows for x in row["latency"]]
    total, n = sum(chunks.values()), len(rows)
    return dict(
        {name: config[name] for name in ("task", "embodiment", "placement", "posts", "slow", "weak", "sampler")},
        strict=strict_of(config),
        episodes=n,
        success=str(wilson(sum(r["success"] for r in rows), n)),
        clean=str(wilson(sum(r["success"] and not r["hits"] for r in rows), n)),
        safe=str(wilson(sum(r["success"] and not r["hits"] and not r["beyond"] for r in rows), n)),
        collided=sum(r["hits"] > 0 for r in rows),
        violated=sum(r["beyond"] > 0 for r in rows),
        touched=sum(r["touched"] for r in rows),
        broken=sum(r.get("broken", 0) for r in rows),
        beyond_planned=sum(r["beyond_planned"] for r in rows),
        planned=round(100 * chunks["planned"] / total, 1) if total else None,
        chunks=dict(chunks),
        replans=float(np.mean([sum(r["chunks"].values()) for r in rows])) if rows else None,
        tracking_mm=1e3 * float(np.median([r["tracking"] for r in rows])) if rows else None,
        seam_jerk=float(np.median([r["seam_jerk"] for r in rows])) if rows else None,
        latency_ms=round(1e3 * float(np.median(latency)), 1) if latency else None,
        latency_ms_95=round(1e3 * float(np.quantile(latency, 0.95)), 1) if latency else None,
        reasons=dict(Counter(r["reason"] for r in rows if r["reason"])),
    )


def strict_of(config: dict[str, Any]) -> bool:
    """Whether only feasible chunks are executed: unless said, with OGD only."""
    return config["sampler"].startswith("ogd") if config["strict"] is None else config["strict"]


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="arms")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    console, output = Console(), config.pop("output")
    episodes = config.pop("episodes")  # more may be added to a folder
    servo, strict = config["sampler"] == "servo", strict_of(config)
    cell, controller = begin(config)
    results = open_results(output, config)
    ready = False
    first = visuomotor.HELD_OUT + config["first"]
    done = {row["key"] for row in results.rows()}
    for seed in range(first, first + episodes):
        if str(seed) in done:
            continue
        row = ArmRun(seed=seed, success=False, reason="no base")
        if stand(cell, config, seed):
            placed = replace(controller, robot=cell.robot)
            ready = ready or servo or prepare(cell, placed, seed)
            (row,) = run(cell, placed, [seed], constrained=not servo, strict=strict)
        results.append(str(seed), asdict(row))
        told = "solved" if row.success else row.reason
        console.print(f"{seed}: {told}, touches {row.hits}, beyond {row.beyond}, {row.chunks}")
    cell.close()
    line = summary(config, results.rows())
    results.finish([line], config["seed"])
    console.print(line)
    console.print(table(f"{config['task']} on {config['embodiment']}, held-out placements", COLUMNS, [line]))


if __name__ == "__main__":
    main()
