"""Episodes on an arm played again in MJX, with the commands that C MuJoCo saw: `python -m experiments.engines episodes=4`."""

from __future__ import annotations

from dataclasses import asdict, replace

import hydra
import numpy as np
from omegaconf import DictConfig
from rich.console import Console

from diffopt.evaluation.arm_loop import run
from diffopt.evaluation.replay import Recording, drift, in_c, in_mjx
from diffopt.evaluation.report import provenance
from diffopt.tasks import visuomotor
from experiments.arms import begin, stand, strict_of
from experiments.settings import settings

FREE = {"pick-place": "block", "peg": "peg", "conveyor-catch": "block"}  # joint of the object


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="arms")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    console = Console()
    cell, controller = begin(config)
    first = visuomotor.HELD_OUT + config["first"]
    recordings, done = {}, {}
    for seed in range(first, first + config["episodes"]):
        if not stand(cell, config, seed):
            continue
        recordings[seed] = Recording()
        placed = replace(controller, robot=cell.robot)
        (done[seed],) = run(
            cell,
            placed,
            [seed],
            constrained=config["sampler"] != "servo",
            strict=strict_of(config),
            look=recordings[seed].look,
        )
        console.print(f"{seed}: {'solved' if done[seed].success else done[seed].reason} in the loop")
    rows = []
    for (seed, recording), course in zip(recordings.items(), in_mjx(cell, list(recordings.values())), strict=True):
        found = drift(cell, recording.start, FREE[config["task"]], in_c(cell, recording), course)
        rows.append(dict(seed=seed, in_the_loop=done[seed].success, **asdict(found)))
        console.print(rows[-1])
    cell.close()
    agree = sum(r["solved"][0] == r["solved"][1] for r in rows)
    console.print(f"{agree} of {len(rows)} agree on success; ", provenance(config["seed"]))
    for name in ("joints", "before", "carried"):
        console.print(f"{name}: median {np.median([r[name] for r in rows]):.2g}, most {max(r[name] for r in rows):.2g}")


if __name__ == "__main__":
    main()
