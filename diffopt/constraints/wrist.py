"""Where a wrist is, for constraints that speak about it: where the arm holds the tool, or, without an arm, where the plan wants it.

With a reach that leaves something open (`TolerantReach`) the two differ, and it is the tool that is kept within its limits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from diffopt.constraints.base import Auxiliary
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment


def wrist_of(robot: Embodiment | None, plan: Any, aux: Auxiliary) -> Pose:
    """T_world_wrist."""
    return plan.wrist if robot is None or not robot.arm else robot.tool_pose(aux["joints"])


def needs_arm(robot: Embodiment | None, name: str) -> Embodiment:
    """The robot, or a ValueError that says how to give one."""
    if robot is None:
        raise ValueError(f"{name!r} has no robot: join it with a robot's constraints, or use .on(robot)")
    return robot


def at_home(robot: Embodiment, key: Any, spread: float = 0.05) -> tuple[Grasp, Auxiliary]:
    """A plan near the home posture, for examples: the wrist where the arm holds the tool, the hand at rest."""
    joints = robot.home + spread * jax.random.normal(key, robot.home.shape)
    return held_at(robot, joints), {"joints": joints}


def held_at(robot: Embodiment, joints: Any) -> Grasp:
    """The plan whose wrist is where the arm holds the tool, the hand at rest."""
    tool = robot.tool_pose(joints)
    return Grasp(
        position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
    )
