"""Constraints: residuals of plans in physical units."""

from diffopt.constraints.base import (
    Bounded,
    Constraint,
    HasAuxiliary,
    HasMargin,
    JointsLinear,
    JointsRealised,
    Labelled,
    Realisable,
)
from diffopt.constraints.collision import SceneCollision
from diffopt.constraints.function import from_residual
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.reach import Reach
from diffopt.constraints.robot import of_robot
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet, Report

__all__ = [
    "Bounded",
    "Constraint",
    "ConstraintSet",
    "HasAuxiliary",
    "HasMargin",
    "JointLimits",
    "JointsLinear",
    "JointsRealised",
    "Labelled",
    "Reach",
    "Realisable",
    "Report",
    "SceneCollision",
    "SelfCollision",
    "from_residual",
    "of_robot",
]
