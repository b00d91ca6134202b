"""Visuomotor policies: camera images and the tool's state in, a chunk of tool poses out.

    f_t = mlp(eye_1(image_t1), ..., eye_C(image_tC), s_t),      out = trunk(x, 100 tau, ((f_t, s_t) for every moment t)),

with a small convolutional encoder for every camera, shared by the moments t, s_t the tool's state, and tau the time of the diffusion.
The images are looked at once per observation; what samplers evaluate again and again is the trunk: a UNet, or a transformer for which
every moment is a token. Conventions as in Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), sizes for a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from diffopt.geometry import rotation_to_6d
from diffopt.policies.base import Context, Normalizer
from diffopt.policies.layers import Conv2d
from diffopt.policies.observation import Observation
from diffopt.policies.transformer import ChunkTransformer
from diffopt.policies.unet import ConditionalUnet1D
from diffopt.policies.vision import keypoints
from diffopt.schedules import Parameterisation, Schedule, clean_estimate

STEPS = 100.0  # the trunk is told 100 tau
_PATCH = 4


class Eye(nnx.Module):
    """An image to the expected places of `points` learnt features: 4 x 4 patches, two 3 x 3 convolutions, spatial softmax.

    Coarser than strided convolutions of the same cost where it does not matter, and finer where places are read off.
    """

    def __init__(self, channels: int, points: int, *, rngs: nnx.Rngs):
        self.patches = nnx.Linear(3 * _PATCH**2, channels, rngs=rngs)
        self.inner = Conv2d(channels, channels, 3, rngs=rngs)
        self.outer = Conv2d(channels, points, 3, rngs=rngs)

    def __call__(self, image: UInt8[Array, "h w 3"]) -> Float[Array, "2*K"]:
        h, w = image.shape[0] // _PATCH, image.shape[1] // _PATCH
        x = image.reshape(h, _PATCH, w, _PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(h, w, -1)
        x = nnx.silu(self.patches(x.astype(jnp.float32) / 127.5 - 1.0))
        return keypoints(self.outer(nnx.silu(self.inner(x)))).reshape(-1)


class VisuomotorEyes(nnx.Module):
    """All that is seen at one moment, to features: an `Eye` for every camera, then two layers that join them with the tool's state."""

    def __init__(
        self, *, cameras: int, state: int, channels: int, points: int, width: int, features: int, rngs: nnx.Rngs
    ):
        self.eyes = nnx.List([Eye(channels, points, rngs=rngs) for _ in range(cameras)])
        self.inner = nnx.Linear(cameras * 2 * points + state, width, rngs=rngs)
        self.outer = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, images: UInt8[Array, "C h w 3"], state: Float[Array, "S"]) -> Float[Array, "features"]:
        """`state` normalised."""
        seen = [eye(image) for eye, image in zip(self.eyes, images, strict=True)]
        return self.outer(nnx.silu(self.inner(jnp.concatenate([*seen, state]))))


