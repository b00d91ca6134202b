"""An object on a given way, carried by whatever arm: the way is the object's, so that another arm changes kinematics and limits alone.

Since the grasp the object stands fast in the hand, T_world_tool = T_world_object T_object_tool, with T_object_tool = T_world_object^-1
T_world_tool measured then (RIGVid, arXiv 2507.00990). With the object wanted at (p_h, R_h) at knot h, and (p, R) = T_world_tool(q_h)
T_object_tool^-1 where the arm's joints q_h put it, what is asked for is

    e_h = (R_h' (p - p_h), log(R_h' R)),        e_h - clip(e_h, -room, room) = 0        [m, rad]        at every knot h,

in the object's own axes: room about the axis of a bottle lets it turn. Where there is none, only the hand is left to the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.set import ConstraintSet
from diffopt.geometry import Pose, rotation_vector
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import follow

_SEEDS = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Carried:
    """An object where it is wanted, at every knot; made by `retarget`.

    Attributes:
      way: T_world_object at the H knots. T_object_tool: fixed in the hand.
      position, turn: room along and about the object's axes [m], [rad].
      past: the arm's joints now, which guesses start from [rad]; None: from wherever the first knot can be reached.
      robot: whose tool; None until the constraint is joined with a robot's.
    """

    way: Pose
    T_object_tool: Pose
    position: Float[Array, "3"]
    turn: Float[Array, "3"]
    past: Float[Array, "A"] | None = None
    robot: Embodiment | None = None
    name: str = field(default="carried_object", metadata=dict(static=True))

    kind: ClassVar[Kind] = "eq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)
    tolerance: ClassVar[tuple[float, ...]] = (1e-3, 1e-3, 1e-3, 0.01, 0.01, 0.01)

    def on(self, robot: Embodiment) -> Carried:
        """The constraint for `robot`."""
        return replace(self, robot=robot)

    def auxiliary(self, plan: Path, context: Any) -> dict[str, Float[Array, "seeds H A"]]:
        """The wanted way followed from `past`, or from postures near its beginning."""
        robot, tool = self._robot, tool_way(self.way, self.T_object_tool)
        if self.past is not None:
            return {"joints": follow(robot, self.past, tool)[None]}
        first = Pose(position=tool.position[0], rotation=tool.rotation[0])
        return {"joints": jax.vmap(lambda joints: follow(robot, joints, tool))(robot.nearest_seeds(first, _SEEDS))}

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H 6"]:
        """How far the object is outside of its room [m, rad], in its own axes; zero within."""
        self._check(plan)
        return jax.vmap(self._rows)(aux["joints"], self.way)

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        blocks = jax.vmap(jax.jacfwd(self._rows))(aux["joints"], self.way)
        return self.residual(plan, aux, context), ((0, blocks[:, :, None]),)

    def labels(self) -> tuple[str, ...]:
        return ("x [m]", "y [m]", "z [m]", "about x [rad]", "about y [rad]", "about z [rad]")

    @property
    def _robot(self) -> Embodiment:
        if self.robot is None:
            raise ValueError(
                f"constraint {self.name!r} knows of no robot; join it with one's: robot.constraints | retarget(...)"
            )
        return self.robot

    def _rows(self, joints: Float[Array, "A"], wanted: Pose) -> Float[Array, "6"]:
        there = self._robot.tool_pose(joints) @ self.T_object_tool.inverse()
        offset = wanted.rotation.T @ (there.position - wanted.position)
        e = jnp.concatenate([offset, rotation_vector(wanted.rotation.T @ there.rotation)])
        room = jnp.concatenate([self.position, self.turn])
        return e - jnp.clip(e, -room, room)

    def _check(self, plan: Path) -> None:
        knots = plan.joints.shape[0]
        if self.way.position.shape != (knots, 3) or self.way.rotation.shape != (knots, 3, 3):
            raise ValueError(
                f"the way of {self.name!r} has positions {self.way.position.shape} and rotations {self.way.rotation.shape}; "
                f"expected one pose for each of {knots} knots: see diffopt.constraints.at_times"
            )

    @staticmethod
    def example(key: Any) -> tuple[Carried, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """An object that the Panda carries along, with a centimetre of room; (plan, aux) within it and beside it."""
        from diffopt.robots import embodiments

        robot, H = embodiments.load("panda-gripper"), 5
        joints = robot.home + 0.05 * jnp.arange(H)[:, None] * jax.random.normal(key, robot.home.shape)
        tool = jax.vmap(robot.tool_pose)(joints)
        grip = Pose(position=jnp.array([0.0, 0.02, -0.1]), rotation=jnp.eye(3)[jnp.array([1, 2, 0])])
        plan = ToolPath(position=tool.position, rotation=tool.rotation, joints=jnp.zeros((H, 1)), dt=0.1)
        way = tool_way(tool, grip.inverse())
        way = replace(way, position=way.position + 0.004)  # within the room, whatever the object's axes are
        room = dict(position=jnp.full(3, 0.01), turn=jnp.full(3, 0.05))
        return (
            Carried(way=way, T_object_tool=grip, robot=robot, **room),
            (plan, {"joints": joints}),
            (plan, {"joints": joints.at[:, 0].add(0.15)}),
        )


def retarget(
    way: Pose,
    T_object_tool: Pose,
    *,
    position: float | Float[Array, "3"] = 0.0,
    turn: float | Float[Array, "3"] = 0.0,
    past: Float[Array, "A"] | None = None,
    robot: Embodiment | None = None,
) -> ConstraintSet:
    """That the arm brings an object along `way`: `robot.constraints | retarget(way, T_object_tool)`.

    Args:
      way: T_world_object at every knot of the plan; of another time grid, see `at_times`.
      T_object_tool: T_world_object^-1 T_world_tool at the grasp.
      position, turn: room along and about each of the object's axes [m], [rad].
      past: the arm's joints now [rad].
      robot: only needed where the set is used without other constraints of a robot.
    Raises:
      ValueError: room is negative.
    """
    rooms = {
        name: jnp.broadcast_to(jnp.asarray(r, jnp.float32), (3,))
        for name, r in (("position", position), ("turn", turn))
    }
    for name, room in rooms.items():
        if not isinstance(room, jax.core.Tracer) and bool((room < 0).any()):
            raise ValueError(f"{name}={room}: room cannot be negative")
    way, T_object_tool = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), pose) for pose in (way, T_object_tool))
    past = None if past is None else jnp.asarray(past, jnp.float32)
    return ConstraintSet.of(Carried(way=way, T_object_tool=T_object_tool, past=past, robot=robot, **rooms))


def tool_way(way: Pose, T_object_tool: Pose) -> Pose:
    """T_world_tool = T_world_object T_object_tool for every pose of a way."""
    return Pose(
        position=jnp.einsum("...ij,j->...i", way.rotation, T_object_tool.position) + way.position,
        rotation=way.rotation @ T_object_tool.rotation,
    )


def at_times(way: Pose, times: Float[Array, "N"], wanted: Float[Array, "H"]) -> Pose:
    """A way of N poses at increasing `times`, at other times [s]: straight lines and geodesics between them, at rest before and after.

    R(t) = R_i exp(s log(R_i' R_{i+1})), s = (t - t_i) / (t_{i+1} - t_i).
    """
    times, wanted = jnp.asarray(times), jnp.asarray(wanted)
    i = jnp.clip(jnp.searchsorted(times, wanted, side="right") - 1, 0, len(times) - 2)
    share = jnp.clip((wanted - times[i]) / (times[i + 1] - times[i]), 0.0, 1.0)

    def between(p: Array, R: Array, q: Array, S: Array, s: Array) -> Pose:
        import jaxlie

        return Pose(position=p + s * (q - p), rotation=R @ jaxlie.SO3.exp(s * rotation_vector(R.T @ S)).as_matrix())

    p, R = jnp.asarray(way.position), jnp.asarray(way.rotation)
    return jax.vmap(between)(p[i], R[i], p[i + 1], R[i + 1], share)
