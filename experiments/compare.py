"""Every sampler on problems whose prior has a known density: `python -m experiments.compare problem=reach method=all dial=all`.

The feasible share of the prior (50, 10, 1, 0.1 %) is a dial, and every instance is known to be solvable: an oracle has found draws of the
prior that are feasible. So the attainable bound is 100 %. A cell is one method at one dial: success by an
independent judge, with intervals, and tested against the default on the same trials. With `budget=one` every sampler does what it does when
it is asked for one plan; the default draws again what failed by its own account. With `budget=matched` all do that, by the same rule
(`diffopt.attempts`), until the clock has run out that the default needed for the cell. `distance=true` measures how far plans are from
the exact posterior.
Rows go to the output folder, which is resumed if it holds the same configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console

from experiments.comparison import arm_path_screen, distances, reach_screen, success, timing, tuning
from experiments.comparison.benches import PROBLEMS
from experiments.settings import settings


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that make no sense, before any work."""
    for name in ("instances", "keys", "chunk"):
        if not (isinstance(config[name], int) and config[name] >= 1):
            raise ValueError(f"{name}={config[name]!r}; expected a whole number of at least 1")
    for name, there in (("budget", ("one", "matched")), ("do", ("compare", "tune", "time", "screen"))):
        if config[name] not in there:
            raise ValueError(f"{name}={config[name]!r}; there are: {', '.join(there)}")
    if config["problem"] not in PROBLEMS:
        raise ValueError(f"problem={config['problem']!r}; there are: {', '.join(PROBLEMS)}")
    if config["default"] not in config["methods"]:
        raise ValueError(f"default={config['default']!r}; there are: {', '.join(config['methods'])}")


@hydra.main(version_base=None, config_path="../configs/compare", config_name="compare")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    output = config.pop("output")
    console = Console(width=170)
    try:
        check(config)
        if config["do"] == "tune":
            tuning.tune(config, console)
        elif config["do"] == "time":
            timing.measure(config, console)
        elif config["do"] == "screen":
            screens = {"reach": reach_screen.screen, "arm_paths": arm_path_screen.screen}
            if config["problem"] not in screens:
                raise ValueError(
                    f"the instances of {config['problem']!r} are not screened; of these are: {', '.join(screens)}"
                )
            screens[config["problem"]](config["instances"], console)
        else:
            (distances.measure if config["distance"] else success.measure)(config, output, console)
    except (FileExistsError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")


if __name__ == "__main__":
    main()