class VisuomotorNetwork(nnx.Module):
    """Eyes and trunk; see the module's docstring.

    Args:
      dim: numbers per knot of the chunk. state: numbers of the tool's state at one moment.
      moments, cameras: T and C of the observations.
      channels, points: of an `Eye`. width, features: of the layers that join them.
      widths, kernel, embedding: of the UNet; embedding is of the diffusion step.
      transformer: sizes of a `ChunkTransformer` (width, layers, heads, causal) that takes the UNet's place. horizon: its knots.
    """

    def __init__(
        self,
        *,
        dim: int,
        state: int,
        moments: int = 2,
        cameras: int = 2,
        channels: int = 16,
        points: int = 24,
        width: int = 128,
        features: int = 64,
        widths: Sequence[int] = (48, 64, 96),
        kernel: int = 3,
        embedding: int = 64,
        transformer: Mapping[str, int] | None = None,
        horizon: int = 16,
        rngs: nnx.Rngs,
    ):
        eyes = dict(cameras=cameras, state=state, channels=channels, points=points, width=width, features=features)
        self.eyes = VisuomotorEyes(**eyes, rngs=rngs)
        condition = moments * (features + state)
        sizes: dict[str, Any] = eyes | dict(dim=dim, moments=moments)
        if transformer is None:
            sizes |= dict(widths=tuple(widths), kernel=kernel, embedding=embedding)
            self.unet = ConditionalUnet1D(
                dim=dim, condition=condition, widths=tuple(widths), kernel=kernel, embedding=embedding, rngs=rngs
            )
        else:
            sizes |= dict(horizon=horizon, transformer=tuple(dict(transformer).items()))
            self.transformer = ChunkTransformer(
                dim=dim, horizon=horizon, condition=condition, tokens=moments, **dict(transformer), rngs=rngs
            )
        self.sizes = tuple(sizes.items())  # rebuild this structure

    @property
    def trunk(self) -> ConditionalUnet1D | ChunkTransformer:
        """What is evaluated at every level."""
        return self.transformer if "transformer" in dict(self.sizes) else self.unet

    def __call__(
        self, x: Float[Array, "H D"], t: Float[Array, ""], condition: Float[Array, "T*(features+S)"]
    ) -> Float[Array, "H D"]:
        return self.trunk(x, STEPS * t, condition)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ChunkDenoiser:
    """The trunk of a `VisuomotorNetwork`, split into structure (static) and weights (data), on flattened chunks."""

    weights: Any
    graph: Any = field(metadata=dict(static=True))
    horizon: int = field(metadata=dict(static=True))
    schedule: Schedule = field(metadata=dict(static=True))
    parameterisation: Parameterisation = field(default="v", metadata=dict(static=True))

    @property
    def network(self) -> VisuomotorNetwork:
        return nnx.merge(self.graph, self.weights)

    def output(self, x: Float[Array, "n"], t: Float[Array, ""], condition: Float[Array, "F"]) -> Float[Array, "n"]:
        """What the network says, which means what `parameterisation` says."""
        return self.network(x.reshape(self.horizon, -1), t, condition).reshape(-1)

    def __call__(self, x: Float[Array, "n"], t: Float[Array, ""], condition: Float[Array, "F"]) -> Float[Array, "n"]:
        alpha, sigma = self.schedule.scales(jnp.asarray(t))
        return clean_estimate(self.output(x, t, condition), x, alpha, sigma, self.parameterisation)


def state_of(
    position: Float[Array, "*batch 3"], rotation: Float[Array, "*batch 3 3"], joints: Float[Array, "*batch J"]
) -> Float[Array, "*batch S"]:
    """The tool's state as a vector: position, 6-d rotation, hand joints. A knot of a chunk is laid out alike."""
    return jnp.concatenate([position, rotation_to_6d(jnp.asarray(rotation)), joints], axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class VisuomotorEncoder:
    """An observation to the condition of the denoiser. Chunks are given in the world's frame.

    Attributes:
      denoiser: whose network has the eyes.
      state: normalises the tool's state. features: normalises what the eyes say.
      images: (T, C, h, w, 3) of the observations it was trained on.
    """

    denoiser: ChunkDenoiser
    state: Normalizer
    features: Normalizer
    images: tuple[int, ...] = field(metadata=dict(static=True))

    def __call__(self, observation: Observation) -> Context:
        if not isinstance(observation, Observation):
            raise TypeError(f"this policy observes a diffopt.policies.Observation; got {type(observation).__name__}")
        if tuple(observation.images.shape) != self.images:
            raise ValueError(
                f"this policy takes images of shape {self.images} (moments, cameras, height, width, RGB); "
                f"got {tuple(observation.images.shape)}"
            )
        return Context(condition=_look(self, observation))


@jax.jit  # or else every operation of the convolutions would be compiled and dispatched alone
def _look(encoder: VisuomotorEncoder, observation: Observation) -> Float[Array, "T*(features+S)"]:
    state = encoder.state.normalize(state_of(observation.position, observation.rotation, observation.joints))
    seen = encoder.features.normalize(jax.vmap(encoder.denoiser.network.eyes)(observation.images, state))
    return jnp.concatenate([seen, state], axis=-1).reshape(-1)
