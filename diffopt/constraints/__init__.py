"""Constraints: residuals of plans in physical units."""

from diffopt.constraints.along import AtEveryKnot, along, fit
from diffopt.constraints.base import (
    Approaches,
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
from diffopt.constraints.base_placement import BasePlacement
from diffopt.constraints.check import FromCheck, from_check
from diffopt.constraints.collision import SceneCollision
from diffopt.constraints.contact_forces import ContactForces
from diffopt.constraints.field_collision import FieldCollision
from diffopt.constraints.follower_limits import FollowerLimits
from diffopt.constraints.function import from_residual
from diffopt.constraints.hand_penetration import HandPenetration
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.later import Later, later
from diffopt.constraints.loop_closure import LoopClosure
from diffopt.constraints.manipulability import Manipulability
from diffopt.constraints.motion_limits import MotionLimits, acceleration_limits, jerk_limits, velocity_limits
from diffopt.constraints.moving_collision import MovingCollision, moved
from diffopt.constraints.near_path import NearPath
from diffopt.constraints.orientation_cone import OrientationCone
from diffopt.constraints.overlap import Overlap
from diffopt.constraints.reach import Reach
from diffopt.constraints.retarget import Carried, at_times, retarget, tool_way
from diffopt.constraints.robot import of_robot
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet, Report
from diffopt.constraints.tolerant_reach import TolerantReach
from diffopt.constraints.torque_limits import TorqueLimits, torque_limits
from diffopt.constraints.tracking import Tracking
from diffopt.constraints.workspace_box import WorkspaceBox

__all__ = [
    "Approaches",
    "AtEveryKnot",
    "BasePlacement",
    "Bounded",
    "Carried",
    "Constraint",
    "ConstraintSet",
    "ContactForces",
    "FieldCollision",
    "FollowerLimits",
    "FromCheck",
    "HandPenetration",
    "HasAuxiliary",
    "HasMargin",
    "JointLimits",
    "JointsLinear",
    "JointsRealised",
    "Labelled",
    "Later",
    "LoopClosure",
    "Manipulability",
    "MotionLimits",
    "MovingCollision",
    "NearPath",
    "OrientationCone",
    "Overlap",
    "Reach",
    "Realisable",
    "Report",
    "SceneCollision",
    "SelfCollision",
    "TolerantReach",
    "TorqueLimits",
    "Tracking",
    "Windowed",
    "WorkspaceBox",
    "Wraps",
    "acceleration_limits",
    "along",
    "at_times",
    "fit",
    "from_check",
    "from_residual",
    "jerk_limits",
    "later",
    "moved",
    "of_robot",
    "retarget",
    "tool_way",
    "torque_limits",
    "velocity_limits",
]
