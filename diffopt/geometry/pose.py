"""Rigid poses as position and rotation matrix, and the six-number rotation that networks predict."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Pose:
    """A frame b seen from a frame a: p_a = rotation @ p_b + position.

    Attributes:
      position: origin of b in a [m].
      rotation: rotation matrix R_a_b.
    """

    position: Float[Array, "*batch 3"]
    rotation: Float[Array, "*batch 3 3"]

    @staticmethod
    def identity() -> Pose:
        return Pose(position=jnp.zeros(3), rotation=jnp.eye(3))

    def __matmul__(self, other: Pose) -> Pose:
        """T_a_c = T_a_b @ T_b_c."""
        return Pose(position=self.apply(other.position), rotation=self.rotation @ other.rotation)

    def apply(self, point: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
        """Points given in b, expressed in a."""
        return point @ jnp.swapaxes(self.rotation, -1, -2) + self.position

    def inverse(self) -> Pose:
        rotation = jnp.swapaxes(self.rotation, -1, -2)
        return Pose(position=-(rotation @ self.position), rotation=rotation)


def rotation_to_6d(rotation: Float[Array, "... 3 3"]) -> Float[Array, "... 6"]:
    """The first two columns of a rotation matrix, one after the other (Zhou et al. 2019, arXiv 1812.07035)."""
    return jnp.concatenate([rotation[..., 0], rotation[..., 1]], axis=-1)


def rotation_from_6d(six: Float[Array, "... 6"]) -> Float[Array, "... 3 3"]:
    """The rotation matrix whose first two columns are nearest in the sense of Gram and Schmidt."""
    x, y = six[..., :3], six[..., 3:]
    x = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)
    y = y - jnp.sum(x * y, axis=-1, keepdims=True) * x
    y = y / (jnp.linalg.norm(y, axis=-1, keepdims=True) + 1e-8)
    return jnp.stack([x, y, jnp.cross(x, y)], axis=-1)


def rotation_vector(rotation: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Axis times angle [rad] of a rotation matrix, smooth at the identity."""
    import jaxlie

    return jaxlie.SO3.from_matrix(rotation).log()
