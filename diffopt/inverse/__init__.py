"""Inverse kinematics: postures that hold the tool at given poses, for many poses at once."""

from diffopt.inverse.postures import Postures, ik

__all__ = ["Postures", "ik"]
