"""Constraints: residuals of plans in physical units."""

from diffopt.constraints.along import AtEveryKnot, along, fit
from diffopt.constraints.base import (
    Bounded,
    Constraint,
    HasAuxiliary,
    HasMargin,
    JointsLinear,
    JointsRealised,
    Labelled,
    Realisable,
    Windowed,
    Wraps,
)
from diffopt.constraints.collision import SceneCollision
from diffopt.constraints.function import from_residual
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.motion_limits import MotionLimits, acceleration_limits, jerk_limits, velocity_limits
from diffopt.constraints.reach import Reach
from diffopt.constraints.robot import of_robot
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet, Report

__all__ = [
    "AtEveryKnot",
    "Bounded",
    "Constraint",
    "ConstraintSet",
    "HasAuxiliary",
    "HasMargin",
    "JointLimits",
    "JointsLinear",
    "JointsRealised",
    "Labelled",
    "MotionLimits",
    "Reach",
    "Realisable",
    "Report",
    "SceneCollision",
    "SelfCollision",
    "Windowed",
    "Wraps",
    "acceleration_limits",
    "along",
    "fit",
    "from_residual",
    "jerk_limits",
    "of_robot",
    "velocity_limits",
]
