"""Published action denoisers, and the DDIM chain that they are published with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffopt.policies.base import Policy
from diffopt.schedules import Discrete, Parameterisation, clean_estimate


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ActionDenoiser:
    """A `ConditionalUnet1D` over a chunk of actions, split into structure (static) and weights (data).

    Attributes:
      weights: the nnx state.
      graph: the nnx graph definition.
      schedule: the schedule it was trained with.
      width: length D of an action.
      parameterisation: what the network's output means.
      clip: largest normalised coordinate, in absolute value, of a clean estimate; None for no bound.
    """

    weights: Any
    graph: Any = field(metadata=dict(static=True))
    schedule: Discrete = field(metadata=dict(static=True))
    width: int = field(metadata=dict(static=True))
    parameterisation: Parameterisation = field(metadata=dict(static=True))
    clip: float | None = field(metadata=dict(static=True))

    def __call__(
        self, x: Float[Array, "H*D"], t: Float[Array, ""], condition: Float[Array, "C"]
    ) -> Float[Array, "H*D"]:
        return self.clipped(self.estimate(x, t, condition))

    def output(
        self, x: Float[Array, "H*D"], step: Float[Array, ""], condition: Float[Array, "C"]
    ) -> Float[Array, "H*D"]:
        """What the network says at a step of 0 .. T - 1."""
        return nnx.merge(self.graph, self.weights)(x.reshape(-1, self.width), step, condition).reshape(-1)

    def estimate(
        self, x: Float[Array, "H*D"], t: Float[Array, ""], condition: Float[Array, "C"]
    ) -> Float[Array, "H*D"]:
        """The clean estimate before it is clipped."""
        t = jnp.asarray(t)
        alpha, sigma = self.schedule.scales(t)
        return clean_estimate(self.output(x, self.schedule.step(t), condition), x, alpha, sigma, self.parameterisation)

    def clipped(self, clean: Float[Array, "H*D"]) -> Float[Array, "H*D"]:
        return clean if self.clip is None else jnp.clip(clean, -self.clip, self.clip)


def ddim(policy: Policy, noise: Float[Array, "H*D"], count: int) -> Float[Array, "H*D"]:
    """The plan's normalised vector from pure noise by the DDIM of diffusers with eta = 0, as LeRobot runs it.

    It visits the steps (count - 1) q, ..., q, 0 with q = T // count, so that for count < T it begins below T - 1, and it keeps the noise
    estimate of the unclipped x0 beside the clipped x0:

        x <- alpha' clip(x0) + sigma' (x - alpha x0)/sigma,

    where `diffopt.sample(sampler="ddim")` visits t = k/count and takes the noise estimate that belongs to the clipped x0.

    Raises:
      TypeError: if the policy's denoiser is not an `ActionDenoiser`.
      ValueError: if the policy is not bound, or count is not in 1 .. T.
    """
    denoiser = policy.denoiser
    if not isinstance(denoiser, ActionDenoiser):
        raise TypeError(f"ddim runs published policies; the denoiser of {policy.name!r} is a {type(denoiser).__name__}")
    if not 1 <= count <= denoiser.schedule.steps:
        raise ValueError(f"count={count}: the policy was trained on {denoiser.schedule.steps} steps")
    return _ddim(denoiser, policy.bound().context.condition, jnp.asarray(noise).reshape(-1), count)  # type: ignore[union-attr]


@jax.jit(static_argnames="count")
def _ddim(denoiser: ActionDenoiser, condition, noise, count: int):
    stride = denoiser.schedule.steps // count
    steps = np.arange(count)[::-1] * stride
    times = (np.stack([steps, np.maximum(steps - stride, -1)], axis=-1) + 1) / denoiser.schedule.steps

    def body(x, time):
        (alpha, below), (sigma, remains) = denoiser.schedule.scales(time)
        clean = denoiser.estimate(x, time[0], condition)
        return below * denoiser.clipped(clean) + remains * (x - alpha * clean) / sigma, None

    return jax.lax.scan(body, noise, jnp.asarray(times, jnp.float32))[0]
