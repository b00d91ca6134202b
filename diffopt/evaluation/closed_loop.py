"""A visuomotor policy in a closed loop: look, propose a chunk, execute its beginning, look again; many episodes side by side.

Whoever proposes is a function of observations and seeds alone, so that all ways of sampling are run by the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from diffopt.geometry import Pose
from diffopt.paths import ToolPath
from diffopt.policies.observation import Observation
from diffopt.tasks.script import Command
from diffopt.tasks.workcell import Episode, Moment, Unreachable, Workcell, observation

Propose = Callable[[Observation, Int[np.ndarray, "B"]], ToolPath]  # B observations, B seeds -> B chunks, in the world


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one episode went.

    Attributes:
      seed: of its placements. success: whether the task was solved. reason: why not.
      time: at its end [s]. replans: chunks that were proposed.
      missed: largest distance between a commanded tool pose and what the arm could be told [m]; a radian counts 0.1 m.
      held_back: largest cut of a joint command by the velocity limits [rad].
    """

    seed: int
    success: bool
    reason: str = ""
    time: float = 0.0
    replans: int = 0
    missed: float = 0.0
    held_back: float = 0.0


def run(
    cell: Workcell,
    propose: Propose,
    seeds: Sequence[int],
    *,
    moments: int = 2,
    execute: int = 8,
    batch: int = 20,
    progress: Callable[[Run], None] = lambda run: None,
    look: Callable[[Episode], None] = lambda episode: None,
) -> list[Run]:
    """One episode for every seed, in their order.

    Args:
      moments: how many moments the policy observes.
      execute: how many of a chunk's commands are executed before the next.
      batch: how many episodes are proposed for at once; always as many, so that the proposals compile once.
      progress: called with every episode that ends. look: with every episode when it begins and after each of its periods.
    """
    runs: dict[int, Run] = {}
    for first in range(0, len(seeds), batch):
        group = [_Seat.at(cell, seed, look) for seed in seeds[first : first + batch]]
        while any(seat.running for seat in group):
            views = [observation(seat.moments[-moments:]) for seat in group if seat.episode is not None]
            views += [views[0]] * (batch - len(views))  # what is proposed for these is not looked at
            marks = [seat.mark() for seat in group if seat.episode is not None]
            marks += [0] * (batch - len(marks))
            chunks = jax.device_get(propose(jax.tree.map(lambda *x: np.stack(x), *views), np.array(marks)))
            present = [seat for seat in group if seat.episode is not None]
            for i, seat in enumerate(present):
                if seat.running:
                    seat.follow(jax.tree.map(lambda x, i=i: x[i], chunks), execute, moments)
        for seat in group:
            runs[seat.seed] = seat.run()
            progress(runs[seat.seed])
    return [runs[seed] for seed in seeds]


@dataclass(kw_only=True)
class _Seat:
    """An episode in the batch; `episode` is None where it cannot begin."""

    seed: int
    episode: Episode | None
    moments: list[Moment]
    look: Callable[[Episode], None]
    replans: int = 0

    @staticmethod
    def at(cell: Workcell, seed: int, look: Callable[[Episode], None]) -> _Seat:
        try:
            episode = cell.start(seed)
        except Unreachable:
            return _Seat(seed=seed, episode=None, moments=[], look=look)
        moment = episode.moment()
        look(episode)
        return _Seat(seed=seed, episode=episode, moments=[moment, moment], look=look)

    @property
    def running(self) -> bool:
        return self.episode is not None and not self.episode.over

    def mark(self) -> int:
        """A seed of its own for this chunk."""
        return (self.seed * 1000 + self.replans) % 2**31

    def follow(self, chunk: ToolPath, execute: int, moments: int) -> None:
        assert self.episode is not None
        self.replans += 1
        for k in range(execute):
            pose = Pose(position=chunk.position[k].astype(float), rotation=chunk.rotation[k].astype(float))
            self.episode.move(Command(pose=pose, opening=float(chunk.joints[k, 0])))
            self.look(self.episode)
            if self.episode.over:
                return
            if k >= execute - moments:
                self.moments = [*self.moments, self.episode.moment()][-moments:]

    def run(self) -> Run:
        episode = self.episode
        if episode is None:
            return Run(seed=self.seed, success=False, reason="unreachable start")
        reason = "" if episode.success else "diverged" if episode.diverged else "not in time"
        return Run(
            seed=self.seed,
            success=episode.success,
            reason=reason,
            time=round(episode.time, 2),
            replans=self.replans,
            missed=round(episode.missed, 5),
            held_back=round(episode.held_back, 5),
        )
