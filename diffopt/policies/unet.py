"""The conditional one-dimensional UNet of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), which LeRobot uses too.

A chunk x of H steps passes blocks of width d_1 .. d_m, halved in length between them, two blocks at the bottom, and back up; all blocks
see c = (embedded diffusion step, condition) through FiLM (Perez et al. 2018, arXiv 1709.07871):

    block(x) = N2 + R x,   N1 = mish(GN(conv x)),   N2 = mish(GN(conv (gamma * N1 + beta))),   (gamma, beta) = W mish(c) + b,

with R the identity, or a linear map where the width changes. On the way up a block sees its input beside what the block of the same length
gave on the way down. As published there is one block fewer up than down: the way up ends at full length with width d_1.

Weights are laid out so that published ones map onto them one to one (`diffopt.policies.published`). The network is written for one chunk;
the condition and the step enter only small matrix products, so under `vmap` over samples of one observation their cost is paid once.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffopt.policies.layers import Conv1d, GroupNorm, Upsample, mish

_ZEROS = nnx.initializers.zeros


def _neutral(key, shape, dtype=jnp.float32, **_):
    """Biases with which FiLM begins at gamma = 1, beta = 0."""
    return jnp.concatenate([jnp.ones(shape[0] // 2, dtype), jnp.zeros(shape[0] // 2, dtype)])


class StepEmbedding(nnx.Module):
    """Sines and cosines of the diffusion step (Vaswani et al. 2017, arXiv 1706.03762), then two linear layers."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        half = size // 2
        if size % 2 or half < 2:
            raise ValueError(f"the step's embedding has {size} elements; it takes an even number of at least 4")
        self.frequencies = tuple(np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).tolist())
        self.inner = nnx.Linear(size, 4 * size, rngs=rngs)
        self.outer = nnx.Linear(4 * size, size, rngs=rngs)

    def __call__(self, step: Float[Array, ""]) -> Float[Array, "size"]:
        phase = jnp.asarray(step) * jnp.asarray(self.frequencies, jnp.float32)
        return self.outer(mish(self.inner(jnp.concatenate([jnp.sin(phase), jnp.cos(phase)]))))


class ConvBlock(nnx.Module):
    """Convolution, group norm, mish."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, *, rngs: nnx.Rngs):
        self.conv = Conv1d(inputs, outputs, kernel, rngs=rngs)
        self.norm = GroupNorm(groups, outputs)

    def __call__(self, x: Float[Array, "H in"]) -> Float[Array, "H out"]:
        return mish(self.norm(self.conv(x)))


class ResidualBlock(nnx.Module):
    """Two convolutions with FiLM between them; see the module's docstring. With `scale` false gamma is one."""

    def __init__(
        self, inputs: int, outputs: int, features: int, *, kernel: int, groups: int, scale: bool, rngs: nnx.Rngs
    ):
        self.first = ConvBlock(inputs, outputs, kernel, groups, rngs=rngs)
        self.second = ConvBlock(outputs, outputs, kernel, groups, rngs=rngs)
        self.film = nnx.Linear(
            features, 2 * outputs if scale else outputs, bias_init=_neutral if scale else _ZEROS, rngs=rngs
        )
        self.residual = None if inputs == outputs else nnx.Linear(inputs, outputs, rngs=rngs)
        self.scale = scale

    def __call__(self, x: Float[Array, "H in"], c: Float[Array, "features"]) -> Float[Array, "H out"]:
        """`c` after its mish."""
        h, modulation = self.first(x), self.film(c)
        if self.scale:
            gamma, beta = jnp.split(modulation, 2)
            h = gamma * h + beta
        else:
            h = h + modulation
        return self.second(h) + (x if self.residual is None else self.residual(x))


class ConditionalUnet1D(nnx.Module):
    """A chunk, a diffusion step and a condition to an output of the chunk's shape.

    Args:
      dim: length D of one step of the chunk.
      condition: length C of the condition; 0 for none.
      widths: channels from full length to the shortest; the horizon must be a multiple of 2^(number of widths - 1).
      kernel: places that a convolution sees; odd.
      groups: of the group norms; divides every width.
      last_groups: of the last one; published networks keep 8 there whatever the others have. By default `groups`.
      embedding: length of the step's embedding.
      film_scale: whether FiLM scales, or only shifts.
    """

    def __init__(
        self,
        *,
        dim: int,
        condition: int,
        widths: Sequence[int] = (256, 512, 1024),
        kernel: int = 5,
        groups: int = 8,
        last_groups: int | None = None,
        embedding: int = 256,
        film_scale: bool = True,
        rngs: nnx.Rngs,
    ):
        if not widths or kernel % 2 == 0:
            raise ValueError(f"widths={tuple(widths)}, kernel={kernel}: expected at least one width and an odd kernel")
        self.halvings = len(widths) - 1

        def block(inputs, outputs):
            features = embedding + condition
            return ResidualBlock(inputs, outputs, features, kernel=kernel, groups=groups, scale=film_scale, rngs=rngs)

        steps = list(zip((dim, *widths[:-1]), widths, strict=True))
        self.step = StepEmbedding(embedding, rngs=rngs)
        self.down = nnx.List([nnx.List([block(inner, outer), block(outer, outer)]) for inner, outer in steps])
        self.shorter = nnx.List([Conv1d(width, width, 3, stride=2, rngs=rngs) for width in widths[:-1]])
        self.middle = nnx.List([block(widths[-1], widths[-1]) for _ in range(2)])
        self.up = nnx.List(
            [nnx.List([block(2 * outer, inner), block(inner, inner)]) for inner, outer in reversed(steps[1:])]
        )
        self.longer = nnx.List([Upsample(width, width, rngs=rngs) for width in reversed(widths[:-1])])
        self.last = ConvBlock(widths[0], widths[0], kernel, last_groups or groups, rngs=rngs)
        self.outlet = nnx.Linear(widths[0], dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "H D"], step: Float[Array, ""], condition: Float[Array, "C"] | None = None
    ) -> Float[Array, "H D"]:
        """The output at diffusion step `step`, a number of 0 .. T - 1 as published; policies with t in [0, 1] pass 100 t or the like."""
        if x.shape[0] % 2**self.halvings:
            raise ValueError(f"a horizon of {x.shape[0]} steps cannot be halved {self.halvings} times")
        embedded = self.step(step)
        c = mish(embedded if condition is None else jnp.concatenate([embedded, condition]))
        kept = []
        for i, (first, second) in enumerate(self.down):
            x = second(first(x, c), c)
            kept.append(x)
            if i < self.halvings:
                x = self.shorter[i](x)
        for block in self.middle:
            x = block(x, c)
        for (first, second), longer in zip(self.up, self.longer, strict=True):
            x = longer(second(first(jnp.concatenate([x, kept.pop()], axis=-1), c), c))
        return self.outlet(self.last(x))
