"""Collisions of a robot with surroundings whose distance is kept on a grid: meshes, heightfields, point clouds.

The robot is a set of spheres (centre c_s, radius r_s), f_o the field of obstacle o, never more than the distance to it (see `Field`):

    margin + r_s - min_o f_o(c_s(q)) <= 0         [m]

so that what satisfies it is clear of the obstacles themselves. The derivative is -grad f . dc_s/dq, that of what is looked up. Only spheres
that the arm moves are looked at, and fields of things that the hand may touch are looked up for the arm only, as in `SceneCollision`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.collision import looked_at, worst_of_body
from diffopt.constraints.posture import frames_at
from diffopt.geometry.field import Field
from diffopt.plans import Grasp
from diffopt.robots.bodies import Spheres
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import along, moved_by, screws

ROWS = ("sphere", "body")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FieldCollision:
    """The robot clear of fields.

    Attributes:
      fields: obstacles in the world frame.
      arm_fields: more obstacles, which the tool and what hangs on it may touch.
      robot: whose spheres; None until the constraint is joined with a robot's, see `on`.
      margin: clearance to aim at [m]. What the tolerance then lets pass is a clearance of zero.
      rows: one row per "sphere" or per "body" (its worst sphere).
    """

    fields: tuple[Field, ...]
    arm_fields: tuple[Field, ...] = ()
    robot: Embodiment | None = None
    margin: float | Float[Array, ""] = 1e-3
    rows: str = field(default="body", metadata=dict(static=True))
    name: str = field(default="field_collision", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    looks_at_frames: ClassVar[bool] = True

    @property
    def tolerance(self) -> Any:
        return self.margin

    def on(self, robot: Embodiment) -> FieldCollision:
        """The constraint for `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """`margin - distance` [m]; satisfied when <= 0."""
        robot, spheres, obstacles, far = self._setting()
        centers = spheres.place(frames_at(robot, plan, aux))
        d = jnp.min(jnp.stack([o.distance(centers) for o in obstacles]) + far, axis=0)
        keep = self._kept(spheres, d)
        return self.margin + jnp.asarray(spheres.radii)[keep] - d[keep]

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints."""
        robot, spheres, obstacles, far = self._setting()
        frames = frames_at(robot, plan, aux)
        centers = spheres.place(frames)
        each = [o.distance_and_gradient(centers) for o in obstacles]
        distances = jnp.stack([d for d, _ in each]) + far
        nearest = jnp.argmin(distances, axis=0)
        d = jnp.min(distances, axis=0)
        gradient = jnp.stack([g for _, g in each])[nearest, :, np.arange(len(spheres))].T
        keep = self._kept(spheres, d)
        moved = jnp.asarray(moved_by(robot, spheres.body))[keep]
        rate = along(screws(robot, frames), moved, centers[:, keep], gradient[:, keep])
        return self.margin + jnp.asarray(spheres.radii)[keep] - d[keep], -rate

    def labels(self) -> tuple[str, ...]:
        robot, spheres, _, _ = self._setting()
        names = [robot.kinematics.body_names[b] for b in spheres.body]
        return tuple(dict.fromkeys(names)) if self.rows == "body" else tuple(names)

    def _kept(self, spheres: Spheres, d):
        """The sphere of every row."""
        return worst_of_body(d - spheres.radii, spheres.body) if self.rows == "body" else np.arange(len(spheres))

    def _setting(self) -> tuple[Embodiment, Spheres, list[Field], Any]:
        """The robot, its moving spheres, all obstacles in the base's frame, and 1 km where one does not concern a sphere."""
        everything = (*self.fields, *self.arm_fields)
        if not everything:
            raise ValueError(f"{self.name!r} has no fields to be clear of")
        robot, spheres, far = looked_at(self, ROWS, len(self.fields), len(self.arm_fields))
        base = robot.base.inverse()
        placed = [f.transform(base.position, base.rotation) for f in everything]
        return robot, spheres, placed, 0.0 if far is None else far

    @staticmethod
    def example(key: Any) -> tuple[FieldCollision, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux): a cloud of points where the turned arm has its hand."""
        from diffopt.geometry.surroundings import cloud_field
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        turned = robot.home.at[0].set(1.2)
        tool = robot.tool_pose(robot.home)
        plan = Grasp(
            position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
        )
        around = np.random.default_rng(0).normal(size=(200, 3))
        points = 0.05 * around / np.linalg.norm(around, axis=1, keepdims=True) + np.asarray(
            robot.tool_pose(turned).position
        )
        seen = cloud_field(points, radius=0.02, spacing=0.02)
        return FieldCollision(robot=robot, fields=(seen,)), (plan, {"joints": joints}), (plan, {"joints": turned})
