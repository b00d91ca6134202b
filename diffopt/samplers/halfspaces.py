"""The nearest point in an intersection of half-spaces, with or without slack: the quadratic program of the barrier methods.

    minimise 1/2 |d - u|^2 + 1/2 |s|^2    subject to   A d + slack s >= b

by Hildreth's method (1957): coordinate ascent on the dual, one multiplier after the other,

    lambda_i <- max(0, lambda_i + (b_i - a_i.d - slack^2 lambda_i) / (|a_i|^2 + slack^2)),      d = u + A' lambda.

One half-space is solved exactly by its first pass; several by enough `sweeps` of all of them. It never fails: where the half-spaces
have no point in common, d is as far as the sweeps have come.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def nearest(
    u: Float[Array, "n"], A: Float[Array, "m n"], b: Float[Array, "m"], slack: Any = 0.0, sweeps: int = 8
) -> Float[Array, "n"]:
    """See the module's docstring; rows of zeros ask for nothing."""
    squares = jnp.sum(A**2, axis=1)

    def row(d, step):
        a, b, square, multiplier = step
        wanted = multiplier + (b - a @ d - slack**2 * multiplier) / jnp.where(square > 0, square + slack**2, 1.0)
        new = jnp.where(square > 0, jnp.maximum(wanted, 0), 0.0)
        return d + (new - multiplier) * a, new

    def sweep(state, _):
        d, multipliers = state
        return jax.lax.scan(row, d, (A, b, squares, multipliers)), None

    return jax.lax.scan(sweep, (u, jnp.zeros_like(b)), length=sweeps)[0][0]
