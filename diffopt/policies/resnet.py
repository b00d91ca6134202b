"""Residual networks for images (He et al. 2016, arXiv 1512.03385) with torchvision's layout, for published image policies.

A stem of stride 4, then four stages of blocks, each after the first of half the size: 18 and 34 with blocks of two 3 x 3 convolutions,
50, 101 and 152 with bottlenecks (1 x 1, 3 x 3 that carries the stride, 1 x 1 of four times the width). Every convolution is followed by a
norm: batch norm as it is at evaluation, or group norm with 16 channels a group. Written for one image; `vmap` makes the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffopt.policies.layers import Conv2d, GroupNorm
from diffopt.policies.vision import keypoints

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_PLAIN = ("resnet18", "resnet34")
_GROUP = 16  # channels of a group


class BatchNorm(nnx.Module):
    """Batch norm at evaluation: (x - mean)/sqrt(variance + epsilon) with the averages of training, then scale and bias."""

    def __init__(self, channels: int, *, epsilon: float = 1e-5):
        self.epsilon = epsilon
        self.mean, self.bias = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.zeros(channels))
        self.variance, self.scale = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*places C"]) -> Float[Array, "*places C"]:
        factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + self.epsilon)
        return (x - self.mean[...]) * factor + self.bias[...]


def _norm(channels: int, group_norm: bool) -> GroupNorm | BatchNorm:
    return GroupNorm(channels // _GROUP, channels) if group_norm else BatchNorm(channels)


class Block(nnx.Module):
    """relu(f(x) + shortcut(x)) with f convolutions, each with its norm, and relu between them.

    Args:
      inputs: channels that come in.
      layers: (channels, kernel, stride) of every convolution.
    """

    def __init__(self, inputs: int, layers: tuple[tuple[int, int, int], ...], *, group_norm: bool, rngs: nnx.Rngs):
        sizes = [inputs, *(channels for channels, _, _ in layers)]
        self.convolutions = nnx.List(
            [
                Conv2d(size, channels, kernel, stride=stride, bias=False, rngs=rngs)
                for size, (channels, kernel, stride) in zip(sizes, layers, strict=False)
            ]
        )
        self.norms = nnx.List([_norm(channels, group_norm) for channels, _, _ in layers])
        stride = max(stride for _, _, stride in layers)
        changes = stride > 1 or inputs != sizes[-1]
        self.shortcut = Conv2d(inputs, sizes[-1], 1, stride=stride, bias=False, rngs=rngs) if changes else None
        self.shortcut_norm = _norm(sizes[-1], group_norm) if changes else None

    def __call__(self, x: Float[Array, "h w in"]) -> Float[Array, "h/stride w/stride out"]:
        kept = x if self.shortcut is None or self.shortcut_norm is None else self.shortcut_norm(self.shortcut(x))
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(jax.nn.relu(x) if i else x))
        return jax.nn.relu(x + kept)


class ResNet(nnx.Module):
    """An image to maps of 1/32 of its size; `channels` of them."""

    def __init__(self, name: str, *, group_norm: bool, rngs: nnx.Rngs):
        if name not in DEPTHS:
            raise ValueError(f"no backbone {name!r}; there are: {', '.join(DEPTHS)}")
        self.inlet = Conv2d(3, 64, 7, stride=2, bias=False, rngs=rngs)
        self.norm = _norm(64, group_norm)
        stages, inputs = [], 64
        for stage, depth in enumerate(DEPTHS[name]):
            width, blocks = 64 * 2**stage, []
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                plain = ((width, 3, stride), (width, 3, 1))
                layers = plain if name in _PLAIN else ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
                blocks.append(Block(inputs, layers, group_norm=group_norm, rngs=rngs))
                inputs = layers[-1][0]
            stages.append(nnx.List(blocks))
        self.stages, self.channels = nnx.List(stages), inputs

    def __call__(self, image: Float[Array, "h w 3"]) -> Float[Array, "h/32 w/32 channels"]:
        x = jax.nn.relu(self.norm(self.inlet(image)))
        x = jax.lax.reduce_window(
            x, 0.0, jax.lax.max, (3, 3, 1), (2, 2, 1), [(1, 1), (1, 1), (0, 0)]
        )  # nothing is below 0
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
        return x


class ResNetEncoder(nnx.Module):
    """A residual network, a linear map to `count` maps, their keypoints, and a linear layer with relu: 2 `count` features."""

    def __init__(self, name: str, *, count: int, group_norm: bool, rngs: nnx.Rngs):
        self.backbone = ResNet(name, group_norm=group_norm, rngs=rngs)
        self.maps = Conv2d(self.backbone.channels, count, 1, rngs=rngs)
        self.outlet = nnx.Linear(2 * count, 2 * count, rngs=rngs)

    def __call__(self, image: Float[Array, "h w 3"]) -> Float[Array, "2*count"]:
        return jax.nn.relu(self.outlet(keypoints(self.maps(self.backbone(image))).reshape(-1)))
