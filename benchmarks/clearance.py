"""Plans that find nothing, drawn again with more clearance: `python -m benchmarks.clearance [--embodiment NAME] [--output FILE]`.

Episodes of `pick-place` among three posts, bases all around, on placements that serve for choosing (5000 on); every attempt at a chunk aims
at the first of `CLEARANCES`. Where none of three is feasible, two more are drawn with each of them, and judged by the same constraints. An
episode gives at most `MOST` such plans, since a robot that is stuck asks again and again.

    at knots     share of draws that are feasible at the knots
    found     between them, too
    by episode     the mean of the episodes' shares of these
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hydra import compose, initialize_config_dir
from rich.console import Console

import diffopt
from diffopt.chunks import clear, draw
from diffopt.constraints import ConstraintSet
from diffopt.evaluation.arm_loop import run
from diffopt.evaluation.report import provenance, table
from diffopt.memory import Memory
from diffopt.sample import resolve
from diffopt.tasks import visuomotor
from experiments.arms import begin, prepare, stand
from experiments.settings import settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "visuomotor"
FIRST, MOST, DRAWS = 5000, 8, 2
CLEARANCES = (0.005, 0.01, 0.0125, 0.015, 0.02, 0.03, 0.04)
COLUMNS = dict(
    clearance="clearance [m]",
    plans="plans",
    at_knots="at knots",
    found="found",
    episodes="episodes",
    by_episode="by episode",
)


@dataclass(frozen=True, kw_only=True)
class Trying(diffopt.Controller):
    """A controller that writes down what is found with other clearances, where it finds nothing."""

    found: list[list[list[tuple[bool, bool]]]] = field(default_factory=list)

    def plan(
        self,
        observation: Any,
        memory: Memory,
        more: ConstraintSet | None = None,
        hand: np.ndarray | None = None,
        joints: np.ndarray | None = None,
    ) -> tuple[diffopt.Chunk, Memory]:
        chunk, after = super().plan(observation, memory, more, hand, joints)
        if chunk.source != "planned" and len(self.found) < MOST:
            setting = self._setting(memory, more, hand, joints)
            self.found.append(
                [[self._once(observation, setting, memory, c, k) for k in range(DRAWS)] for c in CLEARANCES]
            )
        return chunk, after

    def _once(self, observation: Any, setting: Any, memory: Memory, clearance: float, number: int) -> tuple[bool, bool]:
        marks = np.array([self.seed, memory.calls, self.attempts + number], np.uint32)
        aim = replace(setting, clearance=clearance)
        drawn, _ = draw(self.policy, observation, aim, marks, resolve(self.sampler), self.eta, self.levels, 1)
        there, motion = bool(drawn.feasible[0]), jax.device_get((drawn.aux["joints"][0], drawn.plans.joints[0]))
        return there, there and clear(self.policy, setting, *motion, self.between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embodiment", default="panda-gripper")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        asked = ["placement=around", "posts=3", f"embodiment={options.embodiment}"]
        config = settings(compose("arms", overrides=asked))
    cell, controller = begin(config)
    ready, found = False, []
    for seed in range(visuomotor.HELD_OUT + FIRST, visuomotor.HELD_OUT + FIRST + options.episodes):
        if not stand(cell, config, seed):
            continue
        trying = Trying(**(vars(controller) | dict(robot=cell.robot, clearance=CLEARANCES[0])))
        ready = ready or prepare(cell, replace(trying, found=[]), seed)
        trying.found.clear()
        run(cell, trying, [seed])
        found += [np.array(trying.found)] if trying.found else []
    if not found:
        sys.exit("every plan found something")
    plans = np.concatenate(found)
    by_episode = np.array([each[..., 1].mean(axis=(0, 2)) for each in found])
    rows = [
        dict(
            clearance=c,
            plans=len(plans),
            at_knots=round(float(plans[:, i, :, 0].mean()), 3),
            found=round(float(plans[:, i, :, 1].mean()), 3),
            episodes=len(found),
            by_episode=round(float(by_episode[:, i].mean()), 3),
        )
        for i, c in enumerate(CLEARANCES)
    ]
    Console(width=120).print(table(f"{options.embodiment}: plans that found nothing, drawn again", COLUMNS, rows))
    if options.output:
        body = dict(provenance=provenance(0), settings=vars(options) | dict(output=None), rows=rows)
        options.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
