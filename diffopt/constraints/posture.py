"""The frames of a robot at one posture, computed once for all constraints that look at them.

Forward kinematics is a loop, which a compiler does not recognise as computed before: without this, every constraint of a set would have
its own, which costs both time to compile and time to run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from diffopt.constraints.base import Auxiliary
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Frames

_KEY = "frames"


@runtime_checkable
class LooksAtFrames(Protocol):
    """A constraint of a robot that takes its frames from `frames_at`."""

    @property
    def robot(self) -> Embodiment | None: ...

    @property
    def looks_at_frames(self) -> bool: ...


@dataclass(frozen=True)
class _At:
    """Frames, and of what they are: they hold for these very arrays and no others, such as those of a derivative."""

    robot: tuple[Any, ...]
    joints: Any
    hand: Any
    frames: Frames


def with_frames(constraints: Iterable[Any], plan: Any, aux: Auxiliary) -> dict[str, Any]:
    """`aux` for those of the constraints that are `LooksAtFrames`: with the frames, if at least two of them would compute the same."""
    robots = [k.robot for k in constraints if isinstance(k, LooksAtFrames) and k.robot is not None]
    same = [robot for robot in robots if _identity(robot) == _identity(robots[0])]
    if len(same) < 2 or "joints" not in aux or aux["joints"].ndim != 1:
        return aux
    frames = robots[0].frames(aux["joints"], plan.joints)
    return aux | {_KEY: _At(_identity(robots[0]), aux["joints"], plan.joints, frames)}


def frames_at(robot: Embodiment, plan: Any, aux: dict[str, Any]) -> Frames:
    """All frames of the robot at aux["joints"] and the plan's hand, in the frame of the base."""
    at = aux.get(_KEY)
    if at is not None and at.joints is aux["joints"] and at.hand is plan.joints and at.robot == _identity(robot):
        return at.frames
    return robot.frames(aux["joints"], plan.joints)


def _identity(robot: Embodiment) -> tuple[Any, ...]:
    """All that `Embodiment.frames` depends on, beside the positions."""
    return robot.kinematics, robot.arm, robot.hand
