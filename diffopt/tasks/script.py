"""Scripted experts: waypoints of the tool that are visited one after the other, from wherever the tool is.

Each control period the command moves from the last one towards the waypoint, with limited speed and acceleration, and slows down
in front of it. The next waypoint's turn comes when this one is reached and its dwell is over. Because the command starts from
the last *executed* one, a script corrects disturbances of what it commanded (Laskey et al. 2017, arXiv 1703.09327).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diffopt.geometry import Pose
from diffopt.tasks.gripper import rotvec, toward

if TYPE_CHECKING:
    import mujoco

PERIOD = 0.1  # [s] between two commands
_ACCELERATION = 1.0  # [m/s^2]
_SLOWING = 0.5  # share of the remaining way that is gone in one period at most


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a floating gripper is told: T_world_tool and the opening [m], to be reached at the end of the period."""

    pose: Pose
    opening: float


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """Where the tool has to go.

    Attributes:
      target: T_world_tool, given the state of the scene.
      opening: commanded meanwhile [m].
      speed: most it moves [m/s]; a radian counts `lever` metres.
      dwell: periods to stay once there.
      tolerance: distance at which it counts as reached [m].
      flow: velocity of a target that moves [m/s]; the target is then where it will be at the end of the period.
      check: what has to be so on the way there, for example that something is held; or else the script goes on with waypoint `back`.
    """

    target: Callable[[mujoco.MjData], Pose]
    opening: float
    speed: float = 0.35
    lever: float = 0.2
    dwell: int = 0
    tolerance: float = 0.003
    flow: tuple[float, float, float] = (0.0, 0.0, 0.0)
    check: Callable[[mujoco.MjData], bool] | None = None
    back: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a script is: the index of the waypoint, the periods spent there, the present speed [m/s]."""

    index: int = 0
    stayed: int = 0
    speed: float = 0.0


def advance(
    waypoints: tuple[Waypoint, ...], progress: Progress, last: Command, data: mujoco.MjData
) -> tuple[Command, Progress] | None:
    """The next command and where the script stands after it; None when it is over.

    Args:
      last: the command that was executed last, disturbances included.
    """
    if progress.index >= len(waypoints):
        return None
    goal = waypoints[progress.index]
    if goal.check is not None and not goal.check(data):
        progress = Progress(index=goal.back, speed=progress.speed)
        goal = waypoints[progress.index]
    target = goal.target(data)
    start = replace(last.pose, position=last.pose.position + PERIOD * np.asarray(goal.flow))
    left = max(
        float(np.linalg.norm(target.position - start.position)),
        goal.lever * float(np.linalg.norm(rotvec(target.rotation @ start.rotation.T))),
    )
    slow = _SLOWING * left / PERIOD if left > 0.01 else np.inf
    speed = min(goal.speed, progress.speed + _ACCELERATION * PERIOD, slow)
    pose = toward(start, target, speed * PERIOD, speed * PERIOD / goal.lever)
    there = left - speed * PERIOD <= goal.tolerance
    stayed = progress.stayed + 1 if there else 0
    done = there and stayed > goal.dwell
    return Command(pose=pose, opening=goal.opening), Progress(
        index=progress.index + done, stayed=0 if done else stayed, speed=min(speed, left / PERIOD)
    )
