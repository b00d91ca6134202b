"""Images to features: a few convolutions, then the expected place of every channel (spatial softmax), then a linear layer.

With a_k the last layer's map of channel k, p_k = sum_uv softmax(a_k)_uv (x_uv, y_uv) over places in [-1, 1]^2 (Levine et al. 2016,
arXiv 1504.00702; Finn et al. 2016, arXiv 1509.06113): few numbers that say where things are.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from diffopt.policies.layers import Conv2d, GroupNorm, mish


def keypoints(maps: Float[Array, "h w K"]) -> Float[Array, "K 2"]:
    """Expected (x, y) of every map under its softmax: x to the right, y down, the centres of the outermost pixels at -1 and 1."""
    h, w, count = maps.shape
    weight = jax.nn.softmax(maps.reshape(h * w, count), axis=0)
    x, y = np.meshgrid(np.linspace(-1.0, 1.0, w), np.linspace(-1.0, 1.0, h))
    places = np.stack([x.reshape(-1), y.reshape(-1)], axis=-1).astype(np.float32)
    return weight.T @ places


class ConvEncoder(nnx.Module):
    """The encoder of small policies: convolutions of stride 2, one keypoint for every channel of the last, a linear layer.

    Args:
      features: length of the result.
      channels: of every convolution; each halves the image.
      kernel: side of the convolutions.
      groups: of the group norms; divides every width.
    """

    def __init__(
        self,
        *,
        features: int = 64,
        channels: Sequence[int] = (16, 32, 32),
        kernel: int = 3,
        groups: int = 8,
        rngs: nnx.Rngs,
    ):
        pairs = list(zip((3, *channels[:-1]), channels, strict=True))
        self.convolutions = nnx.List([Conv2d(i, o, kernel, stride=2, rngs=rngs) for i, o in pairs])
        self.norms = nnx.List([GroupNorm(groups, outputs) for _, outputs in pairs[:-1]])
        self.outlet = nnx.Linear(2 * channels[-1], features, rngs=rngs)

    def __call__(self, image: Shaped[Array, "h w 3"]) -> Float[Array, "features"]:
        """Features of an image, uint8 or float in [0, 1]."""
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"an image has shape (h, w, 3); got {image.shape}")
        x = image.astype(jnp.float32) / (255.0 if jnp.issubdtype(image.dtype, jnp.integer) else 1.0)
        x = 2 * x - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            x = mish(norm(convolution(x)))
        return self.outlet(keypoints(self.convolutions[-1](x)).reshape(-1))
