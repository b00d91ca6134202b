"""The object that a grasp policy is asked to grasp, as it is seen."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from diffopt.geometry.pose import Pose


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Target:
    """Surface of an object and where it stands.

    Attributes:
      points: points on the surface, in the object's own frame [m].
      pose: T_world_object.
    """

    points: Float[Array, "N 3"]
    pose: Pose
