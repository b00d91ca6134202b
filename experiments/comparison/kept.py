"""Small JSON files beside the configuration: tuned values, and times, of a problem."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.comparison.benches import FOLDER


def path(kind: str, problem: str) -> Path:
    """The file of tuned values, or of times, of a problem."""
    return FOLDER / f"{kind}-{problem}.json"


def read(path: Path, key: str) -> dict[str, Any]:
    """A part of such a file, empty where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return json.loads(text).get(key, {}) if text else {}


def write(path: Path, more: Mapping[str, Any]) -> None:
    """Put entries into such a file, one process at a time; those of a part that is a dict are added to what it has."""
    with path.open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        text = stream.read()
        body = json.loads(text) if text else {}
        for key, value in more.items():
            body[key] = body.get(key, {}) | value if isinstance(value, Mapping) else value
        stream.truncate(0)
        stream.write(json.dumps(body, indent=1, sort_keys=True) + "\n")
