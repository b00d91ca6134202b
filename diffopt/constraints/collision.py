"""Collisions of a robot with its surroundings.

The robot is a set of spheres (centre c_s, radius r_s), the surroundings are shapes with a signed distance d_o:

    margin + r_s - min_o d_o(c_s(q)) <= 0         [m]

Only spheres that the arm moves are looked at: where the base stands is not the plan's affair. Some shapes, such as the object that
the hand is about to touch, are obstacles for the arm only. Everything is computed in the frame of the base, and of every sphere only
the nearest shape is differentiated; with q = joints, n the outward normal there, the gradient is -n . dc_s/dq.

A robot with exact bodies (`Embodiment.primitives`) has geoms g instead of spheres:

    margin - min_o d(g(q), o) <= 0         [m],         gradient  -n . dp/dq

with d the signed distance of two convex bodies, and p the point of g that is nearest to o (see `touching`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffopt.constraints import touching
from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.posture import frames_at
from diffopt.constraints.wrist import needs_arm
from diffopt.geometry import Shapes
from diffopt.geometry.nearest import distance_and_normal, distance_to, distances, nearest
from diffopt.plans import Grasp
from diffopt.robots.bodies import Spheres
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import along, moved_by, screws

ROWS = ("sphere", "body", "pair")
_FAR = 1e3


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SceneCollision:
    """The robot clear of shapes.

    Attributes:
      shapes: obstacles in the world frame.
      arm_shapes: more obstacles, which the tool and what hangs on it may touch.
      robot: whose spheres, or primitives; None until the constraint is joined with a robot's, see `on`.
      margin: clearance to aim at [m]. What the tolerance then lets pass is a clearance of zero.
      rows: one row per "sphere" (its nearest obstacle), per "body" (its worst sphere), or per "pair" of sphere and obstacle. Of exact
        bodies, "geom" instead of "sphere".
    """

    shapes: Shapes
    arm_shapes: Shapes = field(default_factory=Shapes.none)
    robot: Embodiment | None = None
    margin: float | Float[Array, ""] = 1e-3
    rows: str = field(default="body", metadata=dict(static=True))
    name: str = field(default="scene_collision", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    looks_at_frames: ClassVar[bool] = True

    @property
    def tolerance(self) -> Any:
        return self.margin

    def on(self, robot: Embodiment) -> SceneCollision:
        """The constraint for `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """`margin - distance` [m]; satisfied when <= 0."""
        robot, spheres, obstacles, far = self._setting()
        if robot.primitives is not None:
            near, further = touching.to_shapes(robot, frames_at(robot, plan, aux), obstacles, far, self.rows)
            return self.margin - near.distance - further
        centers = spheres.place(frames_at(robot, plan, aux))
        radius = jnp.asarray(spheres.radii)
        if self.rows == "pair":
            d = distances(obstacles, centers) - radius
            return self.margin - (d if far is None else d + far).T.reshape(-1)
        which, keep = self._worst(spheres, centers, obstacles, far)
        centers = centers[:, keep] if self.rows == "body" else centers
        return self.margin + radius[keep] - distance_to(obstacles, centers, which)

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints."""
        robot, spheres, obstacles, far = self._setting()
        further: Any = 0.0
        keep: Any
        moved: Any
        frames = frames_at(robot, plan, aux)
        if robot.primitives is not None:
            near, further = touching.to_shapes(robot, frames, obstacles, far, self.rows)
            moved = jnp.asarray(moved_by(robot, robot.primitives.body))[near.which[0]]
            slopes = along(screws(robot, frames), moved, near.found.on_a, near.found.normal)
            return self.margin - near.found.distance - further, -slopes
        centers, radius = spheres.place(frames), jnp.asarray(spheres.radii)
        moved = moved_by(robot, spheres.body)
        if self.rows == "pair":
            which = jnp.tile(jnp.arange(len(obstacles)), len(spheres))
            keep = np.repeat(np.arange(len(spheres)), len(obstacles))
            further = 0.0 if far is None else far.T.reshape(-1)
        else:
            which, keep = self._worst(spheres, centers, obstacles, far)
        if self.rows != "sphere":
            centers, radius, moved = centers[:, keep], radius[keep], jnp.asarray(moved)[keep]
        d, normal = distance_and_normal(obstacles, centers, which)
        return self.margin + radius - d - further, -along(screws(robot, frames), moved, centers, normal)

    def covered(self) -> SceneCollision:
        """For the spheres that cover exact bodies."""
        if self.robot is None or self.robot.primitives is None:
            return self
        rows = "sphere" if self.rows == "geom" else self.rows
        return replace(self, robot=replace(self.robot, primitives=None), rows=rows)

    def labels(self) -> tuple[str, ...]:
        robot, bodies, obstacles, _ = self._setting()
        names = [robot.kinematics.body_names[b] for b in bodies.body]
        if self.rows == "body":
            return tuple(dict.fromkeys(names))
        if self.rows == "pair":
            return tuple(f"{name} and obstacle {o}" for name in names for o in range(len(obstacles)))
        return tuple(names)

    def _setting(self) -> tuple[Embodiment, Any, Shapes, np.ndarray | None]:
        """The robot, its moving spheres or primitives, all obstacles in the base's frame, and 1 km where one does not concern a body."""
        exact = self.robot is not None and self.robot.primitives is not None
        there = (*touching.ROWS, "pair") if exact else ROWS
        robot, spheres, far = looked_at(self, there, len(self.shapes), len(self.arm_shapes), exact)
        obstacles = self.shapes | self.arm_shapes if len(self.arm_shapes) else self.shapes
        base = robot.base.inverse()
        return robot, spheres, obstacles.transform(base.position, base.rotation), far

    def _worst(self, spheres: Spheres, centers, obstacles: Shapes, far):
        """Index of the obstacle, and of the sphere, of every row."""
        which, d = nearest(obstacles, centers, far)
        if self.rows == "sphere":
            return which, np.arange(len(spheres))
        keep = worst_of_body(d - spheres.radii, spheres.body)
        return which[keep], keep

    @staticmethod
    def example(key: Any) -> tuple[SceneCollision, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux): a ball away from the home posture, then in the hand."""
        from diffopt.geometry import shapes
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        turned = robot.home.at[0].set(1.2)
        tool = robot.tool_pose(robot.home)
        plan = Grasp(
            position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
        )
        ball = shapes.sphere(0.1, robot.tool_pose(turned).position)
        scene = SceneCollision(robot=robot, shapes=ball | shapes.box((1.0, 1.0, 0.05), (0.0, 0.0, -0.2)))
        return scene, (plan, {"joints": joints}), (plan, {"joints": turned})


def looked_at(
    constraint: Any, there: tuple[str, ...], everything: int, arm_only: int, exact: bool = False
) -> tuple[Embodiment, Any, np.ndarray | None]:
    """The robot of a collision constraint, the spheres that its arm moves, and 1 km where an obstacle does not concern a sphere.

    Args:
      there: what `rows` may be.
      everything, arm_only: how many obstacles everything has to be clear of, and how many more the arm alone.
      exact: whether to give primitives instead of spheres.
    Raises:
      ValueError: there are no such rows, or no robot.
    """
    if constraint.rows not in there:
        raise ValueError(f"no rows {constraint.rows!r} in {constraint.name!r}; there are: {', '.join(there)}")
    robot = needs_arm(constraint.robot, constraint.name)
    bodies: Any = robot.spheres.take(robot.contacts.moving)
    if exact and robot.primitives is not None:
        bodies = robot.primitives.take(robot.contacts.moving_primitives)
    if not arm_only:
        return robot, bodies, None
    free = np.array([b in robot.below_tool for b in bodies.body])
    of_arm = np.arange(everything + arm_only) >= everything
    return robot, bodies, np.where(of_arm[:, None] & free[None], np.float32(_FAR), np.float32(0))


def worst_of_body(distance: Float[Array, "S"], body: tuple[int, ...]) -> Int[Array, "B"]:
    """Index of the sphere with the least distance, per body, in the order in which the bodies occur."""
    members = [[i for i, b in enumerate(body) if b == one] for one in dict.fromkeys(body)]
    longest = max(map(len, members))
    table = np.array([m + m[:1] * (longest - len(m)) for m in members])
    worst = jnp.argmin(distance[table], axis=1)
    return jnp.take_along_axis(jnp.asarray(table), worst[:, None], axis=1)[:, 0]
