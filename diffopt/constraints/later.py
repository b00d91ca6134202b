"""A constraint of a path, on the knots from some knot on: what lies before is over, and nothing is asked of it.

Chunks of published policies begin in the past (Diffusion Policy, LeRobot: n_obs - 1 steps). Those knots stay part of the plan, because
the network's vector holds them; limits of a motion start behind them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, HasAuxiliary, Labelled, LikeBase, Windowed
from diffopt.constraints.motion_limits import MotionLimits
from diffopt.constraints.set import ConstraintSet
from diffopt.paths import JointPath, Path, ToolPath


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Later(LikeBase):
    """A constraint of a path of H - first knots, on the last knots of one of H.

    Attributes:
      base: the constraint, which has to know its derivatives (`Windowed`).
      first: knots before.
    """

    base: Any
    first: int = field(metadata=dict(static=True))

    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    def _trim(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[self.first :], tree)

    def auxiliary(self, plan: Path, context: Any) -> dict[str, Float[Array, "seeds H A"]]:
        """The base's guesses, begun from their first posture."""
        if not isinstance(self.base, HasAuxiliary):
            return {}
        guesses = self.base.auxiliary(self._trim(plan), context)
        return {
            name: jnp.concatenate([jnp.repeat(values[:, :1], self.first, axis=1), values], axis=1)
            for name, values in guesses.items()
        }

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "R m"]:
        """The base's rows, in its units."""
        return self.base.residual(self._trim(plan), self._trim(aux), context)

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        rows, pieces = self.base.windows(self._trim(plan), self._trim(aux), context)
        return rows, tuple((first + self.first, blocks) for first, blocks in pieces)

    def labels(self) -> tuple[str, ...]:
        return self.base.labels() if isinstance(self.base, Labelled) else ()

    @staticmethod
    def example(key: Any) -> tuple[Later, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """Velocity limits from the third knot on; (plan, aux) that is too fast before it only, and everywhere."""
        base, (plan, slow), (_, fast) = MotionLimits.example(key)
        start = slow["joints"].at[0].add(2.0)
        return Later(base=replace(base, past=None), first=2), (plan, {"joints": start}), (plan, fast)


def later(constraints: ConstraintSet, first: int) -> ConstraintSet:
    """The set, its constraints along paths asked for from knot `first` on; those of one configuration stay on every knot.

    Raises:
      TypeError: a constraint along paths does not know its derivatives, and `first` is not 0.
    """
    if first == 0:
        return constraints
    out = []
    for constraint in constraints:
        types = constraint.plan_type if isinstance(constraint.plan_type, tuple) else (constraint.plan_type,)
        if not any(issubclass(t, (ToolPath, JointPath)) for t in types):
            out.append(constraint)
        elif isinstance(constraint, Windowed):
            out.append(Later(base=constraint, first=first))
        else:
            raise TypeError(
                f"constraint {constraint.name!r} speaks of whole paths and does not know its derivatives by knots (`windows`): it cannot "
                f"be asked of a path's knots from {first} on"
            )
    return ConstraintSet(tuple(out))
