"""Signed distances of primitive shapes, exact and differentiable.

Sphere, capsule and box are one family: a core box with half extents h (some of them zero), grown by a radius r. In the shape's own frame

    d(p) = |max(q, 0)| + min(max(q_1, q_2, q_3), 0) - r,          q = |p| - h,

and a cylinder of radius R and half length l is the same with q = (|p_xy| - R, |p_z| - l) in two dimensions. Shapes are data: a scene with
other sizes or poses, but as many shapes, does not retrace.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A set of S shapes in one common frame.

    Attributes:
      half: half extents of the core [m]; for a cylinder (radius, radius, half length).
      radius: growth of the core [m] (the radius of spheres and capsules; rounds the edges of boxes and cylinders).
      round: whether the core is a cylinder about its z axis instead of a box.
      position: centres [m].
      rotation: rotation matrices from shape to common frame.
    """

    half: Float[Array, "S 3"]
    radius: Float[Array, "S"]
    round: Bool[Array, "S"]
    position: Float[Array, "S 3"]
    rotation: Float[Array, "S 3 3"]

    def __len__(self) -> int:
        return self.radius.shape[-1]

    def __or__(self, other: Shapes) -> Shapes:
        """Both sets together."""
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=0), self, other)

    def distance(self, point: Float[Array, "3"]) -> Float[Array, "S"]:
        """Signed distance [m] from `point` to every shape; negative inside."""
        p = jnp.einsum("sji,sj->si", self.rotation, point - self.position)
        return _core_distance(p, self.half, self.round) - self.radius

    def transform(self, position: Float[Array, "3"], rotation: Float[Array, "3 3"]) -> Shapes:
        """The shapes moved by x -> rotation x + position."""
        return Shapes(
            half=self.half,
            radius=self.radius,
            round=self.round,
            position=self.position @ rotation.T + position,
            rotation=rotation @ self.rotation,
        )

    @staticmethod
    def none() -> Shapes:
        """An empty set."""
        zero = jnp.zeros
        return Shapes(
            half=zero((0, 3)), radius=zero(0), round=zero(0, bool), position=zero((0, 3)), rotation=zero((0, 3, 3))
        )


def _one(half, radius, round, position, rotation) -> Shapes:
    return Shapes(
        half=jnp.asarray(half, jnp.float32).reshape(1, 3),
        radius=jnp.asarray(radius, jnp.float32).reshape(1),
        round=jnp.asarray([round]),
        position=jnp.asarray(position, jnp.float32).reshape(1, 3),
        rotation=(jnp.eye(3) if rotation is None else jnp.asarray(rotation, jnp.float32)).reshape(1, 3, 3),
    )


def sphere(radius, position=(0.0, 0.0, 0.0)) -> Shapes:
    """A ball of `radius` [m]."""
    return _one((0.0, 0.0, 0.0), radius, False, position, None)


def capsule(radius, half_length, position=(0.0, 0.0, 0.0), rotation=None) -> Shapes:
    """A capsule along its z axis: `radius` and `half_length` of the segment [m], as in MuJoCo."""
    return _one(jnp.stack([0.0, 0.0, jnp.asarray(half_length)]), radius, False, position, rotation)


def box(half, position=(0.0, 0.0, 0.0), rotation=None, rounding=0.0) -> Shapes:
    """A box of half extents `half` [m]; with `rounding` its edges are rounded by that radius, inside the same extents."""
    return _one(jnp.asarray(half) - rounding, rounding, False, position, rotation)


def cylinder(radius, half_length, position=(0.0, 0.0, 0.0), rotation=None) -> Shapes:
    """A cylinder about its z axis: `radius` and `half_length` [m], as in MuJoCo."""
    radius, half_length = jnp.asarray(radius), jnp.asarray(half_length)
    return _one(jnp.stack([radius, radius, half_length]), 0.0, True, position, rotation)


def _core_distance(p: Float[Array, "S 3"], half: Float[Array, "S 3"], round: Bool[Array, "S"]) -> Float[Array, "S"]:
    """Signed distance to box or cylinder cores in their own frames; gradients are finite everywhere."""
    q = jnp.abs(p) - half
    radial = _safe_norm(p[..., :2]) - half[..., 0]
    qx = jnp.where(round, radial, q[..., 0])
    qy = jnp.where(round, jnp.minimum(radial, q[..., 2]), q[..., 1])
    qz = q[..., 2]
    # For a cylinder q_y only repeats what the other two say inside, and must not count outside.
    outside = _safe_norm(
        jnp.stack([jnp.maximum(qx, 0), jnp.where(round, 0.0, jnp.maximum(qy, 0)), jnp.maximum(qz, 0)], axis=-1)
    )
    return outside + jnp.minimum(jnp.maximum(jnp.maximum(qx, qy), qz), 0)


def _safe_norm(v: Float[Array, "... n"]) -> Float[Array, "..."]:
    """Euclidean norm whose gradient at zero is zero instead of NaN."""
    squared = jnp.sum(v * v, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
