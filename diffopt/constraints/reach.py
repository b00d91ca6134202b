"""Reach: the arm holds the hand where the plan wants the wrist.

    p_tool(q) - p_plan = 0  [m],        log(R_plan^T R_tool(q)) = 0  [rad]

The equality can be solved for the plan: `realise` replaces the plan's wrist by the tool's pose at the joints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.geometry import Pose, rotation_vector
from diffopt.plans import Grasp
from diffopt.robots.descent import towards
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import screws_of

_LABELS = ("x [m]", "y [m]", "z [m]", "turn about x [rad]", "turn about y [rad]", "turn about z [rad]")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Reach:
    """The plan's wrist pose equals the tool's pose.

    Attributes:
      robot: the arm.
      seeds: number of initial guesses for the joints.
    """

    robot: Embodiment
    seeds: int = field(default=8, metadata=dict(static=True))
    name: str = field(default="reach", metadata=dict(static=True))

    kind: ClassVar[Kind] = "eq"
    realises: ClassVar[tuple[str, ...]] = ("position", "rotation")
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[tuple[float, ...]] = (1e-3,) * 3 + (float(np.deg2rad(0.5)),) * 3

    def auxiliary(self, plan: Grasp, context: Any) -> dict[str, Float[Array, "seeds A"]]:
        """Joint postures whose tool is near the plan's wrist, the nearest first."""
        return {"joints": self.robot.nearest_seeds(plan.wrist, self.seeds)}

    def approach(self, plan: Grasp, aux: Auxiliary, steps: int) -> Auxiliary:
        """Postures (leading axis) after some steps of inverse kinematics towards the plan's wrist, within the arm's own joint limits."""
        return {**aux, "joints": towards(self.robot, plan.wrist, aux["joints"], steps)}

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "6"]:
        """Position error [m] in the world frame and rotation error [rad] in the wrist's frame."""
        tool = self.robot.tool_pose(aux["joints"])
        return jnp.concatenate([tool.position - plan.position, rotation_vector(plan.rotation.T @ tool.rotation)])

    def realise(self, plan: Grasp, aux: Auxiliary, context: Any) -> Grasp:
        """The plan with its wrist where the joints hold the tool."""
        tool = self.robot.tool_pose(aux["joints"])
        return replace(plan, position=tool.position, rotation=tool.rotation)

    def realised(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Grasp, Grasp]:
        """The realised plan, and its derivative by the joints, whose leaves have a leading axis of joints."""
        robot = self.robot
        tool = robot.kinematics.body(robot.tool)
        frames = robot.frames(aux["joints"], only=(tool,))
        pose = robot.base @ Pose(position=frames.position[tool], rotation=frames.rotation[tool])
        turning, moving = screws_of(robot, frames, tool)
        moving = moving + jnp.cross(turning, frames.position[tool])
        rate = Grasp(
            position=moving @ robot.base.rotation.T,
            rotation=robot.base.rotation @ jnp.cross(turning[:, :, None], frames.rotation[tool][None], axis=1),
            joints=jnp.zeros((turning.shape[0], plan.joints.shape[0])),
            squeeze=jnp.zeros((turning.shape[0], plan.squeeze.shape[0])),
        )
        return replace(plan, position=pose.position, rotation=pose.rotation), rate

    def labels(self) -> tuple[str, ...]:
        return _LABELS

    @staticmethod
    def example(key: Any) -> tuple[Reach, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro").at(jnp.array([0.1, -0.5, 0.02]))
        joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(key, robot.lower.shape)
        tool = robot.tool_pose(joints)
        held = Grasp(
            position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
        )
        missed = replace(held, position=held.position + jnp.array([0.0, 0.0, 0.05]))
        return Reach(robot=robot), (held, {"joints": joints}), (missed, {"joints": joints})
