"""Nearness to an earlier plan's joints, knot by knot: what keeps two chunks of a receding horizon from jumping where they meet.

w_h (q_h - r_h)          [-],   r the earlier plan's joints at the same times, w_h in 1/rad, zero where it has none any more
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.paths import JointPath, Path, ToolPath


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A cost: half the squared residual is added to the objective.

    Attributes:
      joints: r [rad].
      weight: w [1/rad].
    """

    joints: Float[Array, "H A"]
    weight: Float[Array, "H"]
    name: str = field(default="overlap", metadata=dict(static=True))

    kind: ClassVar[Kind] = "cost"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)
    tolerance: ClassVar[float] = 1.0

    def auxiliary(self, plan: Path, context: Any) -> dict[str, Float[Array, "seeds H A"]]:
        """The earlier plan itself."""
        return {"joints": self.joints[None]}

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H A"]:
        """Weighted differences of the joints."""
        return self.weight[:, None] * (aux["joints"] - self.joints)

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        blocks = self.weight[:, None, None, None] * jnp.eye(self.joints.shape[1])[None, :, None]
        return self.residual(plan, aux, context), ((0, blocks),)

    @staticmethod
    def example(key: Any) -> tuple[Overlap, tuple[JointPath, Auxiliary], tuple[JointPath, Auxiliary]]:
        """Four knots of three joints, the last of them without an earlier plan; (plan, aux) near it, and far from it."""
        earlier = jax.random.uniform(key, (4, 3))
        cost = Overlap(joints=earlier, weight=jnp.array([3.0, 2.0, 1.0, 0.0]))
        near, far = earlier.at[3].add(1.0) + 0.01, earlier + 0.5
        hand = jnp.zeros((4, 1))
        return (
            cost,
            (JointPath(arm=near, joints=hand, dt=0.1), {"joints": near}),
            (JointPath(arm=far, joints=hand, dt=0.1), {"joints": far}),
        )
