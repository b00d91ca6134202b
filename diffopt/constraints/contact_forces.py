"""Contact forces: the fingertips can hold the object against a wrench, without slipping and without pressing too hard.

At contacts p_i with unit normals n_i into the object, forces f_i that lie in their friction cones and are bounded along the normal, balance
an external wrench w as far as

    r(w) = min_f |G f + w|  [N]      subject to   |f_tangential| <= mu f_normal,   0 <= f_normal <= F_i,            r(w) - slack <= 0,

where G sums forces, and torques about the object's centre divided by `length`. A tip bears force where it touches: F_i falls linearly
from `force` at a gap of zero to nothing at a gap of `contact`. The program is solved by projected gradient steps with Nesterov's momentum,
begun anew whenever it points uphill (O'Donoghue and Candes 2015, Found. Comput. Math. 15:715); the projection onto a cone that is cut off
is exact. With the forces at their best, dr = (G f + w)/r . dG f (envelope theorem): the steps are not differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import held_at, needs_arm
from diffopt.geometry import Shapes, shapes
from diffopt.geometry.field import Field
from diffopt.geometry.obstacles import clearance
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment

GRAVITY = 9.81  # [m/s^2]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ContactForces:
    """The grasp bears external wrenches.

    Attributes:
      tips: bodies that may press against the object.
      wrenches: that act on the object, in the world: force [N] and torque about `center` [N m]; one row each. See `weight`.
      shapes, fields: the object, in the world frame.
      center: its centre of mass in the world [m].
      friction: mu.
      force: largest normal force of a tip [N].
      contact: gap at which it bears nothing any more [m].
      length: by which torques are divided [m].
      slack: what may remain unbalanced [N].
      iterations: steps of the solver.
      robot: whose tips, on an arm; None until the constraint is joined with a robot's.
    """

    tips: tuple[str, ...] = field(metadata=dict(static=True))
    wrenches: Float[Array, "W 6"]
    shapes: Shapes = field(default_factory=Shapes.none)
    fields: tuple[Field, ...] = ()
    center: Float[Array, "3"]
    friction: float | Float[Array, ""] = 0.5
    force: float | Float[Array, ""] = 10.0
    contact: float | Float[Array, ""] = 5e-3
    length: float | Float[Array, ""] = 0.05
    slack: float | Float[Array, ""] = 0.0
    iterations: int = field(default=400, metadata=dict(static=True))
    robot: Embodiment | None = None
    name: str = field(default="contact_forces", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[float] = 0.05

    @staticmethod
    def weight(mass: float) -> Float[Array, "1 6"]:
        """The wrench of the object's own weight [N]."""
        return jnp.array([[0.0, 0.0, -GRAVITY * mass, 0.0, 0.0, 0.0]])

    def on(self, robot: Embodiment) -> ContactForces:
        """The constraint for the hand of `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "W"]:
        """What remains unbalanced of every wrench, less the slack [N]; satisfied when <= 0."""
        robot = needs_arm(self.robot, self.name)
        points, normals, gaps = self._contacts(robot, plan, aux)
        limits = self.force * jnp.clip(1 - gaps / self.contact, 0, 1)
        turn = robot.base.rotation.T
        center = turn @ (self.center - robot.base.position)
        wrenches = jnp.concatenate([self.wrenches[:, :3] @ turn.T, self.wrenches[:, 3:] @ turn.T / self.length], axis=1)
        G = grasp_map(points, normals, center, self.length)
        least = jax.vmap(lambda w: unbalanced(G, limits, self.friction, w, self.iterations))(wrenches)
        return least - self.slack

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "W"], Float[Array, "W A"]]:
        """Residual and its derivative by the arm's joints."""

        def moved(t):
            return jax.jvp(lambda q: self.residual(plan, {"joints": q}, context), (aux["joints"],), (t,))

        return jax.vmap(moved, out_axes=(None, 1))(jnp.eye(aux["joints"].size))

    def labels(self) -> tuple[str, ...]:
        return tuple(f"wrench {i} [N]" for i in range(self.wrenches.shape[0]))

    def _contacts(self, robot: Embodiment, plan: Grasp, aux: Auxiliary):
        """Points on the object (F, 3), normals into it, and gaps [m] of the tips, in the frame of the base."""
        frames = robot.frames(aux["joints"], plan.joints)
        bodies = [robot.kinematics.body(tip) for tip in self.tips]
        back = robot.base.inverse()
        solid = self.shapes.transform(back.position, back.rotation) if len(self.shapes) else self.shapes
        fields = tuple(f.transform(back.position, back.rotation) for f in self.fields)
        found = []
        for tip, body in zip(self.tips, bodies, strict=True):
            own = robot.spheres.take([i for i, b in enumerate(robot.spheres.body) if b == body])
            if not len(own):
                there = sorted({robot.kinematics.body_names[b] for b in robot.spheres.body})
                raise ValueError(f"tip {tip!r} of {robot.name!r} has no collision body; these have: {', '.join(there)}")
            centers = own.place(frames)
            d, gradient = clearance(solid, fields, centers)
            nearest = jnp.argmin(d - own.radii)
            out = gradient[:, nearest] / jnp.sqrt(jnp.sum(gradient[:, nearest] ** 2) + 1e-12)
            inner = own.radii - np.asarray(own.overshoot, np.float32)
            found.append((centers[:, nearest] - d[nearest] * out, -out, d[nearest] - jnp.asarray(inner)[nearest]))
        points, normals, gaps = (jnp.stack(part) for part in zip(*found, strict=True))
        return points, normals, gaps

    @staticmethod
    def example(key: Any) -> tuple[ContactForces, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """A ball of 50 g between the fingertips, and out of their reach: a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.02 * jax.random.normal(key, robot.home.shape)
        plan = held_at(robot, joints)
        frames = robot.frames(joints, plan.joints)
        tips = tuple(name for name in robot.kinematics.body_names if name.endswith("tip"))
        places = jnp.stack([frames.position[robot.kinematics.body(tip)] for tip in tips])
        middle = jnp.mean(places, axis=0)
        solid = shapes.sphere(jnp.min(jnp.linalg.norm(places - middle, axis=1)), middle)
        held = ContactForces(
            robot=robot, tips=tips, shapes=solid, center=middle, wrenches=ContactForces.weight(0.05), friction=1.0
        )
        return held, (plan, {"joints": joints}), (plan, {"joints": joints.at[0].add(0.5)})


def grasp_map(
    points: Float[Array, "F 3"], normals: Float[Array, "F 3"], center: Float[Array, "3"], length: Any
) -> Float[Array, "6 F 3"]:
    """Force, and torque over `length`, of unit forces at every contact: along two tangents, and along the normal."""
    other = jnp.where(jnp.abs(normals[:, :1]) < 0.7, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
    first = jnp.cross(normals, other)
    first = first / jnp.linalg.norm(first, axis=-1, keepdims=True)
    axes = jnp.stack([first, jnp.cross(normals, first), normals], axis=1)  # (F, axis, 3)
    torques = jnp.cross((points - center)[:, None] / length, axes)
    return jnp.moveaxis(jnp.concatenate([axes, torques], axis=-1), -1, 0)


def unbalanced(
    G: Float[Array, "6 F 3"], limits: Float[Array, "F"], friction: Any, wrench: Float[Array, "6"], iterations: int = 400
) -> Float[Array, ""]:
    """r(w) of the module's docstring [N]: what the best forces leave of a wrench, never less than what any forces leave.

    Args:
      G: from `grasp_map`. limits: F_i [N]. wrench: force [N], torque over the same length [N].
    """
    still = jax.lax.stop_gradient((G, limits, jnp.asarray(friction), wrench))
    best = jax.lax.stop_gradient(_forces(*still, iterations))
    share = best / jnp.maximum(still[1], 1e-9)[:, None]  # of their limits: what shares may be does not depend on these
    left = jnp.einsum("wfi,fi->w", G, share * limits[:, None]) + wrench
    return jnp.sqrt(jnp.sum(left**2) + 1e-12)


def _forces(G: Float[Array, "6 F 3"], limits, friction, wrench, iterations: int) -> Float[Array, "F 3"]:
    """Minimise |G f + w|^2 over cones |f_xy| <= friction f_z, 0 <= f_z <= limit."""
    flat = G.reshape(6, -1)
    step = 1 / (jnp.sqrt(jnp.sum((flat @ flat.T) ** 2)) + 1e-9)  # no longer than the inverse of the largest curvature

    def body(carry, _):
        f, y, t = carry
        slope = jnp.einsum("wfi,w->fi", G, jnp.einsum("wfi,fi->w", G, y) + wrench)
        new = project(y - step * slope, limits, friction)
        uphill = jnp.sum((y - new) * (new - f)) > 0
        t = jnp.where(uphill, 1.0, t)
        ahead = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        y = jnp.where(uphill, new, new + (t - 1) / ahead * (new - f))
        return (new, y, ahead), None

    start = jnp.zeros(G.shape[1:])
    return jax.lax.scan(body, (start, start, jnp.ones(())), length=iterations)[0][0]


def project(f: Float[Array, "F 3"], limits, friction) -> Float[Array, "F 3"]:
    """The nearest point, of each force, in its cone |f_xy| <= friction f_z, 0 <= f_z <= limit."""
    square = jnp.sum(f[:, :2] ** 2, axis=1)
    size = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    along = (friction * size + f[:, 2]) / (1 + friction**2)  # height of the nearest point of the cone's side
    height = jnp.clip(jnp.where(size <= friction * f[:, 2], f[:, 2], along), 0, limits)
    radius = jnp.minimum(size, friction * height)
    return jnp.concatenate([f[:, :2] * (radius / jnp.where(size > 0, size, 1.0))[:, None], height[:, None]], axis=1)
