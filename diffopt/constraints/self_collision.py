"""Collisions of a robot with itself.

For each outer sphere s (the one further from the base) the nearest among the inner spheres t that it can meet at all:

    margin + r_s + r_t - |c_s(q) - c_t(q)| <= 0         [m]

Which bodies can meet is a property of the robot, found once (`Embodiment.contacts`): neighbours, pairs that always touch, pairs that
never do and pairs within the hand are left out. With n the unit vector from t to s, the gradient by the joints is
-n . (dc_s/dq - dc_t/dq).

A robot with exact bodies (`Embodiment.primitives`) has geoms instead of spheres, and touching points instead of centres (see `touching`):

    margin - d(g(q), f(q)) <= 0         [m]
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints import touching
from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.collision import worst_of_body
from diffopt.constraints.posture import frames_at
from diffopt.plans import Grasp
from diffopt.robots.bodies import Spheres
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import along, moved_by, screws

ROWS = ("sphere", "body")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SelfCollision:
    """The robot clear of itself.

    Attributes:
      robot: whose spheres, or primitives.
      margin: clearance to aim at [m]. What the tolerance then lets pass is a clearance of zero.
      rows: one row per outer "sphere" (its nearest inner one) or per outer "body" (its worst sphere). Of exact
        bodies, "geom" instead of "sphere".
    """

    robot: Embodiment
    margin: float | Float[Array, ""] = 1e-3
    rows: str = field(default="body", metadata=dict(static=True))
    name: str = field(default="self_collision", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    looks_at_frames: ClassVar[bool] = True

    @property
    def tolerance(self) -> Any:
        return self.margin

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """`margin - distance` [m] of each outer sphere to the nearest inner one; satisfied when <= 0."""
        if self.robot.primitives is not None:
            self._check(touching.ROWS)
            return self.margin - touching.to_itself(self.robot, frames_at(self.robot, plan, aux), self.rows).distance
        outer, inner, apart = self._sets()
        frames = frames_at(self.robot, plan, aux)
        a, b = outer.place(frames), inner.place(frames)
        keep, which = self._worst(outer, inner, apart, a, b)
        gap = a[:, keep] - b[:, which]
        return self.margin + jnp.asarray(outer.radii)[keep] + jnp.asarray(inner.radii)[which] - _norm(gap)

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints."""
        frames = frames_at(self.robot, plan, aux)
        if self.robot.primitives is not None:
            self._check(touching.ROWS)
            near = touching.to_itself(self.robot, frames, self.rows)
            table = jnp.asarray(moved_by(self.robot, self.robot.primitives.body))
            slopes = [
                along(screws(self.robot, frames), table[which], point, near.found.normal)
                for which, point in zip(near.which, (near.found.on_a, near.found.on_b), strict=True)
            ]
            return self.margin - near.found.distance, slopes[1] - slopes[0]
        outer, inner, apart = self._sets()
        a, b = outer.place(frames), inner.place(frames)
        keep, which = self._worst(outer, inner, apart, a, b)
        a, b = a[:, keep], b[:, which]
        distance = _norm(a - b)
        normal = (a - b) / jnp.maximum(distance, 1e-9)
        residual = self.margin + jnp.asarray(outer.radii)[keep] + jnp.asarray(inner.radii)[which] - distance
        # A joint that moves both spheres does not change their distance; one that moves only the outer one turns it about a.
        moved = (
            jnp.asarray(moved_by(self.robot, outer.body))[keep] - jnp.asarray(moved_by(self.robot, inner.body))[which]
        )
        return residual, -along(screws(self.robot, frames), moved, a, normal)

    def covered(self) -> SelfCollision:
        """For the spheres that cover exact bodies."""
        if self.robot.primitives is None:
            return self
        rows = "sphere" if self.rows == "geom" else self.rows
        return replace(self, robot=replace(self.robot, primitives=None), rows=rows)

    def labels(self) -> tuple[str, ...]:
        if self.robot.primitives is not None:
            self._check(touching.ROWS)
            first = [self.robot.primitives.body[group[0]] for group in touching.outer(self.robot, self.rows)]
            return tuple(self.robot.kinematics.body_names[b] for b in first)
        outer, _, _ = self._sets()
        names = [self.robot.kinematics.body_names[b] for b in outer.body]
        return tuple(dict.fromkeys(names)) if self.rows == "body" else tuple(names)

    def _check(self, there: tuple[str, ...]) -> None:
        if self.rows not in there:
            raise ValueError(f"no rows {self.rows!r} in {self.name!r}; there are: {', '.join(there)}")

    def _sets(self) -> tuple[Spheres, Spheres, np.ndarray]:
        """Outer and inner spheres, and 1 km where a pair (inner, outer) cannot meet."""
        self._check(ROWS)
        spheres, pairs = self.robot.spheres, set(self.robot.contacts.pairs)
        first, second = {a for a, _ in pairs}, {b for _, b in pairs}
        inner = spheres.take([i for i, b in enumerate(spheres.body) if b in first])
        outer = spheres.take([i for i, b in enumerate(spheres.body) if b in second])
        meets = [[(a, b) in pairs for b in outer.body] for a in inner.body]
        return (
            outer,
            inner,
            np.where(np.array(meets, bool).reshape(len(inner), len(outer)), 0.0, 1e3).astype(np.float32),
        )

    def _worst(self, outer: Spheres, inner: Spheres, apart: np.ndarray, a, b):
        """Indices of the outer and of the inner sphere of every row."""
        a, b = jax.lax.stop_gradient((a, b))

        def step(best, item):
            index, center, radius, far = item
            d = _norm(a - center[:, None]) - radius + far
            closer = d < best[1]
            return (jnp.where(closer, index, best[0]), jnp.where(closer, d, best[1])), None

        start = jnp.zeros(len(outer), jnp.int32), jnp.full(len(outer), jnp.inf)
        (which, d), _ = jax.lax.scan(step, start, (jnp.arange(len(inner)), b.T, inner.radii, apart))
        if self.rows == "sphere":
            return np.arange(len(outer)), which
        keep = worst_of_body(d - outer.radii, outer.body)
        return keep, which[keep]

    @staticmethod
    def example(key: Any) -> tuple[SelfCollision, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """The constraint, a feasible and an infeasible (plan, aux): near the home posture, and folded onto the base."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        tool = robot.tool_pose(robot.home)
        plan = Grasp(
            position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
        )
        folded = jnp.array([0.0, 0.0, 0.0, -3.0, 0.0, 0.8, 0.0])
        return SelfCollision(robot=robot), (plan, {"joints": joints}), (plan, {"joints": folded})


def _norm(v: Float[Array, "3 P"]) -> Float[Array, "P"]:
    return jnp.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2 + 1e-12)
