"""Samplers: rules for choosing the controls of the reverse process, behind one call."""

from __future__ import annotations

from collections.abc import Callable

from diffopt.samplers.base import Draw, Sampler
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.ogd import OGD
from diffopt.samplers.rejection import Rejection
from diffopt.samplers.snap import Snap

_BY_NAME: dict[str, Callable[..., Sampler]] = {"ddim": DDIM, "ogd": OGD, "rejection": Rejection, "snap": Snap}


def available() -> tuple[str, ...]:
    """Names of the samplers."""
    return tuple(sorted(_BY_NAME))


def load(name: str, **options) -> Sampler:
    """The sampler `name`; a KeyError lists the names there are, a TypeError the options it has."""
    if name not in _BY_NAME:
        raise KeyError(f"no sampler {name!r}; there are: {', '.join(available())}")
    build = _BY_NAME[name]
    known = list(getattr(build, "__dataclass_fields__", {}))
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"sampler {name!r} has no option {unknown[0]!r}; it has: {', '.join(known)}")
    return build(**options)


__all__ = ["DDIM", "OGD", "Draw", "Rejection", "Sampler", "Snap", "available", "load"]
