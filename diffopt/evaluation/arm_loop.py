"""A policy in a closed loop on an arm: through `diffopt.Controller`, or followed by differential kinematics.

Where the controller finds nothing feasible, it sends the rest of the last chunk, and the next time goes back to a waypoint (`strict`); or
the best plan that was found is followed as well as the arm can: what is done with samplers that give no verdict. Everything that is
executed is watched: contact with what stands fast, commands beyond the joints' ranges or velocity limits before anything is clipped, the
distance between the tool and where it was sent, and the jerk where two chunks meet.
"""

from __future__ import annotations

import copy
import functools
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from diffopt.chunks import Chunk
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.controller import Controller
from diffopt.geometry import Pose, Shapes, shapes
from diffopt.memory import Memory
from diffopt.paths import ToolPath
from diffopt.policies.observation import Observation
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import sample
from diffopt.tasks.script import PERIOD, Command
from diffopt.tasks.workcell import Episode, Moment, Unreachable, Workcell, observation

LEAST = 9  # obstacles: those of pick-place with three posts
Look = Callable[[Episode], None]
SLACK = 1e-3  # by which rounding may exceed a limit: a share of a velocity, or [rad]


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """How one episode went.

    Attributes:
      seed: of its placements. success: whether the task was solved. reason: why not. time: at its end [s].
      chunks: by source ("planned", "rest", "stop", "rewind", "followed"). broken: planned ones of which the rest did not hold any more.
      hits: periods with contact between the robot and what stands fast; hits_planned: those within chunks reported feasible;
        touched: how many of these chunks there are.
      beyond: periods whose command, before it is clipped, is beyond a joint's range or velocity limit; beyond_planned: those within chunks
        reported feasible.
      tracking: largest distance of the tool from where it was sent, at the ends of periods [m].
      seam_jerk: root mean square over the seams of the largest joint jerk there [rad/s^3].
      changed: median terminal correction of planned chunks [standard deviations].
      latency: of every call of the controller [s].
    """

    seed: int
    success: bool
    reason: str = ""
    time: float = 0.0
    chunks: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    hits: int = 0
    hits_planned: int = 0
    touched: int = 0
    beyond: int = 0
    beyond_planned: int = 0
    tracking: float = 0.0
    seam_jerk: float = 0.0
    changed: float = 0.0
    latency: tuple[float, ...] = ()

    @property
    def clean(self) -> bool:
        """Solved without a contact."""
        return self.success and not self.hits

    @property
    def safe(self) -> bool:
        """Solved without a contact and without a command beyond the limits."""
        return self.clean and not self.beyond


def run(
    cell: Workcell,
    controller: Controller,
    seeds: Sequence[int],
    *,
    constrained: bool = True,
    strict: bool = True,
    moments: int = 2,
    look: Look = lambda episode: None,
) -> list[ArmRun]:
    """One episode for every seed, in their order.

    Args:
      constrained: whether the controller plans; else plain samples of its policy are followed, and nothing is constrained.
      strict: whether only feasible chunks are executed; else the best that was found is followed where none is.
      moments: how many moments the policy observes.
      look: called with every episode when it begins and after each of its periods.
    """
    ask = _constrained(strict) if constrained else _plain(controller.levels, controller.eta)
    return [_episode(cell, controller, seed, ask, moments, look) for seed in seeds]


def surroundings(cell: Workcell, episode: Episode) -> ConstraintSet:
    """The robot clear of the task's obstacles as they stand now; few are filled up to `LEAST`, so that tasks share what is compiled."""
    there = cell.task.obstacles(episode.data)
    if len(there) < LEAST:
        there = there | _away(LEAST - len(there))
    return ConstraintSet.of(SceneCollision(shapes=there))


