"""Base placement: where the robot stands.

    |x| - half_x <= 0,  |y| - half_y <= 0  [m],     |heading| - turn <= 0  [rad],     near - r <= 0,  r - far <= 0  [m]

with (x, y) the place of the base and its heading (the direction of its x axis, seen from above) in the frame of a region, and r the
horizontal distance from the base to a target. For a base that is bolted down these are numbers that no plan changes: the constraint says
whether this robot, where it stands (`robot.at`), is in its place at all. A base that moves is a part of the arm: two slides and a hinge
below the first link make it seven joints and three more, and reach, limits and collisions solve for all of them; `body` then names the
platform, and the derivative is that of its motion.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import at_home, needs_arm
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import body_motion

ANYWHERE = 1e3  # [m]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BasePlacement:
    """The base in a region, and at a distance from a target.

    Attributes:
      region: T_world_region; its z axis is up.
      half: half extents of the region along its x and y [m].
      turn: largest heading to either side of the region's x axis [rad].
      target: a point in the world, such as `scene.target.pose.position` [m].
      near, far: bounds on the horizontal distance to it [m].
      body: whose place; None for the robot's base.
      robot: None until the constraint is joined with a robot's.
    """

    region: Pose = field(default_factory=Pose.identity)
    half: Any = (ANYWHERE, ANYWHERE)
    turn: float | Float[Array, ""] = float(np.pi)
    target: Float[Array, "3"] = field(default_factory=lambda: jnp.zeros(3))
    near: float | Float[Array, ""] = 0.0
    far: float | Float[Array, ""] = ANYWHERE
    body: str | None = field(default=None, metadata=dict(static=True))
    robot: Embodiment | None = None
    name: str = field(default="base_placement", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[tuple[float, ...]] = (1e-3, 1e-3, float(np.deg2rad(0.5)), 1e-3, 1e-3)

    def on(self, robot: Embodiment) -> BasePlacement:
        """The constraint for the base of `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "5"]:
        """Beyond the sides of the region [m], the heading [rad], and the bounds on the distance [m]; satisfied when <= 0."""
        return self._rows(*self._place(aux)[:2])

    def jacobian(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Float[Array, "5"], Float[Array, "5 A"]]:
        position, forward, *rates = self._place(aux)
        return jax.vmap(lambda *t: jax.jvp(self._rows, (position, forward), t), out_axes=(None, 1))(*rates)

    def labels(self) -> tuple[str, ...]:
        return ("x [m]", "y [m]", "heading [rad]", "too near [m]", "too far [m]")

    def _place(self, aux: Auxiliary) -> tuple[Array, Array, Array, Array]:
        """Position and x axis of the base in the world, and their derivatives by the joints."""
        robot = needs_arm(self.robot, self.name)
        if self.body is None:
            still = jnp.zeros((len(robot.arm), 3))
            return robot.base.position, robot.base.rotation[:, 0], still, still
        pose, turning, moving = body_motion(robot, aux["joints"], self.body)
        return pose.position, pose.rotation[:, 0], moving, jnp.cross(turning, pose.rotation[:, 0])

    def _rows(self, position: Float[Array, "3"], forward: Float[Array, "3"]) -> Float[Array, "5"]:
        x, y, _ = self.region.rotation.T @ (position - self.region.position)
        ahead = self.region.rotation.T @ forward
        square = jnp.sum((position - self.target)[:2] ** 2)
        r = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        heading = jnp.abs(jnp.arctan2(ahead[1], ahead[0])) - self.turn
        return jnp.stack([jnp.abs(x) - self.half[0], jnp.abs(y) - self.half[1], heading, self.near - r, r - self.far])

    @staticmethod
    def example(key: Any) -> tuple[BasePlacement, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The first link's place within a hand's breadth of straight ahead, a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro").at(jnp.array([-0.5, 0.1, 0.0]))
        link = robot.kinematics.body_names[robot.kinematics.body(robot.tool)]
        middle = robot.tool_pose(robot.home)
        turned = robot.home.at[0].set(1.2)
        flat = Pose(position=middle.position, rotation=jnp.eye(3))
        place = BasePlacement(
            robot=robot, body=link, region=flat, half=(0.2, 0.2), target=robot.base.position, near=0.1, far=0.9
        )
        plan, aux = at_home(robot, key)
        return place, (plan, aux), (plan, {"joints": turned})
