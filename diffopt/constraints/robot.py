"""The constraints that any robot brings with it."""

from __future__ import annotations

from diffopt.constraints.follower_limits import FollowerLimits, led_by_several
from diffopt.constraints.joint_limits import JointLimits
from diffopt.constraints.loop_closure import LoopClosure
from diffopt.constraints.reach import Reach
from diffopt.constraints.self_collision import SelfCollision
from diffopt.constraints.set import ConstraintSet
from diffopt.robots.embodiment import Embodiment, provides_constraints
from diffopt.robots.loops import systems


@provides_constraints
def of_robot(robot: Embodiment) -> ConstraintSet:
    """Reach and joint limits of the arm if there is one, self-collision if parts of the robot can meet, and what closed chains ask for."""
    out = ConstraintSet()
    if robot.arm:
        out = out | Reach(robot=robot) | JointLimits(robot=robot)
    if robot.arm and robot.contacts.pairs:
        out = out | SelfCollision(robot=robot)
    if robot.arm and systems(robot.kinematics.couplings):
        out = out | LoopClosure(robot=robot)
    if robot.arm and led_by_several(robot):
        out = out | FollowerLimits(robot=robot)
    return out
