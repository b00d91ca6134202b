"""Shipped robots, one small file each: a function `build() -> Embodiment`. The file panda_allegro.py is the robot "panda-allegro"."""

from __future__ import annotations

import functools
import importlib
import pathlib

from diffopt.robots.embodiment import Embodiment

MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"


def names() -> tuple[str, ...]:
    """The names that `load` takes."""
    return tuple(sorted(f.stem.replace("_", "-") for f in pathlib.Path(__file__).parent.glob("[a-z]*.py")))


@functools.cache
def load(name: str) -> Embodiment:
    """A shipped robot by name, with its base at the world's origin.

    Raises:
      KeyError: no such robot; the message lists those there are.
    """
    if name not in names():
        raise KeyError(
            f"no embodiment {name!r}; there are: {', '.join(names())}; or Embodiment.from_mjcf('file.xml', tool=...)"
        )
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").build()
