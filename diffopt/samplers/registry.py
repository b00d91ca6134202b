"""The list of samplers, found by looking: a sampler is one file of this package that holds a `CARD`.

Nothing is imported before somebody asks, and nothing else has to be edited when a file is added.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from diffopt.samplers.base import Sampler

Need = Literal["gradient", "network gradient", "projection", "check", "joints"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What there is to know of a sampler before it is used.

    Attributes:
      name: how `load` and `sample` call it.
      build: its class; called with options.
      row: of the catalogue.
      paper: where it comes from.
      summary: what it does, in a line.
      needs: what it asks of the constraints: their gradient, also that of the network, a projection onto them, or no more than a check of
        how far a plan violates them (which need not be differentiable); and joints that realise the plan.
      evaluations: of the network per level, in words.
      strength: the option that trades feasibility for closeness to the prior, and values that are worth trying for it.
      differentiable: whether plans have finite derivatives by the numbers in the constraints.
    """

    name: str
    build: Callable[..., Sampler]
    row: int
    paper: str
    summary: str
    needs: tuple[Need, ...] = ()
    evaluations: str = "1"
    strength: tuple[str, tuple[float, ...]] | None = None
    differentiable: bool = False


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name, in the order of the catalogue."""
    package = importlib.import_module("diffopt.samplers")
    found = []
    for module in pkgutil.iter_modules(package.__path__, "diffopt.samplers."):
        card = getattr(importlib.import_module(module.name), "CARD", None)
        if card is not None:
            found.append(card)
    out: dict[str, Card] = {}
    for card in sorted(found, key=lambda card: (card.row, card.name)):
        if card.name in out:
            raise ValueError(f"two samplers are named {card.name!r}: {out[card.name].build!r} and {card.build!r}")
        out[card.name] = card
    return out
