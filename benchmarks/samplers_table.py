"""Writes the list of samplers in docs/samplers.md from their cards: `python -m benchmarks.samplers_table [--check]`."""

from __future__ import annotations

import dataclasses

import diffopt
from benchmarks.page import DOCS, Part
from diffopt.samplers.registry import Card, cards


def options(card: Card) -> str:
    """Names and start values of a sampler's options."""
    sampler = diffopt.samplers.load(card.name)
    shown = []
    for field in dataclasses.fields(sampler):  # type: ignore[arg-type]
        value = getattr(sampler, field.name)
        if isinstance(value, (int, float, str, type(None))):
            shown.append(f"{field.name}={value}")
    return ", ".join(shown)


def listing() -> str:
    """The list, in the order of the catalogue."""
    head = "| row | name | what it does | needs | evaluations of the network per level | source |\n|---|---|---|---|---|---|\n"
    rows, details = [], []
    for card in cards().values():
        needs = ", ".join(card.needs) or "nothing"
        rows.append(f"| {card.row} | `{card.name}` | {card.summary} | {needs} | {card.evaluations} | {card.paper} |")
        main = f"; main option `{card.strength[0]}`" if card.strength else ""
        details.append(f"- `{card.name}` ({card.build.__name__}): {options(card)}{main}")
    return head + "\n".join(rows) + "\n\nOptions and their start values:\n\n" + "\n".join(details) + "\n"


LIST = Part(
    page=DOCS / "samplers.md",
    begin="<!-- list: python -m benchmarks.samplers_table -->",
    end="<!-- end of list -->",
    make=listing,
    command="benchmarks.samplers_table",
)

if __name__ == "__main__":
    LIST.main(__doc__)
