"""The transformer over chunks: attention against its formula, what sees what, its size, and that a batch is a map over one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffopt.policies.transformer import Attention, ChunkTransformer


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_attention_is_a_weighted_mean_of_values():
    layer = Attention(6, 2, rngs=nnx.Rngs(0))
    to, source = np.asarray(normal(3, 6)), np.asarray(normal(4, 6, seed=1))
    q, k, v = (
        x @ np.asarray(f.kernel[...]) for f, x in ((layer.query, to), (layer.key, source), (layer.value, source))
    )
    mixed = []
    for head in (slice(0, 3), slice(3, 6)):
        weight = np.exp(q[:, head] @ k[:, head].T / np.sqrt(3))
        mixed.append(weight / weight.sum(1, keepdims=True) @ v[:, head])
    expected = np.concatenate(mixed, axis=1) @ np.asarray(layer.outlet.kernel[...])
    np.testing.assert_allclose(jax.jit(lambda a, b: layer(a, b))(to, source), expected, atol=1e-5)
    with pytest.raises(ValueError, match="6 does not split into 4 heads"):
        Attention(6, 4, rngs=nnx.Rngs(0))


def test_what_sees_what():
    """A batch equals a loop; a step sees no later one; the diffusion step and every part of the condition count."""
    sizes = dict(dim=3, horizon=8, condition=6, tokens=2, width=16, layers=1, heads=2)
    network = ChunkTransformer(**sizes, rngs=nnx.Rngs(0))
    x, c = normal(2, 8, 3), normal(2, 6, seed=1)
    one = jax.jit(lambda *inputs: network(*inputs))
    reference = one(x[0], jnp.float32(3), c[0])
    batch = jax.jit(lambda *inputs: jax.vmap(network)(*inputs))(x, jnp.array([3.0, 50.0]), c)
    assert batch.shape == x.shape
    np.testing.assert_allclose(batch[0], reference, atol=1e-5)

    def moved(*inputs):
        return np.abs(one(*inputs) - reference).max(axis=1)

    later = moved(x[0].at[5].add(1.0), jnp.float32(3), c[0])
    np.testing.assert_allclose(later[:5], 0, atol=1e-6)
    assert later[5:].min() > 1e-3
    assert moved(x[0], jnp.float32(4), c[0]).min() > 1e-4
    for part in (0, 3):
        assert moved(x[0], jnp.float32(3), c[0].at[part].add(1.0)).min() > 1e-4
    with pytest.raises(ValueError, match="7 steps; this network was made for 8"):
        network(x[0, :7], jnp.float32(3), c[0])


def test_its_default_is_small():
    network = nnx.eval_shape(lambda: ChunkTransformer(dim=10, horizon=16, condition=256, tokens=2, rngs=nnx.Rngs(0)))
    assert 8e5 < sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network))) < 1e6
