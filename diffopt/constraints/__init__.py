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
from diffopt.constraints.base_placement import BasePlacement
from diffopt.constraints.check import FromCheck, from_check
from diffopt.constraints.collision import SceneCollision
from diffopt.constraints.contact_forces import ContactForces
from diffopt.constraints.field_collision import FieldCollision
from diffopt.constraints.function import from_residual
from diffopt.constraints.hand_penetration import HandPenetration
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.manipulability import Manipulability
from diffopt.constraints.orientation_cone import OrientationCone
from diffopt.constraints.reach import Reach
from diffopt.constraints.robot import of_robot
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet, Report
from diffopt.constraints.tolerant_reach import TolerantReach
from diffopt.constraints.workspace_box import WorkspaceBox

__all__ = [
    "BasePlacement",
    "Bounded",
    "Constraint",
    "ConstraintSet",
    "ContactForces",
    "FieldCollision",
    "FromCheck",
    "HandPenetration",
    "HasAuxiliary",
    "HasMargin",
    "JointLimits",
    "JointsLinear",
    "JointsRealised",
    "Labelled",
    "Manipulability",
    "OrientationCone",
    "Reach",
    "Realisable",
    "Report",
    "SceneCollision",
    "SelfCollision",
    "TolerantReach",
    "WorkspaceBox",
    "from_check",
    "from_residual",
    "of_robot",
]
