"""A small transformer over the steps of a chunk, after Diffusion Policy's (Chi et al. 2023, arXiv 2303.04137).

The H steps are tokens; the diffusion step and the K parts of the condition are tokens of a memory, mapped by two linear layers. Each layer
adds to the chunk's tokens h, in this order and each of its layer norm (Xiong et al. 2020, arXiv 2002.04745),

    attention among them, attention to the memory, two linear layers with gelu between,

with attention(q, k, v) = softmax(q k^T / sqrt(d)) v for every head (Vaswani et al. 2017, arXiv 1706.03762). With `causal` a step sees only
those before it. Places are learned. It takes the same arguments as `diffopt.policies.unet.ConditionalUnet1D`; under `vmap` over samples of
one observation the memory's keys and values are computed once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffopt.policies.layers import mish
from diffopt.policies.unet import StepEmbedding

_PLACES = nnx.initializers.normal(0.02)


class Attention(nnx.Module):
    """From tokens to tokens, with `heads` heads."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"a width of {width} does not split into {heads} heads")
        self.query, self.outlet = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.key, self.value = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(
        self, to: Float[Array, "H width"], source: Float[Array, "K width"], causal: bool = False
    ) -> Float[Array, "H width"]:
        q, k, v = (
            layer(x).reshape(x.shape[0], self.heads, -1)
            for layer, x in ((self.query, to), (self.key, source), (self.value, source))
        )
        score = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        if causal:
            score = jnp.where(np.tri(*score.shape[1:]).astype(bool), score, -jnp.inf)
        return self.outlet(jnp.einsum("hqk,khd->qhd", jax.nn.softmax(score, axis=-1), v).reshape(to.shape))


class Layer(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(3)])
        self.among, self.to_memory = Attention(width, heads, rngs=rngs), Attention(width, heads, rngs=rngs)
        self.inner, self.outer = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(
        self, h: Float[Array, "H width"], memory: Float[Array, "K width"], causal: bool
    ) -> Float[Array, "H width"]:
        first, second, third = self.norms
        normed = first(h)
        h = h + self.among(normed, normed, causal)
        h = h + self.to_memory(second(h), memory)
        return h + self.outer(jax.nn.gelu(self.inner(third(h))))


class ChunkTransformer(nnx.Module):
    """A chunk, a diffusion step and a condition to an output of the chunk's shape.

    Args:
      dim: length D of one step of the chunk.
      horizon: number H of steps.
      condition: length C of the condition.
      tokens: number K of equal parts that the condition is cut into, such as one for every observed step.
      width: of the tokens.
      layers, heads: how many.
      causal: whether a step sees only those before it, as published.
    """

    def __init__(
        self,
        *,
        dim: int,
        horizon: int,
        condition: int,
        tokens: int = 1,
        width: int = 112,
        layers: int = 3,
        heads: int = 4,
        causal: bool = True,
        rngs: nnx.Rngs,
    ):
        if condition % tokens:
            raise ValueError(f"a condition of {condition} numbers cannot be cut into {tokens} equal parts")
        self.tokens, self.causal = tokens, causal
        self.step = StepEmbedding(width, rngs=rngs)
        self.seen = nnx.Linear(condition // tokens, width, rngs=rngs)
        self.memory_places = nnx.Param(_PLACES(rngs.params(), (1 + tokens, width)))
        self.memory_inner, self.memory_outer = (
            nnx.Linear(width, 4 * width, rngs=rngs),
            nnx.Linear(4 * width, width, rngs=rngs),
        )
        self.inlet = nnx.Linear(dim, width, rngs=rngs)
        self.places = nnx.Param(_PLACES(rngs.params(), (horizon, width)))
        self.layers = nnx.List([Layer(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.outlet = nnx.Linear(width, dim, rngs=rngs)

    def __call__(
        self, x: Float[Array, "H D"], step: Float[Array, ""], condition: Float[Array, "C"]
    ) -> Float[Array, "H D"]:
        """The output at diffusion step `step`, a number of 0 .. T - 1; policies with t in [0, 1] pass 100 t or the like."""
        if x.shape[0] != self.places.shape[0]:
            raise ValueError(f"a chunk of {x.shape[0]} steps; this network was made for {self.places.shape[0]}")
        seen = self.seen(condition.reshape(self.tokens, -1))
        memory = jnp.concatenate([self.step(step)[None], seen]) + self.memory_places[...]
        memory = self.memory_outer(mish(self.memory_inner(memory)))
        h = self.inlet(x) + self.places[...]
        for layer in self.layers:
            h = layer(h, memory, self.causal)
        return self.outlet(self.norm(h))
