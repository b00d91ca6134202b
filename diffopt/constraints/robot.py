"""The constraints that any robot brings with it."""

from __future__ import annotations

from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.reach import Reach
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet
from diffopt.robots.embodiment import Embodiment, provides_constraints


@provides_constraints
def of_robot(robot: Embodiment) -> ConstraintSet:
    """Reach and joint limits of the arm if there is one, and self-collision if parts of the robot can meet."""
    out = ConstraintSet()
    if robot.arm:
        out = out | Reach(robot=robot) | JointLimits(robot=robot)
    if robot.arm and robot.contacts.pairs:
        out = out | SelfCollision(robot=robot)
    return out
