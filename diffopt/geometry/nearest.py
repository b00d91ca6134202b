"""Signed distances from many points to many shapes, laid out for speed.

The formula is that of `shapes.py`. Points come as three rows, so that the innermost loop runs over points and not over the three
coordinates; of every point only the nearest shape is differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffopt.geometry.shapes import Shapes


def distances(shapes: Shapes, points: Float[Array, "3 P"]) -> Float[Array, "S P"]:
    """Signed distance [m] of every point to every shape; negative inside."""
    R = shapes.rotation
    p = [points[i][None] - shapes.position[:, i, None] for i in range(3)]
    local = [sum(R[:, j, i, None] * p[j] for j in range(3)) for i in range(3)]
    half = [shapes.half[:, i, None] for i in range(3)]
    return _core(local, half, shapes.round[:, None]) - shapes.radius[:, None]


def nearest(shapes: Shapes, points: Float[Array, "3 P"], far: Float[Array, "S P"] | None = None) -> Int[Array, "P"]:
    """Index of the nearest shape of every point; `far` [m] is added to the distances first."""
    d = jax.lax.stop_gradient(distances(shapes, points))
    return jnp.argmin(d if far is None else d + far, axis=0)


def distance_to(shapes: Shapes, points: Float[Array, "3 P"], which: Int[Array, "P"]) -> Float[Array, "P"]:
    """Signed distance [m] of every point to one shape, the one at its index."""
    own = _pick(shapes, which)
    local, half, round, _ = _local(own, points)
    return _core(local, half, round) - own.radius


def distance_and_normal(
    shapes: Shapes, points: Float[Array, "3 P"], which: Int[Array, "P"]
) -> tuple[Float[Array, "P"], Float[Array, "3 P"]]:
    """As `distance_to`, with the gradient of the distance by the point: the outward unit normal (zero where there is none)."""
    own = _pick(shapes, which)
    local, half, round, R = _local(own, points)
    d = _core(local, half, round)
    # The gradient by the local coordinates, by hand: outside along max(q, 0), inside along the largest q.
    sign = [jnp.where(c >= 0, 1.0, -1.0) for c in local]
    radius = jnp.sqrt(local[0] ** 2 + local[1] ** 2 + 1e-20)
    q = [jnp.abs(c) - h for c, h in zip(local, half, strict=True)]
    radial = radius - half[0]
    qx = jnp.where(round, radial, q[0])
    qy = jnp.where(round, -jnp.inf, q[1])
    out = [jnp.maximum(qx, 0), jnp.maximum(qy, 0), jnp.maximum(q[2], 0)]
    length = jnp.sqrt(out[0] ** 2 + out[1] ** 2 + out[2] ** 2)
    largest = jnp.maximum(jnp.maximum(qx, qy), q[2])
    outside = largest > 0
    scale = 1.0 / jnp.where(outside, length, 1.0)
    first = (qx >= largest).astype(d.dtype)
    second = jnp.where(qx >= largest, 0.0, (qy >= largest).astype(d.dtype))
    third = 1.0 - first - second
    gx = jnp.where(outside, out[0] * scale, first)
    gy = jnp.where(outside, out[1] * scale, second)
    gz = jnp.where(outside, out[2] * scale, third)
    local_normal = (
        jnp.where(round, gx * local[0] / radius, gx * sign[0]),
        jnp.where(round, gx * local[1] / radius, gy * sign[1]),
        gz * sign[2],
    )
    normal = [sum(R[i][j] * local_normal[j] for j in range(3)) for i in range(3)]
    return d - own.radius, jnp.stack(normal)


def _pick(shapes: Shapes, which: Int[Array, "P"]) -> Shapes:
    return jax.tree.map(lambda leaf: leaf[which], shapes)


def _local(own: Shapes, points: Float[Array, "3 P"]):
    """Points in the frames of their own shapes, half extents, roundness and rotation, all as rows over points."""
    p = [points[i] - own.position[:, i] for i in range(3)]
    R = [[own.rotation[:, i, j] for j in range(3)] for i in range(3)]
    local = [sum(R[j][i] * p[j] for j in range(3)) for i in range(3)]
    return local, [own.half[:, i] for i in range(3)], own.round, R


def _core(local, half, round):
    """Signed distance to box or cylinder cores in their own frames, elementwise; gradients are finite everywhere."""
    q = [jnp.abs(c) - h for c, h in zip(local, half, strict=True)]
    radial = jnp.sqrt(local[0] ** 2 + local[1] ** 2 + 1e-20) - half[0]
    qx = jnp.where(round, radial, q[0])
    qy = jnp.where(round, jnp.minimum(radial, 0), q[1])
    x, y, z = jnp.maximum(qx, 0), jnp.maximum(qy, 0), jnp.maximum(q[2], 0)
    inside = jnp.minimum(jnp.maximum(jnp.maximum(qx, jnp.where(round, -jnp.inf, q[1])), q[2]), 0)
    square = x * x + y * y + z * z
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0) + inside
