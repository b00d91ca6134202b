"""Policies: denoisers with their schedule, normaliser and meaning.

`load` and `available` import the network library only when they are called.
"""

from __future__ import annotations

from pathlib import Path

from diffopt.policies.base import Context, Denoiser, Encoder, Normalizer, Policy, TargetFrame
from diffopt.policies.mixture import GaussianMixture, gaussian_mixture
from diffopt.policies.observation import Observation


def load(name_or_path: str | Path) -> Policy:
    """A shipped policy by name, or one saved by `checkpoint.save` by the path of its card."""
    from diffopt.policies import checkpoint

    return checkpoint.load(name_or_path)


def available() -> tuple[str, ...]:
    """Names of the shipped policies."""
    from diffopt.policies import checkpoint

    return checkpoint.available()


__all__ = [
    "Context",
    "Denoiser",
    "Encoder",
    "GaussianMixture",
    "Normalizer",
    "Observation",
    "Policy",
    "TargetFrame",
    "available",
    "gaussian_mixture",
    "load",
]
