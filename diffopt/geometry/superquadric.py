"""Superquadrics: a smooth family from ellipsoids to rounded boxes and rounded cylinders.

With semi-axes a and exponents e = (e1, e2) the inside-outside function

    F(p) = ((|x/a1|^(2/e2) + |y/a2|^(2/e2))^(e2/e1) + |z/a3|^(2/e1))^(e1/2)

is homogeneous of degree one, and F = 1 on the surface (Barr 1981). The distance used here is exact to first order (Taubin 1991),

    d(p) = (F(p) - 1) / |grad F(p)|,

which is exact for a sphere. Exponents of 1 give an ellipsoid; towards 0 the shape turns into a box.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_TINY = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Superquadric:
    """One superquadric in its own frame: semi-axes [m] and exponents (e1: profile along z, e2: section), both in (0, 1]."""

    axes: Float[Array, "3"]
    exponents: Float[Array, "2"]

    def distance(self, point: Float[Array, "3"]) -> Float[Array, ""]:
        """Signed distance [m] to first order; negative inside."""
        value, gradient = jax.value_and_grad(inside_outside)(point, self.axes, self.exponents)
        return (value - 1.0) / jnp.sqrt(jnp.sum(gradient**2) + 1e-12)


def inside_outside(point: Float[Array, "3"], axes: Float[Array, "3"], exponents: Float[Array, "2"]) -> Float[Array, ""]:
    """F(p): below one inside, one on the surface, above one outside; its gradient is finite everywhere but at the centre."""
    e1, e2 = exponents[0], exponents[1]
    x, y, z = jnp.abs(point / axes) + _TINY
    scale = jnp.maximum(jnp.maximum(x, y), z)  # homogeneous: dividing by the largest keeps the powers in range
    x, y, z = x / scale, y / scale, z / scale
    section = (x ** (2 / e2) + y ** (2 / e2)) ** (e2 / e1)
    return scale * (section + z ** (2 / e1)) ** (e1 / 2)


def surface_points(axes, exponents, directions: np.ndarray) -> np.ndarray:
    """Points of the surface along `directions` (n, 3) from the centre [m]."""
    axes, (e1, e2) = np.asarray(axes, float), exponents
    p = np.abs(directions * axes) / axes + 1e-12  # spread the directions with the axes
    section = (p[:, 0] ** (2 / e2) + p[:, 1] ** (2 / e2)) ** (e2 / e1)
    value = (section + p[:, 2] ** (2 / e1)) ** (e1 / 2)
    return directions * axes / value[:, None]


def hull_vertices(axes, exponents, n: int = 180) -> np.ndarray:
    """`n` surface points (n, 3) [m] whose convex hull stands for the superquadric in a physics engine."""
    if n > 200:
        raise ValueError(f"{n} vertices asked for; MJX takes at most 200 per convex mesh")
    i = np.arange(n) + 0.5
    z = 1 - 2 * i / n
    angle = np.pi * (1 + 5**0.5) * i
    directions = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    return surface_points(axes, exponents, directions)
