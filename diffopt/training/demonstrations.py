"""Demonstrations of visuomotor tasks by a floating gripper: scripted, disturbed while they run, kept where they succeed.

The commands that are written down are the script's own; those that are executed have small noise and now and then a push on top, from
which the script then comes back (Laskey et al. 2017, arXiv 1703.09327). So a policy that learns them knows what to do off the path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from diffopt.geometry import Pose
from diffopt.tasks.gripper import pinching, toward, turn
from diffopt.tasks.script import Command, Progress, advance
from diffopt.tasks.workcell import Episode, Workcell


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Disturbances of the executed commands.

    Attributes:
      jitter, twist: of every command [m], [rad], one standard deviation.
      push: chance of a push beginning in a period. reach: its largest size per period [m]; lasting: number of periods.
      astray: share of the demonstrations that begin as if a grasp had been missed: the gripper closed, half of them low, beside the first
        landmark, the others on the way from there to the last landmark, empty.
    """

    jitter: float = 0.001
    twist: float = 0.01
    push: float = 0.06
    reach: float = 0.012
    lasting: int = 3
    astray: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Moments of E episodes, one after the other, and the command given at each.

    Attributes:
      images, position, rotation, joints: what was observed; as in `diffopt.policies.observation.Observation`.
      goal_position, goal_rotation, goal_joints: T_world_tool and opening commanded for the end of the period.
      landmarks: of the task, in the world [m].
      episode: number of the episode; seed: of its placements.
    """

    images: UInt8[np.ndarray, "N C h w 3"]
    position: Float[np.ndarray, "N 3"]
    rotation: Float[np.ndarray, "N 3 3"]
    joints: Float[np.ndarray, "N 1"]
    goal_position: Float[np.ndarray, "N 3"]
    goal_rotation: Float[np.ndarray, "N 3 3"]
    goal_joints: Float[np.ndarray, "N 1"]
    landmarks: Float[np.ndarray, "N K 3"]
    episode: Int[np.ndarray, "N"]
    seed: Int[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def episodes(self) -> int:
        return len(np.unique(self.episode))


def demonstrate(cell: Workcell, seed: int, noise: Noise) -> Demonstrations | None:
    """One demonstration; None where it does not succeed."""
    episode = cell.start(seed)
    script = cell.task.script(episode.data, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 2])
    rows, progress, push, left = [], Progress(), np.zeros(3), 0
    if rng.uniform() < noise.astray:
        _go_astray(episode, rng)
    while episode.time < cell.task.time_limit and not episode.diverged:
        step = advance(script, progress, episode.command, episode.data)
        if step is None:
            break
        command, progress = step
        moment = episode.moment()
        seen = (moment.images, moment.tool.position, moment.tool.rotation, [moment.opening])
        told = (command.pose.position, command.pose.rotation, [command.opening])
        rows.append((*seen, *told, cell.task.landmarks(episode.data)))
        if left == 0 and rng.uniform() < noise.push:
            push, left = noise.reach * rng.uniform(-1.0, 1.0, 3), noise.lasting
        shift = noise.jitter * rng.normal(size=3) + push * (left > 0)
        left = max(0, left - 1)
        R = turn(noise.twist * rng.normal(size=3)) @ command.pose.rotation
        pose = Pose(position=command.pose.position + shift, rotation=R)
        episode.move(Command(pose=pose, opening=command.opening))
    if not episode.success:
        return None
    images, *numbers = (np.stack(column) for column in zip(*rows, strict=True))
    names = [f.name for f in fields(Demonstrations)][1:8]
    same = np.zeros(len(rows), np.int32)
    return Demonstrations(
        images=images,
        **{name: np.asarray(value, np.float32) for name, value in zip(names, numbers, strict=True)},
        episode=same,
        seed=same + seed,
    )


def _go_astray(episode: Episode, rng: np.random.Generator) -> None:
    """Brings the gripper, closed, to 3 to 7 cm beside the first landmark and up to 7 cm above it, or to 8 to 25 cm above a point that is
    anywhere between the first landmark and the last, or up to 7 cm beside it."""
    marks = episode.cell.task.landmarks(episode.data)
    angle, carried = rng.uniform(0, 2 * np.pi), rng.uniform() < 0.5
    away, height, share = (0.0, 0.07), (0.08, 0.25), rng.uniform()
    if not carried:
        away, height, share = (0.03, 0.07), (0.0, 0.07), 0.0
    r = rng.uniform(*away)
    point = (
        marks[0]
        + share * (marks[-1] - marks[0])
        + np.array([r * np.cos(angle), r * np.sin(angle), rng.uniform(*height)])
    )
    place = pinching(point, episode.tool.rotation)
    above = Pose(position=place.position + np.array([0.0, 0.0, 0.1]), rotation=place.rotation)
    for goal in (above, place):
        while np.linalg.norm(goal.position - episode.command.pose.position) > 1e-6:
            episode.move(Command(pose=toward(episode.command.pose, goal, 0.05, 1.0), opening=0.0))
    for _ in range(int(rng.integers(1, 6))):
        episode.move(Command(pose=place, opening=0.0))


def make_shards(
    folder: Path,
    cell: Workcell,
    count: int,
    per_shard: int,
    noise: Noise,
    report: Callable[[int, int, int], None] = lambda made, tried, moments: None,
) -> None:
    """Collects `count` successful demonstrations in files of `per_shard`; files that exist are kept, seeds are never used twice.

    Args:
      report: called with demonstrations made, seeds tried, and moments, after every file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = seed = moments = 0
    for number in range((count + per_shard - 1) // per_shard):
        file = folder / f"{number:03d}.npz"
        if file.exists():
            with np.load(file) as saved:
                made, seed = made + int(saved["episodes"]), int(saved["next_seed"])
                moments += len(saved["episode"])
            continue
        shard: list[Demonstrations] = []
        while len(shard) < min(per_shard, count - number * per_shard):
            demonstration = demonstrate(cell, seed, noise)
            seed += 1
            if demonstration is not None:
                shard.append(demonstration)
        joined = join(shard)
        arrays = {f.name: getattr(joined, f.name) for f in fields(Demonstrations)}
        temporary = file.with_name(".shard.tmp.npz")
        np.savez(temporary, **arrays, episodes=len(shard), next_seed=seed)
        temporary.rename(file)
        made, moments = made + len(shard), moments + len(joined)
        report(made, seed, moments)


def load(folder: Path) -> Demonstrations:
    """All demonstrations of a folder."""
    files = sorted(Path(folder).glob("[0-9]*.npz"))
    if not files:
        raise FileNotFoundError(f"no demonstrations in {folder}; make them with python -m experiments.demonstrate")
    shards = []
    for file in files:
        with np.load(file) as saved:
            shards.append(Demonstrations(**{f.name: saved[f.name] for f in fields(Demonstrations)}))
    return join(shards)


def join(parts: list[Demonstrations]) -> Demonstrations:
    """Several sets as one, the episodes numbered anew."""
    arrays = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Demonstrations)}
    new, count = [], 0
    for part in parts:
        own = np.unique(part.episode, return_inverse=True)[1]
        new.append(own + count)
        count += int(own.max()) + 1
    return Demonstrations(**(arrays | dict(episode=np.concatenate(new).astype(np.int32))))
