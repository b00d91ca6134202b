"""Signed distances."""

from diffopt.geometry.shapes import Shapes

__all__ = ["Shapes"]
