"""Joint limits of the arm.

    max(lower - q, q - upper) <= 0          [rad, or m for a slide]

These are box bounds on the shared unknown "joints", so a solver may enforce them by clipping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class JointLimits:
    """Positions of the arm's joints within their range.

    Attributes:
      robot: whose limits.
      margin: distance to keep from the limits [rad].
    """

    robot: Embodiment
    margin: float | Float[Array, ""] = 0.0
    name: str = field(default="joint_limits", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 1e-4

    def bounds(self) -> dict[str, tuple[Float[Array, "A"], Float[Array, "A"]]]:
        return {"joints": (self.robot.lower + self.margin, self.robot.upper - self.margin)}

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "A"]:
        """How far each joint is beyond its nearer limit [rad]; satisfied when <= 0."""
        lower, upper = self.bounds()["joints"]
        return jnp.maximum(lower - aux["joints"], aux["joints"] - upper)

    def jacobian(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Float[Array, "A"], Float[Array, "A A"]]:
        lower, upper = self.bounds()["joints"]
        below, above = lower - aux["joints"], aux["joints"] - upper
        return jnp.maximum(below, above), jnp.diag(jnp.where(above >= below, 1.0, -1.0))

    def labels(self) -> tuple[str, ...]:
        return self.robot.arm

    @staticmethod
    def example(key: Any) -> tuple[JointLimits, tuple[Any, Auxiliary], tuple[Any, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        inside = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(key, robot.lower.shape)
        outside = inside.at[2].set(robot.upper[2] + 0.1)
        plan = Grasp(
            position=np.zeros(3), rotation=np.eye(3), joints=robot.hand_home, squeeze=np.zeros(len(robot.hand))
        )
        return JointLimits(robot=robot), (plan, {"joints": inside}), (plan, {"joints": outside})
