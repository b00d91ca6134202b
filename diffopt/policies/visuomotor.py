"""Visuomotor policies: camera images and the tool's state in, a chunk of tool poses out.

    f = (eye_c(image_tc), state_t) for every moment t and camera c, put one after the other,      out = unet(x, 100 t, f)

with one small convolutional encoder a camera, shared by the moments. The images are looked at once per observation; what samplers
evaluate again and again is the UNet. Conventions as in Diffusion Policy (Chi et al. 2023, arXiv 2303.04137).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from diffopt.geometry import rotation_to_6d
from diffopt.policies.base import Context, Normalizer
from diffopt.policies.observation import Observation
from diffopt.policies.unet import ConditionalUnet1D
from diffopt.policies.vision import ConvEncoder
from diffopt.schedules import Parameterisation, Schedule, clean_estimate

STEPS = 100.0  # the UNet is told 100 t


class VisuomotorNetwork(nnx.Module):
    """Encoders and UNet; see the module's docstring.

    Args:
      dim: numbers per knot of the chunk. state: numbers of the tool's state at one moment.
      moments, cameras: T and C of the observations.
      features: of an image. channels: of its convolutions.
      widths: of the UNet. embedding: of the diffusion step.
      landmarks: points that `landmarks` guesses, for training.
    """

    def __init__(
        self,
        *,
        dim: int,
        state: int,
        moments: int = 2,
        cameras: int = 2,
        features: int = 32,
        channels: Sequence[int] = (16, 32, 32),
        widths: Sequence[int] = (64, 96, 128),
        embedding: int = 64,
        landmarks: int = 0,
        rngs: nnx.Rngs,
    ):
        self.eyes = nnx.List([ConvEncoder(features=features, channels=channels, rngs=rngs) for _ in range(cameras)])
        condition = moments * (cameras * features + state)
        self.unet = ConditionalUnet1D(dim=dim, condition=condition, widths=widths, embedding=embedding, rngs=rngs)
        self.guess = nnx.Linear(condition, 3 * landmarks, rngs=rngs) if landmarks else None

    def observe(
        self, images: UInt8[Array, "T C h w 3"], state: Float[Array, "T S"]
    ) -> Float[Array, "F"]:
        """Features of an observation; `state` normalised."""
        seen = [jax.vmap(eye)(images[:, c]) for c, eye in enumerate(self.eyes)]
        return jnp.concatenate([*seen, state], axis=-1).reshape(-1)

    def __call__(self, x: Float[Array, "H D"], t: Float[Array, ""], features: Float[Array, "F"]) -> Float[Array, "H D"]:
        return self.unet(x, STEPS * t, features)

    def landmarks(self, features: Float[Array, "F"]) -> Float[Array, "K 3"]:
        """Where the encoder's features place the task's landmarks; to train it, no part of the policy."""
        return self.guess(features).reshape(-1, 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ChunkDenoiser:
    """The UNet of a `VisuomotorNetwork`, split into structure (static) and weights (data), on flattened chunks."""

    weights: Any
    graph: Any = field(metadata=dict(static=True))
    horizon: int = field(metadata=dict(static=True))
    schedule: Schedule = field(metadata=dict(static=True))
    parameterisation: Parameterisation = field(default="v", metadata=dict(static=True))

    @property
    def network(self) -> VisuomotorNetwork:
        return nnx.merge(self.graph, self.weights)

    def output(self, x: Float[Array, "n"], t: Float[Array, ""], features: Float[Array, "F"]) -> Float[Array, "n"]:
        """What the network says, which means what `parameterisation` says."""
        return self.network(x.reshape(self.horizon, -1), t, features).reshape(-1)

    def __call__(self, x: Float[Array, "n"], t: Float[Array, ""], condition: Float[Array, "F"]) -> Float[Array, "n"]:
        alpha, sigma = self.schedule.scales(jnp.asarray(t))
        return clean_estimate(self.output(x, t, condition), x, alpha, sigma, self.parameterisation)


def state_of(observation: Observation) -> Float[Array, "*batch T S"]:
    """Position, 6-d rotation and hand joints at every moment."""
    return jnp.concatenate(
        [observation.position, rotation_to_6d(jnp.asarray(observation.rotation)), observation.joints], axis=-1
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class VisuomotorEncoder:
    """An observation to the features that the denoiser takes. Chunks are given in the world's frame.

    Attributes:
      denoiser: whose network has the encoders.
      state: normalises the tool's state.
      images: (T, C, h, w, 3) of the observations it was trained on.
    """

    denoiser: ChunkDenoiser
    state: Normalizer
    images: tuple[int, ...] = field(metadata=dict(static=True))

    def __call__(self, observation: Observation) -> Context:
        if not isinstance(observation, Observation):
            raise TypeError(
                f"this policy observes a diffopt.policies.Observation; got {type(observation).__name__}"
            )
        if observation.images.shape != self.images:
            raise ValueError(
                f"this policy takes images of shape {self.images} (moments, cameras, height, width, RGB); "
                f"got {observation.images.shape}"
            )
        state = self.state.normalize(state_of(observation))
        return Context(condition=self.denoiser.network.observe(jnp.asarray(observation.images), state))
