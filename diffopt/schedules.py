"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1], and what a network's output means.

Parameterisations of the network's output, and the clean estimate x0 and noise estimate e that follow from it:

    eps:   e = out,                  x0 = (x - sigma e) / alpha
    x0:    x0 = out,                 e = (x - alpha x0) / sigma
    v:     x0 = alpha x - sigma out  (variance preserving; Salimans & Ho 2022, arXiv 2202.00512)
    flow:  out = eps - x0,           x0 = x - sigma out  (alpha = 1 - sigma; Lipman et al. 2023, arXiv 2210.02747)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Parameterisation = Literal["eps", "x0", "v", "flow"]
PARAMETERISATIONS: tuple[Parameterisation, ...] = ("eps", "x0", "v", "flow")


class Schedule(Protocol):
    """Signal and noise scales over t in [0, 1]; hashable, so static under `jit`."""

    def scales(self, t: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """alpha(t), sigma(t)."""
        ...


@dataclass(frozen=True)
class Cosine:
    """abar(t) = cos^2(pi/2 (t + s)/(1 + s)) / cos^2(pi/2 s/(1 + s)) (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).

    Attributes:
      offset: s, keeps the noise of the first level away from zero.
      smallest: lower bound of alpha, so that predicting the noise stays invertible at t = 1.
    """

    offset: float = 0.008
    smallest: float = 1e-3

    def scales(self, t):
        first = np.pi / 2 * self.offset / (1 + self.offset)
        angle = np.pi / 2 * (t + self.offset) / (1 + self.offset)
        alpha = jnp.clip(jnp.cos(angle) / np.cos(first), self.smallest, 1.0)
        return alpha, jnp.sqrt(1 - alpha**2)


@dataclass(frozen=True)
class Linear:
    """Variance that grows linearly, in continuous time: log abar(t) = -(b1 t^2/2 + b0 (t - t^2/2)) with b = 1000 beta.

    The limit of DDPM's schedule from beta = 1e-4 to 0.02 (Ho et al. 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2011.13456, eq. 33).
    """

    first: float = 0.1
    last: float = 20.0

    def scales(self, t):
        log_abar = -(self.first * t + 0.5 * (self.last - self.first) * t**2)
        return jnp.exp(0.5 * log_abar), jnp.sqrt(-jnp.expm1(log_abar))


@dataclass(frozen=True)
class Flow:
    """The straight path of flow matching and rectified flow: alpha = 1 - t, sigma = t."""

    smallest: float = 1e-3

    def scales(self, t):
        return jnp.maximum(1 - t, self.smallest), t


@dataclass(frozen=True)
class Discrete:
    """The T steps of a DDPM as diffusers has them: step i of 0 .. T - 1 lies at t = (i + 1)/T, and t = 0 is clean.

    abar_i = prod_{j <= i} (1 - beta_j), in float32 as there; between the steps log abar is linear in t. The betas:

        squaredcos_cap_v2:  beta_i = min(1 - f((i + 1)/T)/f(i/T), 0.999),  f(t) = cos^2(pi/2 (t + 0.008)/1.008)
        linear:             from `first` to `last`

    (Nichol & Dhariwal 2021, arXiv 2102.09672; Ho et al. 2020, arXiv 2006.11239).

    Attributes:
      steps: T.
      betas: how beta_i is made.
      first, last: of the linear ones.
    """

    steps: int = 100
    betas: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    first: float = 1e-4
    last: float = 0.02

    def step(self, t):
        """The step at time t, -1 for t = 0: an exact integer within a thousandth of one, and not rounded between."""
        step = t * self.steps - 1
        nearest = jnp.round(step)
        return jnp.where(jnp.abs(step - nearest) < 1e-3, nearest, step)

    def scales(self, t):
        log_abar = jnp.interp(self.step(t), jnp.arange(-1.0, self.steps), jnp.asarray(_log_abar(self)))
        return jnp.exp(0.5 * log_abar), jnp.sqrt(-jnp.expm1(log_abar))


@cache
def _log_abar(schedule: Discrete) -> Float[np.ndarray, "steps+1"]:
    """log abar of the clean end and of every step."""
    if schedule.betas == "linear":
        beta = np.linspace(schedule.first, schedule.last, schedule.steps)
    elif schedule.betas == "squaredcos_cap_v2":
        f = np.cos((np.arange(schedule.steps + 1) / schedule.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        raise ValueError(f"unknown betas {schedule.betas!r}; there are: squaredcos_cap_v2, linear")
    abar = np.cumprod((1 - beta.astype(np.float32)).astype(np.float64)).astype(np.float32)
    return np.log(np.concatenate([[1.0], abar.astype(np.float64)])).astype(np.float32)


def levels(count: int, rho: float = 1.0) -> Float[np.ndarray, "count+1"]:
    """Times from 0 to 1: level k of `count` is (k/count)^rho; rho > 1 spends more levels where there is little noise."""
    if count < 1:
        raise ValueError(f"levels={count}: a sampler needs at least one level")
    return (np.arange(count + 1) / count).astype(np.float32) ** np.float32(rho)


def clean_estimate(
    output: Float[Array, "*batch n"],
    x: Float[Array, "*batch n"],
    alpha: Float[Array, "*batch"],
    sigma: Float[Array, "*batch"],
    parameterisation: Parameterisation,
) -> Float[Array, "*batch n"]:
    """The network's estimate of the clean vector x0."""
    alpha, sigma = alpha[..., None], sigma[..., None]
    if parameterisation == "eps":
        return (x - sigma * output) / alpha
    if parameterisation == "x0":
        return output
    if parameterisation == "v":
        return alpha * x - sigma * output
    if parameterisation == "flow":
        return x - sigma * output
    raise ValueError(f"unknown parameterisation {parameterisation!r}; there are: {', '.join(PARAMETERISATIONS)}")


def regression_target(clean, noise, alpha, sigma, parameterisation: Parameterisation):
    """What a network of this parameterisation is trained to output at x = alpha clean + sigma noise."""
    targets = {
        "eps": lambda: noise,
        "x0": lambda: clean,
        "v": lambda: alpha[..., None] * noise - sigma[..., None] * clean,
        "flow": lambda: noise - clean,
    }
    if parameterisation not in targets:
        raise ValueError(f"unknown parameterisation {parameterisation!r}; there are: {', '.join(PARAMETERISATIONS)}")
    return targets[parameterisation]()
