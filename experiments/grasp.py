"""Sample grasps for an arm, judge them and execute them: `python -m experiments.grasp sampler=ogd scene=medium`.

One run is one sampler on one set of instances; `-m sampler=ddim_snap,rejection,ogd seed=0,1,2` sweeps. Rows, summary, versions, seed and
device go to the output folder, which is resumed if it holds the same configuration and never overwritten.
"""

from __future__ import annotations

import sys
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

import diffopt
from diffopt.evaluation.report import open_results, table
from experiments import grasping
from experiments.settings import settings


def run(config: dict[str, Any], output: str, console: Console) -> list[dict[str, Any]]:
    """All trials of a configuration that are not there yet; returns the summary."""
    policy = diffopt.policies.load(config["policy"]["name"])
    robot = diffopt.embodiments.load(config["embodiment"]["name"])
    options = dict(config["sampler"])
    sampler = diffopt.samplers.load(options.pop("name"), **options)
    grasping.check(config)
    results = open_results(output, config)
    with Progress(console=console) as progress:
        task = progress.add_task(f"{config['sampler']['name']}, {config['trials']} trials", total=config["trials"])
        for first in range(0, config["trials"], config["chunk"]):
            numbers = range(first, min(first + config["chunk"], config["trials"]))
            if not all(results.done(str(i)) for i in numbers):
                problems = grasping.instances(
                    robot, config["trials"], config["seed"], numbers=numbers, **config["scene"]
                )
                cell = grasping.run_cell(
                    policy, problems, sampler, config, numbers, one_by_one=config["one_by_one"], moves=config["moves"]
                )
                results.extend({str(i): row for i, row in zip(numbers, cell.rows, strict=True)})
            progress.advance(task, len(numbers))
    summary = [grasping.summarise(config["sampler"]["name"], results.rows())]
    results.finish(summary, config["seed"])
    console.print(table(f"{config['scene']['difficulty']}, {config['protocol']['name']}", grasping.COLUMNS, summary))
    console.print(f"results: {results.path}")
    return summary


@hydra.main(version_base=None, config_path="../configs", config_name="grasp")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    output, mode = config.pop("output"), config.pop("wandb")
    try:
        summary = run(config, output, Console())
    except (FileExistsError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")
    grasping.log_to_wandb(mode, config, summary)


if __name__ == "__main__":
    main()
