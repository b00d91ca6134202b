"""What is computed has to be right before anything else can be."""

import jax
import jax.numpy as jnp
import numpy as np


def test_derivatives_of_many_paths_at_once_are_those_of_one():
    """jaxlib 0.10.2 has them wrong on CPUs from the fifth path on (github.com/jax-ml/jax/issues/39103), and is not used."""
    paths = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64, 2)), jnp.float32)

    def rates(path):
        lengths = jax.jacfwd(lambda x: jnp.sqrt(jnp.sum(jnp.diff(x, axis=0) ** 2, axis=-1) + 1e-12))
        return lengths(path).reshape(63, 128)

    one = np.stack([rates(path) for path in paths])
    np.testing.assert_allclose(jax.jit(jax.vmap(rates))(paths), one, atol=1e-5)
