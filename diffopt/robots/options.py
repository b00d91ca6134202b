"""What a robot is read with, checked against what its file has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffopt.robots.bodies import TOLERANCE

BODIES = ("spheres", "primitives")

Limits = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Embodiment.from_mjcf` was given; see there. `velocity_from`: where the velocities came from."""

    tool: str
    hand: Sequence[str] | None
    base: str | None
    name: str | None
    velocity: Mapping[str, float]
    velocity_from: str
    limits: Limits
    home: Mapping[str, float]
    tolerance: float | dict[str, float]
    most_spheres: int
    couple_tendons: bool
    bodies: str
    seeds: int

    def allowed(self, body: str) -> float:
        """How far collision spheres of a body may reach outside of its geoms [m]."""
        if isinstance(self.tolerance, dict):
            return self.tolerance.get(body, self.tolerance.get("", TOLERANCE))
        return self.tolerance

    def check(self, joints: Iterable[str], bodies: Iterable[str], title: str) -> None:
        """Refuses names that the robot has not, and numbers that make no sense.

        Raises:
          KeyError: no such joint or body; the message lists those there are.
          TypeError, ValueError: a value of the wrong type, or out of range.
        """
        joints, bodies = tuple(joints), tuple(bodies)
        if isinstance(self.hand, str):
            raise TypeError(f"hand={self.hand!r}: give the hand's joints as a list of names, hand=[{self.hand!r}]")
        for joint in (*(self.hand or ()), *self.velocity, *self.home, *self.limits):
            if joint not in joints:
                raise KeyError(f"no joint {joint!r} in {title!r}; it has: {', '.join(joints)}")
        for joint, value in self.velocity.items():
            if not _number(value) or not value > 0:
                raise ValueError(
                    f"velocity limit of {joint!r} of {title!r}: {value!r}; give a positive number [rad/s, m/s]"
                )
        for joint, value in self.home.items():
            if not _number(value) or not math.isfinite(value):
                raise ValueError(f"home of {joint!r} of {title!r}: {value!r}; give a number [rad, m]")
        for joint, pair in self.limits.items():
            if not _pair(pair) or not pair[0] < pair[1]:
                shown = f"[{pair[0]:g}, {pair[1]:g}]" if _pair(pair) else repr(pair)
                raise ValueError(
                    f"limits of {joint!r} of {title!r}: {shown}; give the lower and then the upper, two numbers"
                )
        for body, value in (self.tolerance if isinstance(self.tolerance, dict) else {"": self.tolerance}).items():
            if body and body not in bodies:
                raise KeyError(f"tolerance: no body {body!r} in {title!r}; it has: {', '.join(bodies)}")
            if not _number(value) or not value > 0:
                raise ValueError(
                    f"tolerance={self.tolerance!r}: how far spheres may reach outside; give a positive number [m]"
                )
        if self.bodies not in BODIES:
            raise ValueError(f"no collision bodies {self.bodies!r}; there are: {', '.join(BODIES)}")
        if not isinstance(self.most_spheres, (int, np.integer)) or self.most_spheres < 1:
            raise ValueError(
                f"most_spheres={self.most_spheres!r}: at most so many spheres per geom; give a number from 1 on"
            )


def _number(value: Any) -> bool:
    return np.ndim(value) == 0 and isinstance(np.asarray(value).item(), (int, float)) and not math.isnan(value)


def _pair(value: Any) -> bool:
    return np.shape(value) == (2,) and all(map(_number, value))
