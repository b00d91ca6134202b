"""Nearness to a reference in time: at every knot, the tool no further from where a given path has it at that time than a bounded offset.

    | p(q_h) - p_ref,h | - position <= 0  [m],         | log(R_ref,h' R(q_h)) | - angle <= 0  [rad]

The reference may be what the policy drew unguided, the motion of a demonstration or of an object that is to be followed. A plan
that satisfies it cannot buy trackability, or anything else, by falling behind the reference: what it may differ by at any time is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import needs_arm
from diffopt.geometry import Pose, rotation_vector
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NearPath:
    """The tool near a reference, knot by knot.

    Attributes:
      reference: T_world_tool at the knots, stacked; `ToolPath.tool` of a path.
      robot: whose tool; None until the constraint is joined with a robot's, see `on`.
      position, angle: bounds of the offset [m], [rad].
    """

    reference: Pose
    robot: Embodiment | None = None
    position: float | Float[Array, ""] = 0.03
    angle: float | Float[Array, ""] = 0.2
    name: str = field(default="near_path", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)
    tolerance: ClassVar[tuple[float, float]] = (1e-3, 0.0087)

    def on(self, robot: Embodiment) -> NearPath:
        """The constraint for `robot`."""
        return replace(self, robot=robot)

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H 2"]:
        """Distance [m] and turn [rad] from the reference, less the bounds; satisfied when <= 0."""
        joints = self._checked(aux["joints"])
        return jax.vmap(self._apart)(joints, self.reference)

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        joints = self._checked(aux["joints"])
        blocks = jax.vmap(jax.jacrev(self._apart))(joints, self.reference)
        return jax.vmap(self._apart)(joints, self.reference), ((0, blocks[:, :, None]),)

    def _apart(self, joints: Float[Array, "A"], wanted: Pose) -> Float[Array, "2"]:
        tool = needs_arm(self.robot, self.name).tool_pose(joints)
        gap, turn = tool.position - wanted.position, rotation_vector(wanted.rotation.T @ tool.rotation)
        return jnp.stack([_norm(gap) - self.position, _norm(turn) - self.angle])

    def _checked(self, joints: Float[Array, "H A"]) -> Float[Array, "H A"]:
        if self.reference.position.shape != (len(joints), 3):
            raise ValueError(
                f"the reference of {self.name!r} has positions {self.reference.position.shape}; expected ({len(joints)} knots, 3)"
            )
        return joints

    def labels(self) -> tuple[str, ...]:
        return ("distance [m]", "turn [rad]")

    @staticmethod
    def example(key: Any) -> tuple[NearPath, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """A Panda that should move as it once did, within 3 cm: (plan, aux) a little off, and falling behind."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-gripper")
        rate = jax.random.uniform(key, robot.home.shape, minval=0.3, maxval=0.6)
        once = robot.home + rate * 0.1 * jnp.arange(1, 6)[:, None]
        tool = jax.vmap(robot.tool_pose)(once)
        plan = ToolPath(position=tool.position, rotation=tool.rotation, joints=jnp.zeros((5, 1)), dt=0.1)
        behind = robot.home + 0.5 * (once - robot.home)
        return NearPath(reference=tool, robot=robot), (plan, {"joints": once + 0.01}), (plan, {"joints": behind})


def _norm(v: Float[Array, "3"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(v**2) + 1e-14)
