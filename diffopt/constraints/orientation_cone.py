"""Orientation cones: an axis of the tool stays within an angle of a direction of the world, such as a cup that is kept upright.

    angle(R_tool a, w) - bound <= 0         [rad],          angle(v, w) = atan2(|v x w|, v . w)

With omega_j the angular velocity of the tool per joint and n = v x w / |v x w|, the derivative is -omega_j . n (zero where v = +-w).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import at_home, held_at, needs_arm, wrist_of
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import body_motion


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OrientationCone:
    """An axis of the tool near a direction.

    Attributes:
      axis: unit vector in the tool's frame.
      direction: unit vector in the world.
      bound: half the opening of the cone [rad].
      margin: taken off the bound [rad].
      robot: whose tool; None for the plan's wrist, or until the constraint is joined with a robot's.
    """

    axis: Any = (0.0, 0.0, 1.0)
    direction: Any = (0.0, 0.0, 1.0)
    bound: float | Float[Array, ""]
    margin: float | Float[Array, ""] = 0.0
    robot: Embodiment | None = None
    name: str = field(default="orientation_cone", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = float(np.deg2rad(0.5))

    def on(self, robot: Embodiment) -> OrientationCone:
        """The constraint for the tool of `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "1"]:
        """Angle beyond the bound [rad]; satisfied when <= 0."""
        return self._angle(wrist_of(self.robot, plan, aux).rotation)[0][None]

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "1"], Float[Array, "1 A"]]:
        pose, turning, _ = body_motion(needs_arm(self.robot, self.name), aux["joints"])
        excess, normal = self._angle(pose.rotation)
        return excess[None], -(turning @ normal)[None]

    def labels(self) -> tuple[str, ...]:
        return ("angle [rad]",)

    def _angle(self, rotation: Float[Array, "3 3"]) -> tuple[Float[Array, ""], Float[Array, "3"]]:
        """The angle less its bound, and the axis about which turning the tool makes it smaller."""
        v, w = (
            rotation @ jnp.stack([jnp.asarray(c) for c in self.axis]),
            jnp.stack([jnp.asarray(c) for c in self.direction]),
        )
        cross = jnp.cross(v, w)
        square = jnp.sum(cross**2)
        sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        return jnp.arctan2(sine, v @ w) - self.bound + self.margin, cross / jnp.where(square > 0, sine, 1.0)

    @staticmethod
    def example(key: Any) -> tuple[OrientationCone, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The tool as at home within 0.5 rad, a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        home = robot.tool_pose(robot.home).rotation[:, 2]
        bent = robot.home.at[5].add(-0.8)
        cone = OrientationCone(robot=robot, direction=home, bound=0.5)
        return cone, at_home(robot, key), (held_at(robot, bent), {"joints": bent})
