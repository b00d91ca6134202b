"""Layers of the convolutional policies, written for one input without a batch axis; `vmap` makes the batch.

A convolution is one matrix product over unfolded windows: with w(i) the k neighbours of place i side by side,

    y_i = [x_{s i - p}, ..., x_{s i - p + k - 1}] W + b,

W of shape (k in, out). On the short horizons and small images of policies this is faster on a CPU than XLA's convolution, most of all
backwards, and a batch joins the rows of the same product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_KERNEL = nnx.initializers.lecun_normal()


def mish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x tanh(log(1 + e^x)) (Misra 2019, arXiv 1908.08681), as x n/(n + 2) with n = e^2x + 2 e^x: one exponential."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over all places and the channels of a group, then a scale and a bias for every channel."""

    def __init__(self, groups: int, channels: int, *, epsilon: float = 1e-5):
        if channels % groups:
            raise ValueError(f"{channels} channels do not split into {groups} groups")
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "*places C"]) -> Float[Array, "*places C"]:
        grouped = x.reshape(-1, self.groups, x.shape[-1] // self.groups)
        mean = jnp.mean(grouped, axis=(0, 2), keepdims=True)
        variance = jnp.mean((grouped - mean) ** 2, axis=(0, 2), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return normal.reshape(x.shape) * self.scale[...] + self.bias[...]


class Conv1d(nnx.Module):
    """Convolution along the first axis; the kernel's axes are (place, in, out)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None, rngs: nnx.Rngs
    ):
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.kernel = nnx.Param(_KERNEL(rngs.params(), (kernel, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "H in"]) -> Float[Array, "H/stride out"]:
        kernel = self.kernel[...]
        windows = unfold(x, kernel.shape[0], self.stride, self.padding) if kernel.shape[0] > 1 else x
        return windows @ kernel.reshape(-1, kernel.shape[-1]) + self.bias[...]


class Upsample(nnx.Module):
    """The transposed convolution with kernel 4, stride 2 and padding 1, which doubles the length; the kernel's axes are (place, in, out).

    y_2i = x_i W_1 + x_{i-1} W_3 and y_2i+1 = x_i W_2 + x_{i+1} W_0.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_KERNEL(rngs.params(), (4, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "H in"]) -> Float[Array, "2*H out"]:
        kernel = self.kernel[...]
        none = jnp.zeros_like(x[:1])
        before, after = jnp.concatenate([none, x[:-1]]), jnp.concatenate([x[1:], none])
        even = jnp.concatenate([x, before], axis=-1) @ jnp.concatenate([kernel[1], kernel[3]])
        odd = jnp.concatenate([x, after], axis=-1) @ jnp.concatenate([kernel[2], kernel[0]])
        return jnp.stack([even, odd], axis=1).reshape(2 * x.shape[0], -1) + self.bias[...]


class Conv2d(nnx.Module):
    """Convolution over the first two axes; the kernel's axes are (row, column, in, out)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        self.kernel = nnx.Param(_KERNEL(rngs.params(), (kernel, kernel, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "h w in"]) -> Float[Array, "h/stride w/stride out"]:
        kernel = self.kernel[...]
        side = kernel.shape[0]
        rows = unfold(x, side, self.stride, self.padding)  # (h', w, side * in)
        windows = unfold(rows.swapaxes(0, 1), side, self.stride, self.padding).swapaxes(
            0, 1
        )  # columns first, then rows
        weight = kernel.swapaxes(0, 1).reshape(-1, kernel.shape[-1])
        y = windows @ weight
        return y if self.bias is None else y + self.bias[...]


def unfold(
    x: Float[Array, "H *rest C"], kernel: int, stride: int, padding: int
) -> Float[Array, "H/stride *rest kernel*C"]:
    """The windows of `kernel` neighbours along the first axis, zero beyond its ends, side by side in the last axis."""
    count = (x.shape[0] + 2 * padding - kernel) // stride + 1
    padded = jnp.pad(x, [(padding, padding)] + [(0, 0)] * (x.ndim - 1))
    span = stride * (count - 1) + 1
    return jnp.concatenate([jax.lax.slice_in_dim(padded, i, i + span, stride) for i in range(kernel)], axis=-1)
