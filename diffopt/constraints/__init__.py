"""Constraints: residuals of plans in physical units."""

from diffopt.constraints.base import Bounded, Constraint, HasAuxiliary, JointsLinear, Labelled, Realisable
from diffopt.constraints.function import from_residual
from diffopt.constraints.set import ConstraintSet, Report

__all__ = [
    "Bounded",
    "Constraint",
    "ConstraintSet",
    "HasAuxiliary",
    "JointsLinear",
    "Labelled",
    "Realisable",
    "Report",
    "from_residual",
]
