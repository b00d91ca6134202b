"""The problems of `experiments.compare`: for each a prior with a known density, instances by dial and number, and an independent judge.

reach       wrist poses that an arm has to reach (`diffopt.evaluation.reach_problems`); instances from configs/compare/instances.json
avoiding    paths of a point across rows of discs, with more discs and a speed limit at test time (`path_problems`)
maze        the same in a maze
arm_paths   motions of an arm's joints among obstacles (`arm_path_problems`); instances from configs/compare/instances-arm_paths.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

import diffopt
from diffopt.constraints import ConstraintSet
from diffopt.evaluation.arm_path_problems import ArmPathProblem, H, arm_path_prior, arm_path_problem, demonstrations
from diffopt.evaluation.path_problems import FIELDS, PathProblem, path_prior, path_problem
from diffopt.evaluation.reach_problems import SHARES, Oracle, ReachProblem, reach_problem
from diffopt.evaluation.wrists import UNITS, Support, wrist_prior
from diffopt.geometry import Pose
from diffopt.policies import Policy

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "compare"
INSTANCES = FOLDER / "instances.json"
ARM_PATHS = FOLDER / "instances-arm_paths.json"
ROBOT = "panda-gripper"
PROBLEMS = ("reach", *FIELDS, "arm_paths")
REPORTED = 576  # reach problems of smaller numbers served for choosing and tuning
APART = 100_000  # from here on problems of paths serve for tuning


class Bench(Protocol):
    """A kind of problem.

    Attributes:
      policy: the prior, not bound. support: which plans are on it.
      needs: what a sampler may need here that it does not elsewhere.
    """

    policy: Policy
    support: Support
    needs: tuple[str, ...]

    def instances(self, dial: str, count: int, *, validation: bool = False) -> list[int]:
        """Numbers of instances; those for validation are never others'."""
        ...

    def constraints(self, dial: str, number: int) -> ConstraintSet: ...

    def frame(self, dial: str, number: int) -> Pose:
        """In which the policy's vectors are given."""
        ...

    def judged(self, dial: str, number: int, plan: Any, aux: dict[str, np.ndarray]) -> bool:
        """The verdict on one plan."""
        ...

    def exact(self, dial: str, number: int, count: int) -> np.ndarray:
        """Exact draws of the posterior, normalised vectors."""
        ...


def bench(problem: str, hold: float) -> Bench:
    """The bench of a problem; a ValueError lists what there is."""
    if problem == "reach":
        return ReachBench(policy=wrist_prior(hold=hold))
    if problem in FIELDS:
        return PathBench(policy=path_prior(problem), name=problem)
    if problem == "arm_paths":
        robot = diffopt.embodiments.load(ROBOT)
        return ArmPathBench(policy=arm_path_prior(robot), robot=robot)
    raise ValueError(f"problem={problem!r}; there are: {', '.join(PROBLEMS)}")


@dataclass(frozen=True, kw_only=True)
class ReachBench:
    """Wrist poses for one arm; see `Bench`."""

    policy: Policy
    made: dict[int, ReachProblem] = field(default_factory=dict)
    judges: dict[int, Any] = field(default_factory=dict)
    needs = ("joints",)

    @cached_property
    def support(self) -> Support:
        return Support.of(self.policy, units=UNITS)

    @cached_property
    def robot(self) -> diffopt.Embodiment:
        return diffopt.embodiments.load(ROBOT)

    def instances(self, dial: str, count: int, *, validation: bool = False) -> list[int]:
        body = json.loads(INSTANCES.read_text(encoding="utf-8"))
        listed = [row[0] for row in body["instances"][dial]]
        part = [number for number in listed if (number < REPORTED) == validation]
        if count > len(part):
            raise ValueError(f"{count} instances of dial {dial} % asked for; there are {len(part)}")
        return part[:count]

    def problem(self, number: int) -> ReachProblem:
        if number not in self.made:
            made = reach_problem(self.robot, number)
            if made is None:
                raise ValueError(f"there is no instance of number {number}; {INSTANCES.name} is of another version")
            self.made[number] = made
        return self.made[number]

    def constraints(self, dial: str, number: int) -> ConstraintSet:
        return self.problem(number).constraints

    def frame(self, dial: str, number: int) -> Pose:
        return self.problem(number).scene.placement

    def judged(self, dial: str, number: int, plan: Any, aux: dict[str, np.ndarray]) -> bool:
        if number not in self.judges:
            self.judges[number] = self.problem(number).judge
        return bool(self.judges[number](plan, aux["joints"]).feasible)

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle.of(self.policy, self.robot)

    def exact(self, dial: str, number: int, count: int) -> np.ndarray:
        return self.oracle.exact(self.policy, self.problem(number), count)


