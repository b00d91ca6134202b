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


def nearest(
    shapes: Shapes, points: Float[Array, "3 P"], far: Float[Array, "S P"] | None = None
) -> tuple[Int[Array, "P"], Float[Array, "P"]]:
    """Index of the nearest shape of every point, and the distance to it [m], not differentiable.

    `far` [m] is added to the distances first. One shape after the other: a reduction over all would be many times slower, as
    the compiler then neither vectorises it nor keeps what it has computed.
    """
    points = jax.lax.stop_gradient(points)
    shapes, far = jax.lax.stop_gradient((shapes, far))
    count = shapes.radius.shape[0]
    if count == 0:
        raise ValueError("no shapes to be near to")

    def step(best, item):
        index, shape, more = item
        d = _one(shape, points) if more is None else _one(shape, points) + more
        closer = d < best[1]
        return (jnp.where(closer, index, best[0]), jnp.where(closer, d, best[1])), None

    start = jnp.zeros(points.shape[1], jnp.int32), jnp.full(points.shape[1], jnp.inf, points.dtype)
    return jax.lax.scan(step, start, (jnp.arange(count), shapes, far))[0]


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


def _one(shape: Shapes, points: Float[Array, "3 P"]) -> Float[Array, "P"]:
    """Signed distance of every point to a single shape (without a leading axis)."""
    p = [points[i] - shape.position[i] for i in range(3)]
    local = [sum(shape.rotation[j, i] * p[j] for j in range(3)) for i in range(3)]
    return _core(local, [shape.half[i] for i in range(3)], shape.round) - shape.radius


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
