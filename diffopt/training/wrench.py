"""The lower level of grasp synthesis: which contact forces balance an external wrench.

For contacts i with inward normal n_i and tangents, the friction cone of coefficient mu is replaced by 8 edges, so that forces are
non-negative combinations p of the columns of the grasp map G (6 x 8F; force in the first three rows, torque over the object's size in
the others). For an external wrench t,

    minimise_p  |G p + k t|^2 + r |p|^2     subject to   0 <= p <= 1,   sum of the thumb's p >= 1/2,   sum of the others' p >= 2/5,

a strictly convex quadratic program (the lower level of BODex, Chen et al. 2024, arXiv 2412.16490, with small mu as a margin). It is
solved by projected gradient steps of length 1/L with Nesterov's momentum, restarted at every call and warm-started by the caller;
the projection is exact: each group is clipped after a shift found by Newton's method on a piecewise linear function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

EDGES = 8
THUMB_SHARE, OTHER_SHARE = 0.5, 0.4
REGULARISATION = 0.01


def grasp_map(
    points: Float[Array, "F 3"],
    normals: Float[Array, "F 3"],
    center: Float[Array, "3"],
    size: Float[Array, ""],
    friction: float,
) -> Float[Array, "6 F*8"]:
    """Wrench of unit steps along the cone edges of every contact.

    Args:
      points: contacts [m].
      normals: unit normals into the object.
      center: reference of the torques [m]; size: length by which torques are divided [m].
    """
    helper = jnp.where(jnp.abs(normals[:, :1]) < 0.7, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
    first = jnp.cross(normals, helper)
    first = first / (jnp.linalg.norm(first, axis=-1, keepdims=True) + 1e-9)
    second = jnp.cross(normals, first)
    angle = 2 * np.pi * np.arange(EDGES) / EDGES
    c, s = np.cos(angle)[:, None].astype(np.float32), np.sin(angle)[:, None].astype(np.float32)
    forces = normals[:, None] + friction * (c * first[:, None] + s * second[:, None])
    torques = jnp.cross((points - center)[:, None] / size, forces)
    return jnp.concatenate([forces, torques], axis=-1).reshape(-1, 6).T


def project(p: Float[Array, "F 8"], active: Float[Array, "F"], newton: int = 6) -> Float[Array, "F 8"]:
    """The nearest feasible point; the last contact is the thumb's, and contacts with active = 0 carry nothing.

    `newton` steps find the shifts; two are nearly always enough from a warm start.
    """
    upper = jnp.broadcast_to(active[:, None], p.shape)
    others = _fill(p[:-1], upper[:-1], OTHER_SHARE, newton)
    return jnp.concatenate([others, _fill(p[-1:], upper[-1:], THUMB_SHARE, newton)])


def _fill(p, upper, least, newton):
    """Projection onto 0 <= p <= upper with sum >= least: clip(p + shift) with the smallest shift >= 0 that reaches the sum."""
    shift = jnp.zeros(())
    for _ in range(newton):
        value = jnp.clip(p + shift, 0, upper)
        free = jnp.sum((p + shift >= 0) & (p + shift < upper))
        gap = jnp.maximum(least - jnp.sum(value), 0)
        # With no free coordinate the next one comes in where p + shift = 0: jump there.
        step = jnp.where(
            free > 0,
            gap / jnp.maximum(free, 1),
            jnp.where(gap > 0, -jnp.max(jnp.where(upper > 0, p + shift, -jnp.inf)) + 1e-6, 0),
        )
        shift = shift + jnp.where(gap > 0, step, 0)
    return jnp.clip(p + shift, 0, upper)


def balance(
    G: Float[Array, "6 F*8"],
    wrenches: Float[Array, "W 6"],
    active: Float[Array, "F"],
    warm: Float[Array, "W F 8"],
    iterations: int,
    newton: int = 6,
) -> Float[Array, "W F 8"]:
    """Solutions p of the program for every external wrench (k t above), started from `warm`."""
    fingers = active.shape[0]
    gram = G @ G.T
    step = 1.0 / (jnp.sqrt(jnp.sum(gram**2)) + REGULARISATION)
    onto = jax.vmap(lambda q, a: project(q, a, newton), in_axes=(0, None))

    def body(carry, i):
        p, previous = carry
        y = p + i / (i + 3.0) * (p - previous)
        flat = y.reshape(y.shape[0], -1)
        gradient = (flat @ G.T + wrenches) @ G + REGULARISATION * flat
        return (onto((flat - step * gradient).reshape(-1, fingers, EDGES), active), p), None

    (p, _), _ = jax.lax.scan(body, (warm, warm), jnp.arange(iterations, dtype=jnp.float32), unroll=min(iterations, 4))
    return p


def residual(G, p: Float[Array, "W F 8"], wrenches: Float[Array, "W 6"]) -> Float[Array, "W"]:
    """|G p + k t|^2 of every wrench."""
    return jnp.sum((p.reshape(p.shape[0], -1) @ G.T + wrenches) ** 2, axis=-1)
