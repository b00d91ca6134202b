"""Plans: typed views of the vector that a policy samples.

A policy's network sees a flat vector. A plan spec says what the numbers mean, and turns the vector into a typed plan in the world
frame, which is all that constraints and tasks ever see. Plans of one configuration are here, those of a motion in `paths`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose, rotation_from_6d, rotation_to_6d


@runtime_checkable
class PlanSpec(Protocol):
    """What a policy's vector means. Hashable; static under `jit`."""

    @property
    def plan_type(self) -> type:
        """The type of the plans."""
        ...

    @property
    def dim(self) -> int:
        """Length of the vector."""
        ...

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> Any:
        """The plan, in the world, of a vector given relative to `frame` (T_world_frame)."""
        ...

    def encode(self, plan: Any, frame: Pose) -> Float[Array, "n"]:
        """The inverse of `decode`."""
        ...

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "m"]:
        """A residual whose squared norm says how far apart two vectors are as plans; `scale`, the policy's standard deviations by
        element, is what counts as one, where the spec knows no better."""
        ...

    def rows(self, *fields: str) -> np.ndarray:
        """The elements of `difference` that depend on some fields of the plan."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Grasp:
    """A grasp of a hand: wrist pose, finger joints at contact, and how they close beyond it.

    The hand opens to `joints - squeeze` before the grasp and is driven to `joints + squeeze` to hold, with the wrist at rest
    (the triplet of BODex, arXiv 2412.16490, with one wrist pose).

    Attributes:
      position: origin of the hand's root body in the world [m].
      rotation: R_world_wrist.
      joints: finger joints [rad].
      squeeze: offset of the finger joints [rad].
    """

    position: Float[Array, "*batch 3"]
    rotation: Float[Array, "*batch 3 3"]
    joints: Float[Array, "*batch J"]
    squeeze: Float[Array, "*batch J"]

    @property
    def pregrasp(self) -> Float[Array, "*batch J"]:
        return self.joints - self.squeeze

    @property
    def squeezed(self) -> Float[Array, "*batch J"]:
        return self.joints + self.squeeze

    @property
    def wrist(self) -> Pose:
        """T_world_wrist."""
        return Pose(position=self.position, rotation=self.rotation)


@dataclass(frozen=True, kw_only=True)
class GraspSpec:
    """Layout of a grasp vector: wrist position (3), 6-d rotation (6), joints (J), squeeze (J), in the object's frame.

    Attributes:
      hand: name of the hand.
      joint_names: the J finger joints, in the order of the vector.
      hold: what counts as one in `difference` for the place of the object in the hand [m].
    """

    hand: str
    joint_names: tuple[str, ...]
    hold: float = 0.03

    plan_type = Grasp

    @property
    def dim(self) -> int:
        return 9 + 2 * len(self.joint_names)

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> Grasp:
        n = len(self.joint_names)
        wrist = frame @ Pose(position=vector[:3], rotation=rotation_from_6d(vector[3:9]))
        return Grasp(
            position=wrist.position, rotation=wrist.rotation, joints=vector[9 : 9 + n], squeeze=vector[9 + n :]
        )

    def encode(self, plan: Grasp, frame: Pose) -> Float[Array, "n"]:
        wrist = frame.inverse() @ plan.wrist
        return jnp.concatenate([wrist.position, rotation_to_6d(wrist.rotation), plan.joints, plan.squeeze])

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        """The wrist's translation counts where the object is, not where the wrist is: with (R, p) and (R', p') in the object's frame, the
        hand has moved by p - R R'^T p' past the object's origin. To carry the hand around the object is then cheap, and
        to shift the object in the hand is dear, as it is for the grasp."""
        turn = rotation_from_6d(vector[3:9]) @ rotation_from_6d(reference[3:9]).T
        moved = vector[:3] - turn @ reference[:3]
        return jnp.concatenate([moved / self.hold, ((vector - reference) / scale)[3:]])

    def rows(self, *fields: str) -> np.ndarray:
        n = len(self.joint_names)
        parts = {"position": (0, 3), "rotation": (0, 9), "joints": (9, 9 + n), "squeeze": (9 + n, 9 + 2 * n)}
        return np.unique(np.concatenate([np.arange(*parts[name]) for name in fields]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """H actions in a row, in whatever units and frame the policy was trained on.

    Attributes:
      actions: one row for every step.
    """

    actions: Float[Array, "*batch H D"]


@dataclass(frozen=True, kw_only=True)
class ActionChunkSpec:
    """Layout of a chunk of actions whose meaning only its user knows: the rows one after the other; the frame is ignored.

    Attributes:
      horizon: number H of steps.
      width: length D of an action.
      executed: first step that a receding horizon executes, and the first that it does not: the chunk may begin in the past.
    """

    horizon: int
    width: int
    executed: tuple[int, int]

    plan_type = ActionChunk

    @property
    def dim(self) -> int:
        return self.horizon * self.width

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> ActionChunk:
        return ActionChunk(actions=vector.reshape(self.horizon, self.width))

    def encode(self, plan: ActionChunk, frame: Pose) -> Float[Array, "n"]:
        return plan.actions.reshape(-1)

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        return (vector - reference) / scale

    def rows(self, *fields: str) -> np.ndarray:
        return np.arange(self.dim)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Point:
    """A plan that is just a vector, as in problems with a known answer."""

    values: Float[Array, "*batch n"]


@dataclass(frozen=True, kw_only=True)
class PointSpec:
    """The vector itself; the frame is ignored."""

    dim: int = field(default=2)

    plan_type = Point

    def decode(self, vector: Float[Array, "n"], frame: Pose) -> Point:
        return Point(values=vector)

    def encode(self, plan: Point, frame: Pose) -> Float[Array, "n"]:
        return plan.values

    def difference(
        self, vector: Float[Array, "n"], reference: Float[Array, "n"], scale: Float[Array, "n"]
    ) -> Float[Array, "n"]:
        return (vector - reference) / scale

    def rows(self, *fields: str) -> np.ndarray:
        return np.arange(self.dim)
