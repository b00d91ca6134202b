"""A policy in a closed loop on an arm: through `diffopt.Controller`, or followed by differential kinematics.

Where the controller finds nothing feasible, it sends the rest of the last chunk or stops (`strict`), or the best plan that was found is
followed as well as the arm can: what is done with samplers that give no verdict. Everything that is executed is watched: contact with what
stands fast, velocity limits, the distance between the tool and where it was sent, and the jerk where two chunks meet.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.controller import Chunk, Controller, Memory
from diffopt.geometry import Pose
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import sample
from diffopt.tasks.script import PERIOD, Command
from diffopt.tasks.workcell import Episode, Unreachable, Workcell, observation

SLACK = 1e-3  # share of a limit that rounding may exceed


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """How one episode went.

    Attributes:
      seed: of its placements. success: whether the task was solved. reason: why not. time: at its end [s].
      chunks: by source ("planned", "rest", "stop", "followed").
      hits: periods with contact between the robot and what stands fast; hits_planned: those within chunks reported feasible.
      too_fast: periods of planned chunks in which a joint was commanded beyond its velocity limit.
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
    hits: int = 0
    hits_planned: int = 0
    too_fast: int = 0
    tracking: float = 0.0
    seam_jerk: float = 0.0
    changed: float = 0.0
    latency: tuple[float, ...] = ()


def run(
    cell: Workcell,
    controller: Controller,
    seeds: Sequence[int],
    *,
    strict: bool = True,
    moments: int = 2,
    progress: Callable[[ArmRun], None] = lambda run: None,
) -> list[ArmRun]:
    """One episode for every seed, in their order.

    Args:
      strict: whether only feasible chunks are executed.
      moments: how many moments the policy observes.
    """
    out = []
    for seed in seeds:
        out.append(_episode(cell, controller, seed, strict, moments))
        progress(out[-1])
    return out


def follow(cell: Workcell, controller: Controller, seeds: Sequence[int], *, moments: int = 2) -> list[ArmRun]:
    """The same with plain samples of the controller's policy, followed by differential kinematics: nothing is constrained."""
    plain = _plain(controller.levels, controller.eta)
    out = []
    for seed in seeds:
        try:
            episode = cell.start(seed)
        except Unreachable:
            out.append(ArmRun(seed=seed, success=False, reason="unreachable start"))
            continue
        seen = [episode.moment()] * moments
        watch, calls = _Watch(robot=controller.robot), 0
        while not episode.over:
            began = time.perf_counter()
            plan = jax.device_get(
                plain(controller.policy, observation(seen[-moments:]), np.array([seed, calls], np.uint32))
            )
            watch.latency.append(round(time.perf_counter() - began, 5))
            watch.seams.append(len(watch.commands))
            calls += 1
            for k in range(controller.execute):
                pose = Pose(position=plan.position[k].astype(float), rotation=plan.rotation[k].astype(float))
                hits = episode.hits
                episode.move(Command(pose=pose, opening=float(plan.joints[k, 0])))
                watch.moved(episode, "followed", episode.hits > hits)
                if episode.over:
                    break
                if k >= controller.execute - moments:
                    seen = [*seen, episode.moment()][-moments:]
            watch.sources["followed"] = calls
        out.append(watch.run(seed, episode))
    return out


@functools.cache
def _plain(levels: int, eta: float) -> Callable:
    @jax.jit
    def draw(policy, view, marks):
        key = jax.random.fold_in(jax.random.key(marks[0]), marks[1])
        plans = sample(policy.given(view), n=1, key=key, sampler="ddim", levels=levels, eta=eta).plans
        return jax.tree.map(lambda leaf: leaf[0], plans)

    return draw


def surroundings(cell: Workcell, episode: Episode) -> ConstraintSet:
    """The robot clear of the task's obstacles as they stand now."""
    return ConstraintSet.of(SceneCollision(shapes=cell.task.obstacles(episode.data)))


def _episode(cell: Workcell, controller: Controller, seed: int, strict: bool, moments: int) -> ArmRun:
    try:
        episode = cell.start(seed)
    except Unreachable:
        return ArmRun(seed=seed, success=False, reason="unreachable start")
    controller = replace(controller, seed=seed)
    memory = controller.start(episode.joints)
    seen = [episode.moment()] * moments
    watch = _Watch(robot=controller.robot)
    while not episode.over:
        chunk, after = controller.plan(observation(seen[-moments:]), memory, surroundings(cell, episode))
        watch.asked(chunk)
        follow = not strict and chunk.source != "planned"
        source = "followed" if follow else chunk.source
        for k in range(controller.execute):
            hits = episode.hits
            if follow:
                pose = Pose(
                    position=chunk.plan.position[k].astype(float), rotation=chunk.plan.rotation[k].astype(float)
                )
                episode.move(Command(pose=pose, opening=float(chunk.plan.joints[k, 0])))
            else:
                episode.move_joints(chunk.joints[k], float(chunk.hand[k, 0]))
            watch.moved(episode, source, episode.hits > hits)
            if episode.over:
                break
            if k >= controller.execute - moments:
                seen = [*seen, episode.moment()][-moments:]
        watch.sources[source] = watch.sources.get(source, 0) + 1
        memory = _followed(memory, watch, chunk) if follow else after
    return watch.run(seed, episode)


def _followed(memory: Memory, watch: _Watch, chunk: Chunk) -> Memory:
    """The memory after the arm has gone its own way: nothing is left of the last chunk."""
    past = np.concatenate([memory.past, np.asarray(watch.commands, np.float32)])[-3:]
    return Memory(past=past, hand=chunk.hand[-1], chunk=None, calls=memory.calls + 1)


@jax.jit
def _tool(robot: Embodiment, joints) -> Pose:
    return robot.tool_pose(joints)


@dataclass(kw_only=True)
class _Watch:
    """What is recorded of an episode."""

    robot: Embodiment
    commands: list[np.ndarray] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    seams: list[int] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    hits_planned: int = 0
    too_fast: int = 0
    tracking: float = 0.0

    def asked(self, chunk: Chunk) -> None:
        self.latency.append(round(chunk.latency, 5))
        self.seams.append(len(self.commands))
        if chunk.source == "planned":
            self.changed.append(chunk.changed)

    def moved(self, episode: Episode, source: str, hit: bool) -> None:
        joints = np.asarray(episode.joints)
        if source == "planned":
            self.hits_planned += hit
            if self.commands:
                step = np.abs(joints - self.commands[-1]) / PERIOD
                self.too_fast += bool(np.any(step > np.asarray(self.robot.velocity) * (1 + SLACK)))
        self.commands.append(joints)
        sent = _tool(self.robot, joints)
        self.tracking = max(self.tracking, float(np.linalg.norm(np.asarray(sent.position) - episode.tool.position)))

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
            hits=episode.hits,
            hits_planned=self.hits_planned,
            too_fast=self.too_fast,
            tracking=round(self.tracking, 5),
            seam_jerk=round(float(np.sqrt(np.mean([jerk[s - 2 : s + 1].max() ** 2 for s in at]))) if at else 0.0, 2),
            changed=round(float(np.median(self.changed)), 4) if self.changed else 0.0,
            latency=tuple(self.latency),
        )
