"""Signed distances and poses."""

from diffopt.geometry.pose import Pose, rotation_from_6d, rotation_to_6d, rotation_vector
from diffopt.geometry.shapes import Shapes
from diffopt.geometry.target import Target

__all__ = ["Pose", "Shapes", "Target", "rotation_from_6d", "rotation_to_6d", "rotation_vector"]
