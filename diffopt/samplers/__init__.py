"""Samplers: rules for choosing the controls of the reverse process, behind one call.

Every file of this package that holds a `CARD` is a sampler. Their classes are attributes of the package, imported when they are asked for.
"""

from __future__ import annotations

from typing import Any

from diffopt.samplers.base import Draw, Sampler
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.ogd import OGD
from diffopt.samplers.registry import Card, cards
from diffopt.samplers.rejection import Rejection
from diffopt.samplers.snap import Snap


def available() -> tuple[str, ...]:
    """Names of the samplers."""
    return tuple(sorted(cards()))


def describe(name: str) -> Card:
    """What the sampler `name` does, where it comes from, what it needs and costs; a KeyError lists the names there are."""
    if name not in cards():
        raise KeyError(f"no sampler {name!r}; there are: {', '.join(available())}")
    return cards()[name]


def load(name: str, **options) -> Sampler:
    """The sampler `name`; a KeyError lists the names there are, a TypeError the options it has."""
    build = describe(name).build
    known = list(getattr(build, "__dataclass_fields__", {}))
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"sampler {name!r} has no option {unknown[0]!r}; it has: {', '.join(known)}")
    return build(**options)


def __getattr__(name: str) -> Any:
    classes = (
        {} if name.startswith("__") else {getattr(card.build, "__name__", ""): card.build for card in cards().values()}
    )
    if name not in classes:
        raise AttributeError(f"diffopt.samplers has no {name!r}; its samplers are: {', '.join(classes)}")
    return classes[name]


__all__ = ["DDIM", "OGD", "Card", "Draw", "Rejection", "Sampler", "Snap", "available", "describe", "load"]
