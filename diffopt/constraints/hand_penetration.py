"""The hand does not reach into the object that it grasps: it may touch it, and press in by a little.

    (r_s - e_s) - d(c_s) - depth <= 0         [m], for every sphere s of the hand,

with c_s, r_s its centre and radius, e_s how far it may reach outside of the geom that it covers, and d the signed distance to the object.
The sphere of radius r_s - e_s lies within the geom, so whatever violates this does penetrate by more than `depth`, and a finger that only
touches never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.collision import worst_of_body
from diffopt.constraints.wrist import at_home, needs_arm
from diffopt.geometry import Pose, Shapes, shapes
from diffopt.geometry.field import Field
from diffopt.geometry.obstacles import clearance
from diffopt.plans import Grasp
from diffopt.robots.bodies import Spheres
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Frames
from diffopt.robots.motion import along, moved_by, screws


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class HandPenetration:
    """The hand outside of the object.

    Attributes:
      shapes, fields: the object, in the world frame.
      depth: penetration that is allowed [m].
      robot: whose hand, on an arm or floating where the plan has its wrist; None until the constraint is joined with a robot's.
    """

    shapes: Shapes = field(default_factory=Shapes.none)
    fields: tuple[Field, ...] = ()
    depth: float | Float[Array, ""] = 2e-3
    robot: Embodiment | None = None
    name: str = field(default="hand_penetration", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 1e-3

    def on(self, robot: Embodiment) -> HandPenetration:
        """The constraint for the hand of `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """Penetration beyond `depth` [m], of the worst sphere of each body of the hand; satisfied when <= 0."""
        return self._rows(*self._placed(plan, aux)[:2])[0]

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints."""
        robot = needs_arm(self.robot, self.name)
        centers, frame, frames = self._placed(plan, aux)
        rows, keep, gradient = self._rows(centers, frame)
        moved = jnp.asarray(moved_by(robot, self._spheres.body))[keep]
        return rows, -along(screws(robot, frames), moved, centers[:, keep], gradient[:, keep])

    def labels(self) -> tuple[str, ...]:
        names = needs_arm(self.robot, self.name).kinematics.body_names
        return tuple(names[b] for b in dict.fromkeys(self._spheres.body))

    @property
    def _spheres(self) -> Spheres:
        robot = needs_arm(self.robot, self.name)
        return robot.spheres.take([i for i, b in enumerate(robot.spheres.body) if b in robot.below_tool])

    def _placed(self, plan: Grasp, aux: Auxiliary) -> tuple[Float[Array, "3 S"], Pose, Frames]:
        """Centres of the spheres in the frame of the base, where that is in the world, and all frames."""
        robot = needs_arm(self.robot, self.name)
        frames = robot.frames(aux["joints"] if robot.arm else jnp.zeros(0), plan.joints)
        frame = robot.base
        if not robot.arm:
            tool = robot.kinematics.body(robot.tool)
            frame = plan.wrist @ Pose(position=frames.position[tool], rotation=frames.rotation[tool]).inverse()
        return self._spheres.place(frames), frame, frames

    def _rows(self, centers: Float[Array, "3 S"], frame: Pose):
        """The residual, the sphere of every row, and the gradient of the distance at each sphere."""
        spheres, back = self._spheres, frame.inverse()
        object_shapes = self.shapes.transform(back.position, back.rotation) if len(self.shapes) else self.shapes
        fields = tuple(f.transform(back.position, back.rotation) for f in self.fields)
        d, gradient = clearance(object_shapes, fields, centers)
        inner = spheres.radii - np.asarray(spheres.overshoot, np.float32)
        keep = worst_of_body(d - inner, spheres.body)
        return jnp.asarray(inner)[keep] - d[keep] - self.depth, keep, gradient

    @staticmethod
    def example(key: Any) -> tuple[HandPenetration, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """A ball away from the hand, then in the palm: a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        turned = robot.home.at[0].set(1.2)
        ball = shapes.sphere(0.04, robot.tool_pose(turned).position)
        plan, aux = at_home(robot, key)
        return HandPenetration(robot=robot, shapes=ball), (plan, aux), (plan, {"joints": turned})
