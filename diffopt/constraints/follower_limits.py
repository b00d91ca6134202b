"""Joints that several others lead, as those of closed chains, within their range.

    max(lower - f(q), f(q) - upper) + margin <= 0         [rad, m]

with f the followers (see `robots.couplings` and `robots.loops`). Of a joint that follows a single one, the range of that one was narrowed
when the robot was read, and nothing more is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.loop_closure import differentiated, five_bar
from diffopt.constraints.wrist import held_at
from diffopt.plans import Grasp
from diffopt.robots.couplings import roots
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FollowerLimits:
    """Joints that several others lead, within their range.

    Attributes:
      robot: whose.
      margin: distance to keep from the limits [rad].
    """

    robot: Embodiment
    margin: float | Float[Array, ""] = 0.0
    name: str = field(default="follower_limits", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 1e-3

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """How far each is beyond its nearer limit [rad]; satisfied when <= 0."""
        index = np.array([c.index for c in led_by_several(self.robot)])
        k = self.robot.kinematics
        at = self.robot.qpos(aux["joints"], plan.joints)[index]
        lower, upper = np.array(k.lower, np.float32)[index], np.array(k.upper, np.float32)[index]
        return jnp.maximum(lower - at, at - upper) + self.margin

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints."""
        return differentiated(lambda joints: self.residual(plan, {"joints": joints}, context), aux["joints"])

    def labels(self) -> tuple[str, ...]:
        return tuple(c.joint for c in led_by_several(self.robot))

    @staticmethod
    def example(key: Any) -> tuple[FollowerLimits, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """Two arms that hold one tool; (plan, aux) with their elbows within the range, and beyond it."""
        robot = five_bar()
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        bent = jnp.array([-0.9, 0.9])
        return (
            FollowerLimits(robot=robot),
            (held_at(robot, joints), {"joints": joints}),
            (held_at(robot, bent), {"joints": bent}),
        )


def led_by_several(robot: Embodiment) -> tuple[Any, ...]:
    """The followers with limits that several joints lead."""
    k = robot.kinematics
    return tuple(
        c
        for c in k.couplings
        if len(roots(k.couplings, c.index)) > 1 and np.isfinite([k.lower[c.index], k.upper[c.index]]).any()
    )
