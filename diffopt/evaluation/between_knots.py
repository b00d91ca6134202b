"""Collisions of a motion at its knots and between them.

The arm goes from knot to knot in straight lines of its joints. At the knots, and at `count` - 1 postures between two of them,

    q = (1 - s) q_h + s q_{h+1},   s = i / count:        residual(q) <= 0,       derivatives  (1 - s) J(q)  and  s J(q)

with J that of a constraint of one configuration by the arm's joints. A sampler that is only asked about knots finds that it may step
across a post; it then claims what is not so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.along import grasp_at
from diffopt.constraints.base import Auxiliary, LikeBase
from diffopt.paths import JointPath


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BetweenKnots(LikeBase):
    """See the module's docstring; of paths of joints.

    Attributes:
      base: a constraint of one configuration that knows its Jacobian, such as `SceneCollision`.
      count: postures per step.
    """

    base: Any
    count: int = field(default=2, metadata=dict(static=True))

    plan_type: ClassVar[tuple[type, ...]] = (JointPath,)

    @property
    def robot(self) -> Any:
        return self.base.robot

    def on(self, robot: Any) -> BetweenKnots:
        """The constraint for `robot`."""
        return replace(self, base=self.base.on(robot))

    @property
    def _shares(self) -> np.ndarray:
        return np.arange(1, self.count) / self.count

    def _postures(self, joints: Float[Array, "H A"]) -> Float[Array, "P A"]:
        """The knots, then what lies between all neighbours, share after share."""
        early, late = joints[:-1], joints[1:]
        return jnp.concatenate([joints, *((1 - s) * early + s * late for s in self._shares)])

    def _looked(self, look: Any, plan: JointPath, joints: Float[Array, "H A"], context: Any) -> Any:
        def one(q: Float[Array, "A"]) -> Any:
            knot = JointPath(arm=q, joints=plan.joints[0], dt=plan.dt)
            return look(grasp_at(knot, self.base), {"joints": q}, context)

        return jax.vmap(one)(self._postures(joints))

    def residual(self, plan: JointPath, aux: Auxiliary, context: Any) -> Float[Array, "P m"]:
        """That of the base, the hand as at the first knot; satisfied when <= 0."""
        return self._looked(self.base.residual, plan, aux["joints"], context)

    def windows(self, plan: JointPath, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        values, J = self._looked(self.base.jacobian, plan, aux["joints"], context)
        H = len(aux["joints"])
        between = J[H:].reshape(len(self._shares), H - 1, *J.shape[1:])
        pieces = [(0, J[:H, :, None])]
        pieces += [(0, jnp.stack([(1 - s) * j, s * j], axis=2)) for s, j in zip(self._shares, between, strict=True)]
        return values, tuple(pieces)
