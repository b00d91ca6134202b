"""Distances from many points to everything at once: primitive shapes and fields."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.geometry.field import Field
from diffopt.geometry.nearest import distance_and_normal, nearest
from diffopt.geometry.shapes import Shapes


def clearance(
    shapes: Shapes, fields: tuple[Field, ...], points: Float[Array, "3 P"]
) -> tuple[Float[Array, "P"], Float[Array, "3 P"]]:
    """Signed distance [m] to whatever is nearest, of fields a lower bound, and its gradient by the points.

    The distance is differentiable, too; what of the two is not used is not computed under `jit`.
    """
    d, gradient = jnp.full(points.shape[1], jnp.inf), jnp.zeros(points.shape)
    if len(shapes):
        d, gradient = distance_and_normal(shapes, points, nearest(shapes, points)[0])
    for one in fields:
        other, slope = one.distance_and_gradient(points)
        closer = other < d
        d, gradient = jnp.where(closer, other, d), jnp.where(closer, slope, gradient)
    return d, gradient
