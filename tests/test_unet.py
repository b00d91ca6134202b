"""The convolutional networks: their layers against XLA's convolutions, their shapes and sizes, and that a batch is a map over one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffopt.policies.layers import Conv1d, Conv2d, GroupNorm, Upsample, mish
from diffopt.policies.unet import ConditionalUnet1D
from diffopt.policies.vision import ConvEncoder, keypoints


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def size(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 1, None), (3, 2, 1), (1, 1, 0), (4, 2, 1)])
def test_convolutions_are_those_of_xla(kernel, stride, padding):
    pad = kernel // 2 if padding is None else padding
    for count, conv, axes in ((1, Conv1d, ("NHC", "HIO", "NHC")), (2, Conv2d, ("NHWC", "HWIO", "NHWC"))):
        layer = conv(3, 4, kernel, stride=stride, padding=padding, rngs=nnx.Rngs(0))
        layer.bias[...] = jnp.arange(4.0)
        x = normal(*(8, 6)[:count], 3)
        expected = jax.lax.conv_general_dilated(
            x[None], layer.kernel[...], (stride,) * count, [(pad, pad)] * count, dimension_numbers=axes
        )[0]
        np.testing.assert_allclose(layer(x), expected + jnp.arange(4.0), atol=1e-5)


def test_upsampling_is_the_adjoint_of_a_strided_convolution():
    """Of the one with kernel 4, stride 2, padding 1, by definition of a transposed convolution."""
    layer = Upsample(3, 5, rngs=nnx.Rngs(0))
    x, y = normal(6, 3), normal(12, 5, seed=1)
    kernel = layer.kernel[...].swapaxes(1, 2)  # (place, in, out) of the strided one, from 5 to 3 channels
    forward = jax.lax.conv_general_dilated(y[None], kernel, (2,), [(1, 1)], dimension_numbers=("NHC", "HIO", "NHC"))[0]
    np.testing.assert_allclose(jnp.vdot(layer(x), y), jnp.vdot(x, forward), rtol=1e-5)


def test_group_norm_and_mish():
    x = 3 + 2 * normal(7, 12)
    y = GroupNorm(3, 12)(x).reshape(7, 3, 4)
    np.testing.assert_allclose(y.mean((0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(y.std((0, 2)), 1, atol=1e-4)
    z = jnp.linspace(-90, 90, 500)
    np.testing.assert_allclose(mish(z), z * jnp.tanh(jax.nn.softplus(z)), atol=1e-6, rtol=1e-5)
    assert np.isfinite(jax.vmap(jax.grad(mish))(z)).all()


def test_small_ones_stay_small():
    for widths in ((64, 96), (48, 96)):
        network = nnx.eval_shape(
            lambda w=widths: ConditionalUnet1D(dim=10, condition=128, widths=w, embedding=64, rngs=nnx.Rngs(0))
        )
        assert 5e5 < size(network) < 1e6
    assert size(nnx.eval_shape(lambda: ConvEncoder(rngs=nnx.Rngs(0)))) < 3e4


@pytest.mark.parametrize(
    ("widths", "condition", "film_scale"),
    [pytest.param((8, 8, 16), 5, True, marks=pytest.mark.slow), ((8, 16), 0, False)],
)
def test_a_batch_is_a_map_over_one(widths, condition, film_scale):
    network = ConditionalUnet1D(
        dim=3, condition=condition, widths=widths, groups=4, embedding=8, film_scale=film_scale, rngs=nnx.Rngs(0)
    )
    x, step, c = normal(4, 16, 3), jnp.arange(4.0) * 30, normal(4, condition, seed=1)
    many = jax.jit(lambda *inputs: jax.vmap(network)(*inputs))
    batch = many(x, step, c)
    assert batch.shape == x.shape
    if film_scale:
        one = jax.jit(lambda *inputs: network(*inputs))
        np.testing.assert_allclose(batch[2], one(x[2], step[2], c[2]), atol=1e-5)
    assert np.abs(batch - many(x, step + 20, c)).max() > 1e-3
    if condition:
        assert np.abs(batch - many(x, step, -c)).max() > 1e-3


def test_a_horizon_that_cannot_be_halved_is_refused():
    network = ConditionalUnet1D(dim=3, condition=0, widths=(8, 8, 8), embedding=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="10 steps cannot be halved 2 times"):
        network(jnp.zeros((10, 3)), jnp.zeros(()))


def test_keypoints_are_where_the_maps_peak():
    maps = jnp.zeros((9, 5, 2)).at[0, 4, 0].set(50.0).at[6, 2, 1].set(50.0)
    np.testing.assert_allclose(keypoints(maps), [[1, -1], [0, 0.5]], atol=1e-6)


@pytest.mark.slow
def test_encoder_takes_images_of_any_size_and_of_both_kinds():
    encoder = ConvEncoder(features=6, channels=(8, 8), rngs=nnx.Rngs(0))
    image = jax.random.randint(jax.random.key(0), (20, 32, 3), 0, 256).astype(jnp.uint8)
    encode = jax.jit(lambda image: encoder(image))
    features = encode(image)
    assert features.shape == (6,)
    np.testing.assert_allclose(encode(image.astype(jnp.float32) / 255), features, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda image: jax.vmap(encoder)(image))(image[None])[0], features, atol=1e-5)
    assert encode(image[:16, :16]).shape == (6,)
    with pytest.raises(ValueError, match=r"\(h, w, 3\)"):
        encoder(jnp.zeros((3, 8, 8)))
