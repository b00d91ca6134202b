"""Results on disk and on the screen: a folder with config.json, results.json and results.csv, and a table.

A folder belongs to one configuration. Opening it again with the same one resumes (rows that are there are kept and can be looked
up by their key); with another one it is refused. Nothing is ever overwritten: a row that exists cannot be written again.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table


def provenance(seed: int | None = None) -> dict[str, Any]:
    """Versions, device and seed, as they stand in every result."""
    import jax

    from diffopt.version import __version__

    device = jax.devices()[0]
    versions = {name: metadata.version(name) for name in ("jax", "mujoco", "mujoco-mjx", "numpy", "flax")}
    return {
        "diffopt": __version__,
        "python": platform.python_version(),
        **versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": os.cpu_count(),
        "seed": seed,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def plain(value: Any) -> Any:
    """The value in JSON's types; a float that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return str(value)


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of results of one configuration; made by `open_results`."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """The rows written so far, in order."""
        file = self.path / "rows.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").splitlines()
        whole = []
        for i, line in enumerate(lines):
            try:
                whole.append(json.loads(line))
            except json.JSONDecodeError:
                if i + 1 < len(lines):
                    raise ValueError(f"{file}, line {i + 1}, is not JSON") from None
        return whole  # a last line cut short by an interruption is left out: its trial runs again

    def done(self, key: str) -> bool:
        """Whether a row of that key is there."""
        return any(row["key"] == key for row in self.rows())

    def append(self, key: str, row: Mapping[str, Any]) -> None:
        """Adds one row. Raises ValueError when there is one of that key."""
        self.extend({key: row})

    def extend(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds rows by key, all or none. Raises ValueError when one of them exists."""
        present = self.rows()
        twice = sorted({row["key"] for row in present} & set(rows))
        if twice:
            raise ValueError(f"{self.path} has rows already for {', '.join(twice[:5])}; rows are never overwritten")
        added = [{"key": key, **plain(dict(row))} for key, row in rows.items()]
        _replace(self.path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in [*present, *added]))

    def finish(self, summary: Sequence[Mapping[str, Any]], seed: int | None = None) -> Path:
        """Writes results.json and results.csv from the rows and a summary; returns the folder."""
        config = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        body = {"provenance": provenance(seed), "config": config, "summary": plain(list(summary)), "rows": self.rows()}
        _replace(self.path / "results.json", json.dumps(body, indent=1) + "\n")
        write_csv(self.path / "results.csv", summary)
        return self.path


def open_results(path: str | Path, config: Mapping[str, Any]) -> ResultsFolder:
    """Makes the folder, or resumes it when its configuration is the same.

    Raises:
      FileExistsError: the folder holds something else, or results of another configuration; the message names what differs.
    """
    folder, wanted = Path(path), plain(dict(config))
    file = folder / "config.json"
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a folder for the results")
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found != wanted:
            lines = [
                f"  {k}: there {found.get(k)!r}, now {wanted.get(k)!r}"
                for k in sorted({*found, *wanted})
                if found.get(k) != wanted.get(k)
            ]
            raise FileExistsError(
                f"{folder} holds results of another configuration:\n"
                + "\n".join(lines)
                + "\nGive another folder, or remove this one yourself."
            )
        return ResultsFolder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} exists, is not empty and holds no results of diffopt (no config.json); give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _replace(file, json.dumps(wanted, indent=1) + "\n")
    return ResultsFolder(folder)


def _replace(file: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = file.with_name(file.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def write_csv(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line per row; columns in order of first appearance."""
    rows = [plain(dict(row)) for row in rows]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    draft = file.with_name(file.name + ".part")
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(file)


def table(title: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table for the terminal.

    Args:
      columns: heading of each column by the rows' key, in order. The first is a name, the others are figures.
      rows: values; str() is taken of anything that is not a float, which is shown with four significant digits.
    """
    out = Table(title=title, title_justify="left")
    for i, heading in enumerate(columns.values()):
        out.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        cells = [row.get(key, "") for key in columns]
        out.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    return out
