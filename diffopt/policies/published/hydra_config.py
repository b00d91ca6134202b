"""The training configuration that a checkpoint of Diffusion Policy holds, read strictly: its interpolations resolved, nothing evaluated.

A value "${a.b}" stands for the value at that place from the root; of the resolver "eval", which the project registers for Python, sums of
whole numbers are understood, because its configurations add the steps of latency to those executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_DEPTH = 20


def resolved(config: dict[str, Any], path: str, where: Any) -> Any:
    """The entry at a dotted path, with the interpolations in it followed.

    Raises:
      ValueError: that names a missing entry, or an interpolation that is not understood.
    """
    return _follow(config, _at(config, path, where), where, 0)


def _at(config: Any, path: str, where: Any, depth: int = 0) -> Any:
    node = config
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            found = ", ".join(map(str, node)) if isinstance(node, dict) else type(node).__name__
            raise ValueError(f"{where}: the configuration lacks {path!r}; at {name!r} it has: {found}")
        node = _follow(config, node[name], where, depth, deep=False)
    return node


def _follow(config: dict[str, Any], node: Any, where: Any, depth: int, deep: bool = True) -> Any:
    if depth > _DEPTH:
        raise ValueError(f"{where}: interpolations of the configuration go round in circles at {node!r}")
    if isinstance(node, str) and "${" in node:
        if match := re.fullmatch(r"\$\{([\w.]+)\}", node):
            return _follow(config, _at(config, match[1], where, depth + 1), where, depth + 1, deep)
        if match := re.fullmatch(r"\$\{eval:\s*['\"]?([^'\"]+)['\"]?\}", node):
            terms = [_follow(config, _number(term.strip()), where, depth + 1) for term in match[1].split("+")]
            if all(type(term) is int for term in terms):
                return sum(terms)
        raise ValueError(
            f"{where}: the configuration says {node!r}; understood are ${{path}} and sums of whole numbers in ${{eval:}}"
        )
    if deep and isinstance(node, dict):
        return {key: _follow(config, value, where, depth) for key, value in node.items()}
    if deep and isinstance(node, list):
        return [_follow(config, value, where, depth) for value in node]
    return node


def _number(term: str) -> Any:
    return int(term) if term.isdigit() else term


def read_fields(section: dict[str, Any], required: set[str], ignored: set[str], where: Path | str) -> dict[str, Any]:
    """The required entries of a section.

    Raises:
      ValueError: that names what is missing, and what is neither required nor known to decide nothing.
    """
    missing, unknown = sorted(required - set(section)), sorted(set(section) - required - ignored)
    if missing or unknown:
        raise ValueError(
            f"{where}: missing: {', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'nothing'}"
        )
    return {name: section[name] for name in required}
