"""What takes long to compute, kept on disk by content."""

from __future__ import annotations

import hashlib
import os
import pathlib
import sys
import tempfile
import zipfile

import numpy as np


def cache_folder() -> pathlib.Path:
    """Where results are kept: DIFFOPT_CACHE, else the user's cache folder (XDG_CACHE_HOME, or the system's custom) with /diffopt."""
    if os.environ.get("DIFFOPT_CACHE"):
        return pathlib.Path(os.environ["DIFFOPT_CACHE"]).expanduser()
    default = {"win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local"), "darwin": "~/Library/Caches"}
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME") or default.get(sys.platform, "~/.cache")).expanduser() / "diffopt"
    )


def file_of(folder: str, version: bytes, *parts: np.ndarray) -> pathlib.Path:
    """The file in a folder of the cache that belongs to some arrays and to a version of what is computed from them."""
    key = hashlib.sha256(folder.encode() + version)
    for part in parts:
        part = np.ascontiguousarray(part)
        key.update(f"{part.dtype}{part.shape}".encode() + part.tobytes())
    return cache_folder() / folder / f"{key.hexdigest()[:32]}.npz"


def read(file: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays that are kept in `file`; None if there is nothing, or nothing readable."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(file: pathlib.Path, **arrays: np.ndarray) -> None:
    """Keep arrays, if the folder can be written to: whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
            np.savez(part, **arrays)
        os.replace(part.name, file)
    except OSError:
        pass
