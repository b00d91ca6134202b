"""The methods that a configuration names, as samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffopt
from diffopt.samplers import Sampler
from experiments.comparison import kept
from experiments.comparison.benches import Bench

GROWING = ("method", "dial", "methods", "do")  # settings under which a folder of results may grow


def listed(config: Mapping[str, Any], key: str, there: list[str]) -> list[str]:
    """The names asked for under a key; a ValueError lists what there is."""
    value = config[key]
    names = there if value == "all" else [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]
    for name in names:
        if name not in there:
            raise ValueError(f"{key}={name!r}; there are: {', '.join(there)}, all")
    return names


def names(config: Mapping[str, Any], place: Bench) -> list[str]:
    """The methods asked for, without those that need what there is not here."""
    there = [
        name
        for name, entry in config["methods"].items()
        if "joints" not in diffopt.samplers.describe(entry["name"]).needs or "joints" in place.needs
    ]
    return listed(config, "method", there)


def samplers(config: Mapping[str, Any], names: list[str]) -> dict[str, Sampler]:
    """The samplers of some methods, tuned if asked for."""
    tuned = kept.read(kept.path("tuned", config["problem"]), "values") if config["tuned"] else {}
    return {name: method(config["methods"][name], tuned) for name in names}


def method(entry: Mapping[str, Any], tuned: Mapping[str, Any]) -> Sampler:
    """A sampler of the configuration's methods: its name, its options, and unless given the tuned value of its main one."""
    options = dict(entry)
    name = options.pop("name")
    card = diffopt.samplers.describe(name)
    if card.strength is not None and card.strength[0] not in options and name in tuned:
        options[card.strength[0]] = type(card.strength[1][0])(tuned[name])
    return diffopt.samplers.load(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def described(sampler: Sampler) -> str:
    """A sampler's plain options, as they stand in results."""
    fields = {k: getattr(sampler, k) for k in sampler.__dataclass_fields__}  # type: ignore[attr-defined]
    return ", ".join(f"{k}={v}" for k, v in fields.items() if isinstance(v, (int, float, str, tuple, type(None))))
