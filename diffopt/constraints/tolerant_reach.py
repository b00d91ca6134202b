"""Reach with room: the arm holds the tool near where the plan wants the wrist, within a box and within angles.

With the tool seen from the planned wrist, p = R_plan^T (p_tool - p_plan) and E = R_plan^T R_tool = S(s) T(t), where T turns by t about the
`axis` a and S tilts that axis, by |s| about s, which is perpendicular to a:

    p - clip(p, -position, position) = 0  [m],    s - s min(1, tilt/|s|) = 0  [rad],    t - clip(t, -turn, turn) = 0  [rad]

All room zero is `Reach`. Tilt and turn of pi ask for the position alone; a turn of pi leaves one axis free (a screwdriver, a cup). As
with `Reach` the equality can be solved for the plan: `realise` moves the planned wrist no further than it has to be, so that a plan within
the room stays what the policy planned, whatever the arm does inside it. The plan's wrist and the tool then differ by up to the room.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import held_at
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import body_motion


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TolerantReach:
    """The tool's pose within some room about the plan's wrist pose.

    Attributes:
      robot: the arm.
      position: half extents of the room along the axes of the planned wrist [m].
      tilt: of the tool's axis [rad].
      turn: about it [rad].
      axis: unit vector in the tool's frame; static.
      seeds: number of initial guesses for the joints.
    """

    robot: Embodiment
    position: Any = (0.0, 0.0, 0.0)
    tilt: float | Float[Array, ""] = 0.0
    turn: float | Float[Array, ""] = 0.0
    axis: tuple[float, float, float] = field(default=(0.0, 0.0, 1.0), metadata=dict(static=True))
    seeds: int = field(default=8, metadata=dict(static=True))
    name: str = field(default="reach", metadata=dict(static=True))

    kind: ClassVar[Kind] = "eq"
    realises: ClassVar[tuple[str, ...]] = ("position", "rotation")
    plan_type: ClassVar[type] = Grasp
    tolerance: ClassVar[tuple[float, ...]] = (1e-3,) * 3 + (float(np.deg2rad(0.5)),) * 3

    @staticmethod
    def position_only(robot: Embodiment, **options: Any) -> TolerantReach:
        """The tool where the plan wants it, turned in any way."""
        return TolerantReach(robot=robot, tilt=float(np.pi), turn=float(np.pi), **options)

    @staticmethod
    def free_axis(
        robot: Embodiment, axis: tuple[float, float, float] = (0.0, 0.0, 1.0), **options: Any
    ) -> TolerantReach:
        """The tool where the plan wants it, turned about one of its axes at will."""
        return TolerantReach(robot=robot, axis=axis, turn=float(np.pi), **options)

    def auxiliary(self, plan: Grasp, context: Any) -> dict[str, Float[Array, "seeds A"]]:
        """Joint postures whose tool is near the plan's wrist, the nearest first."""
        return {"joints": self.robot.nearest_seeds(plan.wrist, self.seeds)}

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "6"]:
        """How far the tool is outside of the room: along the wrist's axes [m], tilt (2) and turn [rad]; zero within."""
        offset, tilt, turn, _ = self._seen(plan.wrist, self.robot.tool_pose(aux["joints"]))
        inside = self._clipped(offset, tilt, turn)
        beyond = self._basis[:2] @ (tilt - inside[1])
        return jnp.concatenate([offset - inside[0], beyond, (turn - inside[2])[None]])

    def realise(self, plan: Grasp, aux: Auxiliary, context: Any) -> Grasp:
        """The plan with its wrist moved until the tool is within the room."""
        wrist = self._moved(plan.wrist, self.robot.tool_pose(aux["joints"]))
        return replace(plan, position=wrist.position, rotation=wrist.rotation)

    def realised(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Grasp, Grasp]:
        """The realised plan, and its derivative by the joints, whose leaves have a leading axis of joints."""
        tool, turning, moving = body_motion(self.robot, aux["joints"])
        rates = Pose(position=moving, rotation=jnp.cross(turning[:, :, None], tool.rotation[None], axis=1))

        def moved(tool):
            return self._moved(plan.wrist, tool)

        wrist, rate = jax.vmap(lambda t: jax.jvp(moved, (tool,), (t,)), out_axes=(None, 0))(rates)
        joints = moving.shape[0]
        return replace(plan, position=wrist.position, rotation=wrist.rotation), Grasp(
            position=rate.position,
            rotation=rate.rotation,
            joints=jnp.zeros((joints, plan.joints.shape[0])),
            squeeze=jnp.zeros((joints, plan.squeeze.shape[0])),
        )

    def labels(self) -> tuple[str, ...]:
        return ("x [m]", "y [m]", "z [m]", "tilt [rad]", "tilt, other way [rad]", "turn [rad]")

    @property
    def _basis(self) -> Float[np.ndarray, "3 3"]:
        """Two unit vectors perpendicular to the axis, and the axis, as rows, right-handed."""
        a = np.asarray(self.axis, float) / np.linalg.norm(self.axis)
        u = np.cross(a, np.eye(3)[int(np.argmin(np.abs(a)))])
        u /= np.linalg.norm(u)
        return np.stack([u, np.cross(a, u), a]).astype(np.float32)

    def _seen(self, wrist: Pose, tool: Pose) -> tuple[Array, Array, Array, Array]:
        """The tool from the wrist: offset [m], tilt (a vector, [rad]), turn [rad], and E."""
        u, v, a = self._basis
        E = wrist.rotation.T @ tool.rotation
        b = E @ a
        k = jnp.cross(a, b)
        square = jnp.sum(k**2)
        sine = jnp.where(square > 1e-12, jnp.sqrt(jnp.where(square > 1e-12, square, 1.0)), 0.0)
        stretch = jnp.where(square > 1e-12, jnp.arctan2(sine, b @ a) / jnp.where(square > 1e-12, sine, 1.0), 1.0)
        turned = _tilted_back(k, b @ a, E @ u)
        return wrist.rotation.T @ (tool.position - wrist.position), stretch * k, jnp.arctan2(turned @ v, turned @ u), E

    def _clipped(self, offset, tilt, turn) -> tuple[Array, Array, Array]:
        """The nearest within the room."""
        half = jnp.stack([jnp.asarray(c, jnp.float32) for c in self.position])
        square = jnp.sum(tilt**2)
        angle = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        share = jnp.where(square > 0, jnp.minimum(1.0, self.tilt / angle), 1.0)
        return jnp.clip(offset, -half, half), share * tilt, jnp.clip(turn, -self.turn, self.turn)

    def _moved(self, wrist: Pose, tool: Pose) -> Pose:
        import jaxlie

        offset, tilt, turn, _ = self._seen(wrist, tool)
        offset, tilt, turn = self._clipped(offset, tilt, turn)
        inside = jaxlie.SO3.exp(tilt).as_matrix() @ jaxlie.SO3.exp(turn * self._basis[2]).as_matrix()
        rotation = tool.rotation @ inside.T
        return Pose(position=tool.position - rotation @ offset, rotation=rotation)

    @staticmethod
    def example(key: Any) -> tuple[TolerantReach, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """Two centimetres of room, and a free turn; a feasible and an infeasible (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-allegro")
        joints = robot.home + 0.05 * jax.random.normal(key, robot.home.shape)
        plan = held_at(robot, joints.at[6].add(0.5))  # the last joint turns the tool
        near = replace(plan, position=plan.position + jnp.array([0.008, 0.008, -0.008]))
        away = replace(plan, position=plan.position + jnp.array([0.0, 0.05, 0.0]))
        reach = TolerantReach(robot=robot, position=(0.02, 0.02, 0.02), turn=float(np.pi))
        return reach, (near, {"joints": joints}), (away, {"joints": joints})


def _tilted_back(k: Float[Array, "3"], cosine: Float[Array, ""], x: Float[Array, "3"]) -> Float[Array, "3"]:
    """S^T x for the smallest rotation S with sine vector k and that cosine: (I - [k] + [k]^2 / (1 + cosine)) x."""
    kx = jnp.cross(k, x)
    return x - kx + jnp.cross(k, kx) / jnp.maximum(1 + cosine, 1e-6)