@functools.cache
def _away(count: int) -> Shapes:
    """Boxes where nothing is."""
    box = shapes.box((0.01, 0.01, 0.01), (0.0, 0.0, -9.0))
    return functools.reduce(operator.or_, [box] * count)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What to execute: joints [rad] and openings [m] per knot, or, `source` being "followed", the tool poses of `plan`."""

    source: str
    latency: float
    plan: ToolPath
    chunk: Chunk | None = None
    around: ConstraintSet | None = None
    joints: np.ndarray | None = None
    opening: np.ndarray | None = None
    changed: float = 0.0
    memory: Memory | None = None

    def sent(self, execute: int) -> int:
        """How many knots are executed, where `execute` of a chunk are: a way back is executed whole."""
        if self.joints is None:
            return execute
        return len(self.joints) if self.source == "rewind" else min(execute, len(self.joints))

    def holds(self, controller: Controller, k: int, memory: Memory, episode: Episode) -> bool:
        """Whether the rest of a chunk that was reported feasible still is after knot k."""
        if self.chunk is None or self.source != "planned":
            return True
        fingers = np.array([episode.opening], np.float32)
        return controller.holds(self.chunk, k, memory, episode.posture, self.around, fingers)

    def broken_off(self, controller: Controller, memory: Memory, sent: int) -> _Answer:
        """The same with only the first knots `sent`, after `memory`."""
        assert self.chunk is not None
        return replace(self, memory=controller.after(self.chunk, memory, sent))


Ask = Callable[[Controller, Observation, Memory, Workcell, Episode], _Answer]


def _constrained(strict: bool) -> Ask:
    def ask(controller: Controller, view: Observation, memory: Memory, cell: Workcell, episode: Episode) -> _Answer:
        around, fingers, posture = surroundings(cell, episode), view.joints[-1], episode.posture
        chunk, after = controller.plan(view, memory, around, fingers, posture)
        plan, latency = chunk.plan, chunk.latency
        if chunk.source != "planned" and not strict:
            return _Answer(source="followed", latency=latency, plan=plan)
        if controller.stuck(after):
            chunk, after = controller.rewind(memory, more=around, hand=fingers, joints=posture)
            latency += chunk.latency
        return _Answer(
            source=chunk.source,
            latency=latency,
            plan=plan,
            chunk=chunk,
            around=around,
            joints=chunk.joints,
            opening=chunk.hand[:, 0],
            changed=chunk.changed,
            memory=after,
        )

    return ask


@functools.cache
def _plain(levels: int, eta: float) -> Ask:
    @jax.jit
    def draw(policy, view, marks):
        key = jax.random.fold_in(jax.random.key(marks[0]), marks[1])
        plans = sample(policy.given(view), n=1, key=key, sampler="ddim", levels=levels, eta=eta).plans
        return jax.tree.map(lambda leaf: leaf[0], plans)

    def ask(controller: Controller, view: Observation, memory: Memory, cell: Workcell, episode: Episode) -> _Answer:
        began = time.perf_counter()
        plan = jax.device_get(draw(controller.policy, view, np.array([controller.seed, memory.calls], np.uint32)))
        return _Answer(source="followed", latency=time.perf_counter() - began, plan=plan)

    return ask


def _episode(cell: Workcell, controller: Controller, seed: int, ask: Ask, moments: int, look: Look) -> ArmRun:
    try:
        episode = cell.start(seed)
    except Unreachable:
        return ArmRun(seed=seed, success=False, reason="unreachable start")
    controller = replace(controller, seed=seed, lag=cell.lag)
    memory = controller.start(episode.joints)
    seen = [_frozen(episode)] * moments
    watch = _Watch(robot=controller.robot)
    look(episode)
    while not episode.over:
        answer = ask(controller, observation([moment() for moment in seen]), memory, cell, episode)
        watch.asked(answer)
        count = answer.sent(controller.execute)
        for k in range(count):
            watch.move(episode, answer, k)
            look(episode)
            if episode.over:
                break
            if answer.chunk is not None or k >= count - moments:  # what may be the last knots
                seen = [*seen[1:], _frozen(episode)]
            if k + 1 < count and not answer.holds(controller, k, memory, episode):
                watch.broken += 1
                answer = answer.broken_off(controller, memory, k + 1)
                break
        memory = answer.memory or _gone(memory, watch, answer)
    return watch.run(seed, episode)


def _frozen(episode: Episode) -> Callable[[], Moment]:
    """What is seen now, rendered when it is asked for."""
    return functools.cache(replace(episode, data=copy.copy(episode.data)).moment)


def _gone(memory: Memory, watch: _Watch, answer: _Answer) -> Memory:
    """The memory after the arm has gone its own way: nothing is left of the last chunk."""
    sent = np.asarray(watch.commands[watch.seams[-1] :], np.float32)
    hand = np.asarray(answer.plan.joints, np.float32)
    return replace(
        memory,
        past=np.concatenate([memory.past, sent])[-3:],
        hand=hand[-1],
        chunk=None,
        calls=memory.calls + 1,
        trail=np.concatenate([memory.trail, sent]),
        grips=np.concatenate([memory.grips, hand[: len(sent)]]),
    )


@dataclass(kw_only=True)
class _Watch:
    """What is recorded of an episode."""

    robot: Embodiment
    commands: list[np.ndarray] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    broken: int = 0
    seams: list[int] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    hits_planned: int = 0
    touched: int = 0
    beyond: int = 0
    beyond_planned: int = 0
    tracking: float = 0.0
    _touching: bool = False

    def asked(self, answer: _Answer) -> None:
        self._touching = False
        self.latency.append(round(answer.latency, 5))
        self.seams.append(len(self.commands))
        self.sources[answer.source] = self.sources.get(answer.source, 0) + 1
        if answer.source == "planned":
            self.changed.append(answer.changed)

    def move(self, episode: Episode, answer: _Answer, k: int) -> None:
        """Execute knot k, and look at what was commanded before the workcell cuts it to what the arm may do, and at what happens."""
        hits, before = episode.hits, np.asarray(episode.joints)
        if answer.joints is None or answer.opening is None:
            pose = Pose(position=answer.plan.position[k].astype(float), rotation=answer.plan.rotation[k].astype(float))
            episode.move(Command(pose=pose, opening=float(answer.plan.joints[k, 0])))
        else:
            episode.move_joints(answer.joints[k], float(answer.opening[k]))
        assert episode.wanted is not None
        planned, hit, beyond = answer.source == "planned", episode.hits > hits, self._beyond(before, episode.wanted)
        self.beyond += beyond
        self.beyond_planned += planned and beyond
        self.hits_planned += planned and hit
        self.touched += planned and hit and not self._touching
        self._touching |= hit
        self.commands.append(np.asarray(episode.joints))
        sent = episode.tool_at(self.commands[-1])
        self.tracking = max(self.tracking, float(np.linalg.norm(sent.position - episode.tool.position)))

    def _beyond(self, before: np.ndarray, wanted: np.ndarray) -> bool:
        """Whether a command leaves the joints' ranges, or is further from the last one than their velocity limits allow."""
        robot = self.robot
        fast = np.abs(wanted - before) / PERIOD > np.asarray(robot.velocity) * (1 + SLACK)
        out = np.maximum(np.asarray(robot.lower) - wanted, wanted - np.asarray(robot.upper)) > SLACK
        return bool(np.any(fast | out))

    def run(self, seed: int, episode: Episode) -> ArmRun:
        q = np.asarray(self.commands)
        jerk = np.abs(np.diff(q, 3, axis=0)).max(1) / PERIOD**3 if len(q) > 3 else np.zeros(0)
        at = [s for s in self.seams if 2 <= s <= len(jerk)]
        reason = "" if episode.success else "diverged" if episode.diverged else "not in time"
        return ArmRun(
            seed=seed,
            success=episode.success,
            reason=reason,
            time=round(episode.time, 2),
            chunks=self.sources,
            broken=self.broken,
            hits=episode.hits,
            hits_planned=self.hits_planned,
            touched=self.touched,
            beyond=self.beyond,
            beyond_planned=self.beyond_planned,
            tracking=round(self.tracking, 5),
            seam_jerk=round(float(np.sqrt(np.mean([jerk[s - 2 : s + 1].max() ** 2 for s in at]))) if at else 0.0, 2),
            changed=round(float(np.median(self.changed)), 4) if self.changed else 0.0,
            latency=tuple(self.latency),
        )
