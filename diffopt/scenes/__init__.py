"""Scenes: objects made of primitives, a table with obstacles, random scenes of a chosen difficulty."""

from diffopt.scenes import objects
from diffopt.scenes.random import PRESETS, Difficulty, random_base, random_tabletop
from diffopt.scenes.solids import GraspObject, Part, Solid
from diffopt.scenes.surroundings import Surrounding
from diffopt.scenes.tabletop import Scene, tabletop

__all__ = [
    "PRESETS",
    "Difficulty",
    "GraspObject",
    "Part",
    "Scene",
    "Solid",
    "Surrounding",
    "objects",
    "random_base",
    "random_tabletop",
    "tabletop",
]
