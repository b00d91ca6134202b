"""Robots by name: arms, hands, and any arm with any hand, as in "xarm7-leap" (see `parts`); and those of other packages.

Another package brings robots by entry points of the group "diffopt.embodiments", each a function without arguments that returns an
`Embodiment`:

    [project.entry-points."diffopt.embodiments"]
    my-robot = "my_package.robots:my_robot"
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import itertools
import pathlib

from diffopt.robots.embodiment import Embodiment

MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"
GROUP = "diffopt.embodiments"


def available() -> tuple[str, ...]:
    """The names that `load` takes."""
    return tuple(sorted({*names(), *(entry.name for entry in importlib.metadata.entry_points(group=GROUP))}))


def names() -> tuple[str, ...]:
    """The names of the shipped robots."""
    from diffopt.robots.embodiments.parts import ARMS, HANDS

    return tuple(sorted([*ARMS, *HANDS, *(f"{arm}-{hand}" for arm, hand in itertools.product(ARMS, HANDS))]))


@functools.cache
def load(name: str, bodies: str = "spheres") -> Embodiment:
    """A robot by name, with its base at the world's origin.

    Args:
      bodies: what collisions are computed with, "spheres" or "primitives"; see `Embodiment.from_mjcf`.
    Raises:
      KeyError: no such robot; the message lists those there are.
      ValueError: no such bodies, or another package's robot, which brings its own.
      TypeError: what another package brought under that name is no `Embodiment`.
    """
    from diffopt.robots.embodiments import parts

    if name in names():
        arm, _, hand = name.partition("-")
        return parts.combine(arm, hand, bodies) if hand else parts.alone(name, bodies)
    for entry in importlib.metadata.entry_points(group=GROUP, name=name):
        robot = entry.load()()
        if not isinstance(robot, Embodiment):
            raise TypeError(
                f"entry point {entry.value!r} of {name!r} returned a {type(robot).__name__}, not an Embodiment"
            )
        if bodies != ("spheres" if robot.primitives is None else "primitives"):
            raise ValueError(
                f"{name!r} is built by {entry.value!r}; give bodies={bodies!r} to from_mjcf or from_urdf there"
            )
        return robot
    near = difflib.get_close_matches(name, available(), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise KeyError(
        f"no embodiment {name!r}{hint}; there are: {', '.join(available())}; "
        "or Embodiment.from_mjcf('file.xml', tool=...), Embodiment.from_urdf('file.urdf', tool=...)"
    )
