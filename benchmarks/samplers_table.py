"""Writes the list of samplers in docs/samplers.md from their cards: `python -m benchmarks.samplers_table [--check]`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import diffopt
from diffopt.samplers.registry import Card, cards

PAGE = Path(__file__).resolve().parent.parent / "docs" / "samplers.md"
BEGIN, END = "<!-- list: python -m benchmarks.samplers_table -->", "<!-- end of list -->"


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


def page(text: str) -> str:
    """The page with a fresh list."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{listing()}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    fresh = page(text)
    if check and fresh != text:
        sys.exit(f"docs/{PAGE.name} is out of date; run: python -m benchmarks.samplers_table")
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