@dataclass(frozen=True, kw_only=True)
class PathBench:
    """Paths in one field; see `Bench`."""

    policy: Policy
    name: str
    made: dict[tuple[str, int], PathProblem] = field(default_factory=dict)
    needs = ()

    @cached_property
    def support(self) -> Support:
        return Support.of(self.policy, 2048)

    @cached_property
    def draws(self) -> np.ndarray:
        return self._draws(99, 16384)

    def _draws(self, seed: int, count: int) -> np.ndarray:
        return np.asarray(self.policy.denoiser.sample(jax.random.key(seed), count))  # type: ignore[attr-defined]

    def instances(self, dial: str, count: int, *, validation: bool = False) -> list[int]:
        return [APART * validation + i for i in range(count)]

    def problem(self, dial: str, number: int) -> PathProblem:
        if (dial, number) not in self.made:
            draws = self.draws if dial == "0.1" else self.draws[:4096]
            self.made[dial, number] = path_problem(self.name, draws, SHARES[dial], number)
        return self.made[dial, number]

    def constraints(self, dial: str, number: int) -> ConstraintSet:
        return self.problem(dial, number).constraints

    def frame(self, dial: str, number: int) -> Pose:
        return Pose.identity()

    def judged(self, dial: str, number: int, plan: Any, aux: dict[str, np.ndarray]) -> bool:
        return bool(self.problem(dial, number).judge(np.asarray(plan.values)[None])[0])

    def exact(self, dial: str, number: int, count: int) -> np.ndarray:
        problem, kept, seed = self.problem(dial, number), [], 1000
        while sum(map(len, kept)) < count:
            x = self._draws(seed, 16384)
            kept.append(x[problem.judge(x)])
            seed += 1
        return np.concatenate(kept)[:count]


@dataclass(frozen=True, kw_only=True)
class ArmPathBench:
    """Motions of an arm over a table; see `Bench`."""

    policy: Policy
    robot: diffopt.Embodiment
    made: dict[int, ArmPathProblem] = field(default_factory=dict)
    needs = ("joints",)

    @cached_property
    def support(self) -> Support:
        return Support.of(self.policy, 2048)

    @cached_property
    def demonstrated(self) -> np.ndarray:
        return demonstrations()

    def draws(self, seed: int, count: int) -> np.ndarray:
        """Exact draws of the prior, normalised vectors."""
        return np.asarray(self.policy.denoiser.sample(jax.random.key(seed), count))  # type: ignore[attr-defined]

    def motions(self, x: np.ndarray) -> np.ndarray:
        """The joints (N, H, 7) of normalised vectors."""
        return np.asarray(self.policy.normalizer.denormalize(x)).reshape(len(x), H, -1)

    def instances(self, dial: str, count: int, *, validation: bool = False) -> list[int]:
        body = json.loads(ARM_PATHS.read_text(encoding="utf-8"))
        part = [row[0] for row in body["instances"][dial] if (row[0] >= APART) == validation]
        if count > len(part):
            raise ValueError(f"{count} instances of dial {dial} % asked for; there are {len(part)}")
        return part[:count]

    def problem(self, number: int) -> ArmPathProblem:
        if number not in self.made:
            self.made[number] = arm_path_problem(self.robot, self.demonstrated, number)
        return self.made[number]

    def constraints(self, dial: str, number: int) -> ConstraintSet:
        return self.problem(number).constraints

    def frame(self, dial: str, number: int) -> Pose:
        return Pose.identity()

    def judged(self, dial: str, number: int, plan: Any, aux: dict[str, np.ndarray]) -> bool:
        return self.problem(number).judge(np.asarray(plan.arm))

    def exact(self, dial: str, number: int, count: int) -> np.ndarray:
        problem, kept, seed = self.problem(number), [], 1000
        while sum(map(len, kept)) < count:
            x = self.draws(seed, 1024)
            kept.append(x[problem.feasible(self.motions(x))])
            seed += 1
        return np.concatenate(kept)[:count]


def stack(trees: Sequence[Any]) -> Any:
    """Pytrees of one structure with a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)
