"""What a visuomotor policy observes: the last camera images and where the tool was."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, UInt8


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Observation:
    """The last T moments, the present one last; one control period apart.

    Attributes:
      images: of C cameras, RGB.
      position: of the tool in the world [m].
      rotation: R_world_tool.
      joints: of the hand, as measured; for the parallel gripper its opening, the way of one finger [m].
    """

    images: UInt8[Array, "*batch T C h w 3"]
    position: Float[Array, "*batch T 3"]
    rotation: Float[Array, "*batch T 3 3"]
    joints: Float[Array, "*batch T J"]
