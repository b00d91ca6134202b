"""Plans that are motions: one knot per time step.

A chunk of actions is a path of H knots, dt apart; knot 0 is what is to be reached dt after the plan was asked for. Constraints that
speak about one configuration hold at every knot (`diffopt.constraints.along`), others look at neighbouring knots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose, rotation_from_6d, rotation_to_6d


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ToolPath:
    """Where a tool goes, and what its hand does meanwhile.

    Attributes:
      position: origin of the tool's body in the world [m].
      rotation: R_world_tool.
      joints: joints of the hand (of a parallel gripper, its opening) [rad or m].
      dt: time between knots [s].
    """

    position: Float[Array, "*batch H 3"]
    rotation: Float[Array, "*batch H 3 3"]
    joints: Float[Array, "*batch H J"]
    dt: float = field(metadata=dict(static=True))

    @property
    def tool(self) -> Pose:
        """T_world_tool at the knots."""
        return Pose(position=self.position, rotation=self.rotation)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class JointPath:
    """Where the joints of a robot go.

    Attributes:
      arm: joints of the arm [rad or m].
      joints: joints of the hand [rad or m].
      dt: time between knots [s].
    """

    arm: Float[Array, "*batch H A"]
    joints: Float[Array, "*batch H J"]
    dt: float = field(metadata=dict(static=True))


Path = ToolPath | JointPath
PATHS = (ToolPath, JointPath)


class PathSpec(Protocol):
    """What a vector means that is a path; beside this it is a `PlanSpec`. Hashable; static under `jit`."""

    @property
    def plan_type(self) -> type: ...

    @property
    def horizon(self) -> int: ...

    @property
    def dt(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class ToolPathSpec:
    """Layout of a tool path: per knot position (3), 6-d rotation (6), hand joints (J), in the context's frame.

    Attributes:
      hand: name of the hand.
      joint_names: the J joints of the hand, in the order of the vector.
      horizon: H.
      dt: time between knots [s].
      grip: the point of the tool, in its frame, with which it handles things, such as the middle between finger pads [m].
      hold, turn: what counts as one in `difference` for the place of that point [m], and for an element of its 6-d rotation (of a small
        turn, about its angle [rad]).
    """

    hand: str
    joint_names: tuple[str, ...]
    horizon: int = 16
    dt: float = 0.1
    grip: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hold: float = 0.04
    turn: float = 0.2

    plan_type = ToolPath

    @property
    def dim(self) -> int:
        return self.horizon * self._width

    @property
    def _width(self) -> int:
        return 9 + len(self.joint_names)

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> ToolPath:
        knots = vector.reshape(self.horizon, self._width)
        rotation = jax.vmap(rotation_from_6d)(knots[:, 3:9])
        return ToolPath(
            position=knots[:, :3] @ frame.rotation.T + frame.position,
            rotation=frame.rotation @ rotation,
            joints=knots[:, 9:],
            dt=self.dt,
        )

    def encode(self, plan: ToolPath, frame: Pose) -> Float[Array, "n"]:
        position = (plan.position - frame.position) @ frame.rotation
        rotation = jax.vmap(rotation_to_6d)(frame.rotation.T @ plan.rotation)
        return jnp.concatenate([position, rotation, plan.joints], axis=1).reshape(-1)

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        """By knot: how far `grip` is moved, over `hold`; the rotation, over `turn`; the hand's joints, over their `scale`.

        Not by how much demonstrations vary, since they cover a table and hardly tilt the hand: by their deviations a hand that is in the
        way would rather miss the object by centimetres than tilt.
        """
        there, wanted, scales = (v.reshape(self.horizon, self._width) for v in (vector, reference, scale))

        def grips(knot: Float[Array, "w"]) -> Float[Array, "3"]:
            return knot[:3] + rotation_from_6d(knot[3:9]) @ jnp.asarray(self.grip)

        moved = (jax.vmap(grips)(there) - jax.vmap(grips)(wanted)) / self.hold
        turned = (there - wanted)[:, 3:9] / self.turn
        opened = ((there - wanted) / scales)[:, 9:]
        return jnp.concatenate([moved, turned, opened], axis=1).reshape(-1)

    def rows(self, *fields: str) -> np.ndarray:
        parts = {"position": (0, 3), "rotation": (0, 9), "joints": (9, self._width)}
        return _rows(self.horizon, self._width, [parts[name] for name in fields])


@dataclass(frozen=True, kw_only=True)
class JointPathSpec:
    """Layout of a joint path: per knot the arm's joints (A), then the hand's (J).

    Attributes:
      arm_names, joint_names: the joints of the arm, and of the hand, in the order of the vector.
      horizon: H.
      dt: time between knots [s].
    """

    arm_names: tuple[str, ...]
    joint_names: tuple[str, ...] = ()
    horizon: int = 16
    dt: float = 0.1

    plan_type = JointPath

    @property
    def dim(self) -> int:
        return self.horizon * (len(self.arm_names) + len(self.joint_names))

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> JointPath:
        knots = vector.reshape(self.horizon, -1)
        arm = len(self.arm_names)
        return JointPath(arm=knots[:, :arm], joints=knots[:, arm:], dt=self.dt)

    def encode(self, plan: JointPath, frame: Pose) -> Float[Array, "n"]:
        return jnp.concatenate([plan.arm, plan.joints], axis=1).reshape(-1)

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        return (vector - reference) / scale

    def rows(self, *fields: str) -> np.ndarray:
        arm, width = len(self.arm_names), len(self.arm_names) + len(self.joint_names)
        parts = {"arm": (0, arm), "joints": (arm, width)}
        return _rows(self.horizon, width, [parts[name] for name in fields])


def spec_of_paths(policy: Any) -> PathSpec:
    """The spec of a policy that plans paths; a TypeError names one that does not."""
    if not is_path(policy.spec.plan_type):
        raise TypeError(
            f"policy {policy.name!r} plans a {policy.spec.plan_type.__name__}; expected a ToolPath or JointPath"
        )
    return policy.spec


def is_path(plan: Any) -> bool:
    """Whether a plan, or a type of plan, is a motion."""
    return issubclass(plan, PATHS) if isinstance(plan, type) else isinstance(plan, PATHS)


def _rows(horizon: int, width: int, parts: list[tuple[int, int]]) -> np.ndarray:
    """Elements of some parts of every knot, knot after knot."""
    within = np.unique(np.concatenate([np.arange(*part) for part in parts]))
    return (np.arange(horizon)[:, None] * width + within).reshape(-1)
