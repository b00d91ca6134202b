"""A part of a page in docs/ that is generated, between two marks, and a command line that writes or checks it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What stands between `begin` and `end` on a page, made by `python -m <command>`."""

    page: Path
    begin: str
    end: str
    make: Callable[[], str]
    command: str

    def fresh(self, text: str) -> str:
        """The page's text with the part made anew."""
        before, rest = text.split(self.begin)
        return f"{before}{self.begin}\n{self.make()}{self.end}{rest.split(self.end)[1]}"

    def main(self, description: str | None, also: Callable[[], None] = lambda: None) -> None:
        """Write the page, after `also`; with --check write nothing, and fail if it is out of date."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
        text = self.page.read_text(encoding="utf-8")
        if parser.parse_args().check:
            if self.fresh(text) != text:
                sys.exit(f"docs/{self.page.name} is out of date; run: python -m {self.command}")
            return
        also()
        self.page.write_text(self.fresh(text), encoding="utf-8")
