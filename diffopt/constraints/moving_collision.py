"""Collisions of a robot with things that move while it does.

margin + r_s - min_o d_o(c_s(q_h), t_h) <= 0         [m]       at every knot h, with the shapes where they are predicted to be then
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.along import grasp_at
from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.collision import SceneCollision
from diffopt.geometry import Shapes
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class MovingCollision:
    """The robot clear of shapes that are elsewhere at every knot.

    Attributes:
      shapes: in the world, with a leading axis of the H knots on every leaf; see `moved`.
      robot: whose spheres; None until the constraint is joined with a robot's, see `on`.
      margin: clearance to aim at [m]. What the tolerance then lets pass is a clearance of zero.
    """

    shapes: Shapes
    robot: Embodiment | None = None
    margin: float | Float[Array, ""] = 1e-3
    name: str = field(default="moving_collision", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    @property
    def tolerance(self) -> Any:
        return self.margin

    def on(self, robot: Embodiment) -> MovingCollision:
        """The constraint for `robot`."""
        return replace(self, robot=robot)

    def _at(self, shapes: Shapes) -> SceneCollision:
        return SceneCollision(shapes=shapes, robot=self.robot, margin=self.margin)

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H m"]:
        """`margin - distance` at each knot [m]; satisfied when <= 0."""
        self._check(plan)
        return jax.vmap(lambda knot, aux, shapes: self._at(shapes).residual(grasp_at(knot, self), aux, context))(
            plan, aux, self.shapes
        )

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        self._check(plan)
        values, blocks = jax.vmap(
            lambda knot, aux, shapes: self._at(shapes).jacobian(grasp_at(knot, self), aux, context)
        )(plan, aux, self.shapes)
        return values, ((0, blocks[:, :, None]),)

    def _check(self, plan: Path) -> None:
        knots = self.shapes.position.shape[0]
        if self.shapes.position.ndim != 3 or knots != plan.joints.shape[0]:
            raise ValueError(
                f"the shapes of {self.name!r} have positions {self.shapes.position.shape}; expected ({plan.joints.shape[0]} knots, "
                "shapes, 3): see diffopt.constraints.moved"
            )

    def labels(self) -> tuple[str, ...]:
        return self._at(jax.tree.map(lambda leaf: leaf[0], self.shapes)).labels()

    @staticmethod
    def example(key: Any) -> tuple[MovingCollision, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """A ball that crosses the place of the Panda's hand; (plan, aux) out of its way, and in it."""
        from diffopt.geometry import shapes
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-gripper")
        H = 5
        away = robot.home.at[0].set(1.3)
        hand = robot.tool_pose(robot.home).position
        travel = (
            jnp.linspace(-0.4, 0.4, H)[:, None] * jnp.array([0.0, 0.0, 1.0]) + jax.random.normal(key, (H, 3)) * 0.01
        )
        ball = moved(shapes.sphere(0.06, hand), travel)
        plan = ToolPath(
            position=jnp.zeros((H, 3)),
            rotation=jnp.broadcast_to(jnp.eye(3), (H, 3, 3)),
            joints=jnp.full((H, 1), 0.04),
            dt=0.1,
        )
        constraint = MovingCollision(shapes=ball, robot=robot)
        return constraint, (plan, {"joints": jnp.tile(away, (H, 1))}), (plan, {"joints": jnp.tile(robot.home, (H, 1))})


def moved(shapes: Shapes, travel: Float[Array, "H 3"], rotation: Float[Array, "H 3 3"] | None = None) -> Shapes:
    """Shapes at H times: turned about the world's origin by `rotation`, then shifted by `travel` [m]."""
    travel = jnp.asarray(travel)
    rotation = jnp.broadcast_to(jnp.eye(3), (len(travel), 3, 3)) if rotation is None else jnp.asarray(rotation)
    return jax.vmap(shapes.transform)(travel, rotation)
