"""Policies: denoisers with their schedule, normaliser and meaning.

`load`, `available`, `from_lerobot` and `from_diffusion_policy` import the network library only when they are called.
"""

from __future__ import annotations

import math
from pathlib import Path

from diffopt.plans import PlanSpec
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


def from_lerobot(directory: str | Path, *, spec: PlanSpec | None = None, support: float = math.inf) -> Policy:
    """A diffusion policy that LeRobot saved in a directory; see `diffopt.policies.published.lerobot.from_lerobot`."""
    from diffopt.policies.published import lerobot

    return lerobot.from_lerobot(directory, spec=spec, support=support)


def from_diffusion_policy(directory: str | Path, *, spec: PlanSpec | None = None, support: float = math.inf) -> Policy:
    """A converted checkpoint of Diffusion Policy; see `diffopt.policies.published.diffusion_policy.from_diffusion_policy`."""
    from diffopt.policies.published import diffusion_policy

    return diffusion_policy.from_diffusion_policy(directory, spec=spec, support=support)


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
    "from_diffusion_policy",
    "from_lerobot",
    "gaussian_mixture",
    "load",
]
