"""Manipulability: the arm can still move and turn its tool in every direction.

    bound - m(q) <= 0,        J = [J_v / length; J_omega],       m = sqrt(det(J J^T))  or  the smallest singular value of J

J_v [m/rad] and J_omega [rad/rad] are the tool's Jacobian; `length` makes them comparable, and m a pure number. The first measure is
Yoshikawa's (1985, Int. J. Robotics Research 4:3), the volume of the velocity ellipsoid; the second its shortest semi-axis, the least
speed of the tool at joint rates of norm one. With u, v the singular vectors, the derivative of the latter is u^T (dJ/dq) v.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import held_at, needs_arm
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import body_motion

MEASURES = ("smallest", "volume")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Manipulability:
    """The arm away from singular postures.

    Attributes:
      bound: least value.
      measure: "smallest" (singular value) or "volume" (Yoshikawa's).
      length: by which translations are divided [m].
      robot: whose arm, of at least six joints; None until the constraint is joined with a robot's.
    """

    bound: float | Float[Array, ""]
    measure: str = field(default="smallest", metadata=dict(static=True))
    length: float | Float[Array, ""] = 1.0
    robot: Embodiment | None = None
    name: str = field(default="manipulability", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 1e-3

    def __post_init__(self):
        if self.measure not in MEASURES:
            raise ValueError(f"measure={self.measure!r}; there are: {', '.join(MEASURES)}")

    def on(self, robot: Embodiment) -> Manipulability:
        """The constraint for the arm of `robot`."""
        return replace(self, robot=robot)

    def value(self, joints: Float[Array, "A"]) -> Float[Array, ""]:
        """The measure at a posture."""
        robot = needs_arm(self.robot, self.name)
        if len(robot.arm) < 6:
            raise ValueError(
                f"the arm of {robot.name!r} has {len(robot.arm)} joints; with less than 6 no posture moves and turns its tool in "
                "every direction"
            )
        _, turning, moving = body_motion(robot, joints)
        J = jnp.concatenate([moving.T / self.length, turning.T])
        if self.measure == "volume":
            square = jnp.linalg.det(J @ J.T)
            return jnp.sqrt(jnp.maximum(square, 1e-12))
        u, _, vt = jax.lax.stop_gradient(jnp.linalg.svd(J, full_matrices=False))
        return u[:, -1] @ J @ vt[-1]

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "1"]:
        """How far below the bound; satisfied when <= 0."""
        return (self.bound - self.value(aux["joints"]))[None]

    def jacobian(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Float[Array, "1"], Float[Array, "1 A"]]:
        value, gradient = jax.value_and_grad(self.value)(aux["joints"])
        return (self.bound - value)[None], -gradient[None]

    def labels(self) -> tuple[str, ...]:
        return (self.measure,)

    @staticmethod
    def example(key: Any) -> tuple[Manipulability, tuple[Any, Auxiliary], tuple[Any, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux): near the home posture, and stretched out."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        straight = jnp.zeros(7)
        plans = [(held_at(robot, q), {"joints": q}) for q in (joints, straight)]
        return Manipulability(robot=robot, bound=0.02), plans[0], plans[1]
