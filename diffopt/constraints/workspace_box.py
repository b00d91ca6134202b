"""The workspace: a point of the tool stays within a box.

    |R_box^T (p - p_box)| - half <= 0         [m], along each axis of the box,        p = p_tool + R_tool c

with c the point in the tool's frame. The derivative is the velocity of p along the axis, to the side on which it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import at_home, held_at, needs_arm, wrist_of
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import body_motion


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class WorkspaceBox:
    """A point of the tool within a box.

    Attributes:
      half: half extents of the box [m].
      pose: T_world_box, of its middle.
      point: in the tool's frame [m].
      margin: distance to keep from the faces [m].
      robot: whose tool; None for the plan's wrist, or until the constraint is joined with a robot's.
    """

    half: Float[Array, "3"]
    pose: Pose
    point: Float[Array, "3"] = field(default_factory=lambda: jnp.zeros(3))
    margin: float | Float[Array, ""] = 0.0
    robot: Embodiment | None = None
    name: str = field(default="workspace_box", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 1e-3

    @staticmethod
    def between(lower, upper, **options: Any) -> WorkspaceBox:
        """The box along the axes of the world with these corners [m]."""
        low, high = jnp.asarray(lower, jnp.float32), jnp.asarray(upper, jnp.float32)
        return WorkspaceBox(half=(high - low) / 2, pose=Pose(position=(low + high) / 2, rotation=jnp.eye(3)), **options)

    def on(self, robot: Embodiment) -> WorkspaceBox:
        """The constraint for the tool of `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "3"]:
        """How far beyond the nearer face, along each axis of the box [m]; satisfied when <= 0."""
        return jnp.abs(self._local(wrist_of(self.robot, plan, aux))) - self.half + self.margin

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "3"], Float[Array, "3 A"]]:
        tool, turning, moving = body_motion(needs_arm(self.robot, self.name), aux["joints"])
        local = self._local(tool)
        velocity = moving + jnp.cross(turning, tool.rotation @ self.point)
        side = jnp.where(local >= 0, 1.0, -1.0)
        return jnp.abs(local) - self.half + self.margin, side[:, None] * (velocity @ self.pose.rotation).T

    def labels(self) -> tuple[str, ...]:
        return ("x [m]", "y [m]", "z [m]")

    def _local(self, tool: Pose) -> Float[Array, "3"]:
        """The point in the frame of the box."""
        return self.pose.rotation.T @ (tool.apply(self.point) - self.pose.position)

    @staticmethod
    def example(key: Any) -> tuple[WorkspaceBox, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """A box in front of the arm, a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        middle = robot.tool_pose(robot.home).position
        turned = robot.home.at[0].set(1.2)
        box = WorkspaceBox.between(middle - 0.3, middle + 0.3, robot=robot, point=jnp.array([0.0, 0.0, 0.1]))
        return box, at_home(robot, key), (held_at(robot, turned), {"joints": turned})
