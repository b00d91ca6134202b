"""Episodes on an arm in which something unforeseen happens, with the monitor and without, on the same placements and disturbances:
`python -m experiments.disturbed kinds=[displaced] episodes=50`. The results folder resumes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
from omegaconf import DictConfig
from rich.console import Console

import diffopt
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.evaluation.disturbed import MOMENTS, Disturbance, run
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import mcnemar, wilson
from diffopt.geometry import Pose
from diffopt.tasks import visuomotor
from diffopt.tasks.workcell import Workcell, observation
from experiments.settings import settings

COLUMNS = {
    "kind": "disturbance",
    "pairs": "pairs",
    "without": "solved without %",
    "with": "solved with %",
    "better": "only with",
    "worse": "only without",
    "p": "p (McNemar)",
    "alarmed": "episodes with an alarm",
    "hits": "touches without, with",
}


def is_closed(opening: float, hand: np.ndarray) -> bool:
    return float(hand[0]) < opening


def lines(config: dict[str, Any], rows: list[dict]) -> list[dict[str, Any]]:
    """The table: of every kind, the pairs in which the disturbance came to pass."""
    out = []
    for kind in config["kinds"]:
        pairs = {}
        for row in rows:
            if row["kind"] == kind:
                pairs.setdefault(row["seed"], {})[row["monitored"]] = row
        pairs = [p for p in pairs.values() if len(p) == 2 and (kind == "none" or p[False]["struck"] >= 0)]
        if not pairs:
            continue
        without, within = (np.array([p[m]["success"] for p in pairs]) for m in (False, True))
        test = mcnemar(within, without)
        out.append(
            {
                "kind": kind,
                "pairs": len(pairs),
                "without": str(wilson(int(without.sum()), len(pairs))),
                "with": str(wilson(int(within.sum()), len(pairs))),
                "better": int((within & ~without).sum()),
                "worse": int((without & ~within).sum()),
                "p": float(test.p_value),
                "alarmed": sum(bool(p[True]["alarms"]) for p in pairs),
                "hits": f"{sum(p[False]['hits'] for p in pairs)}, {sum(p[True]['hits'] for p in pairs)}",
            }
        )
    return out


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="disturbed")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    console, output, episodes = Console(), config.pop("output"), config.pop("episodes")
    kinds = config["kinds"]
    policy, task = diffopt.policies.load(config["policy"]), visuomotor.load(config["task"])
    base = Pose(position=jnp.asarray(config["base"], jnp.float32), rotation=jnp.eye(3))
    robot = diffopt.embodiments.load(config["embodiment"]).at(base)
    cell = Workcell(task, robot, size=policy.encoder.images[2])
    controller = diffopt.Controller(
        policy=policy,
        robot=robot,
        levels=config["levels"],
        execute=config["execute"],
        attempts=config["attempts"],
        lag=cell.lag,
    )
    monitor = diffopt.Monitor(holding=partial(is_closed, config["closed"]))
    results = open_results(output, config)
    ready = False
    first = visuomotor.HELD_OUT + config["first"]
    for seed in range(first, first + episodes):
        for kind in kinds:
            for monitored in (False, True):
                key = f"{seed}-{kind}-{'with' if monitored else 'without'}"
                if results.done(key):
                    continue
                if not ready:
                    episode = cell.start(seed)
                    around = ConstraintSet.of(SceneCollision(shapes=task.obstacles(episode.data)))
                    controller.prepare(observation([episode.moment()] * MOMENTS), around)
                    ready = True
                disturbance = Disturbance(kind, seed, config["object"], task.block_region)
                row = asdict(run(cell, controller, seed, disturbance, monitor if monitored else None))
                results.append(key, row | dict(kind=kind, monitored=monitored))
                console.print(f"{key}: {'solved' if row['success'] else 'not solved'} {row['time']} {row['alarms']}")
    summary = lines(config, results.rows())
    results.finish(summary, 0)
    console.print(table(f"{config['task']} on {config['embodiment']}, disturbed", COLUMNS, summary))
    cell.close()


if __name__ == "__main__":
    main()
