"""Named constraints, joined with `|`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints.base import (
    Approaches,
    Auxiliary,
    Bounded,
    Constraint,
    Covered,
    HasAuxiliary,
    HasMargin,
    Kind,
    Labelled,
    NeedsRobot,
    OfRobot,
    Realisable,
    Wraps,
)
from diffopt.constraints.posture import LooksAtFrames, with_frames
from diffopt.constraints.soft import soft


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Report:
    """How well a plan satisfies a set.

    Attributes:
      violation: by name, the residual that is furthest from satisfied, in its units; 0 if none is positive (equalities: nonzero).
      where: by name, the row of that residual.
      satisfied: whether every row of every constraint is within its tolerance.
    """

    violation: dict[str, Float[Array, ""]]
    where: dict[str, Int[Array, ""]]
    satisfied: Bool[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ConstraintSet:
    """An ordered set of constraints with distinct names; a pytree, so new numbers never retrace.

    Sets and single constraints are joined with `|`: `robot.constraints | scene.constraints | mine`.
    """

    constraints: tuple[Constraint, ...] = field(default=())

    @staticmethod
    def of(*constraints: Constraint) -> ConstraintSet:
        """The set of some constraints."""
        out = ConstraintSet()
        for constraint in constraints:
            out = out | constraint
        return out

    def __repr__(self) -> str:
        return f"ConstraintSet({', '.join(f'{c.name}: {c.kind}' for c in self)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(constraint.name for constraint in self.constraints)

    def __iter__(self) -> Iterator[Constraint]:
        return iter(self.constraints)

    def __len__(self) -> int:
        return len(self.constraints)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Constraint:
        return self.constraints[self._index(name)]

    def __or__(self, other: ConstraintSet | Constraint) -> ConstraintSet:
        """Both sets together; a ValueError if they share a name.

        Constraints of a scene, which know of no robot yet, are bound to the robot that the others speak about.
        """
        added = other.constraints if isinstance(other, ConstraintSet) else (other,)
        shared = [c.name for c in added if c.name in self.names]
        if shared:
            raise ValueError(
                f"both sets have a constraint named {shared[0]!r} (left: {', '.join(self.names)}; right: "
                f"{', '.join(c.name for c in added)}); use replace({shared[0]!r}, ...) or give one of them another name"
            )
        return ConstraintSet(_bind(self.constraints + tuple(added)))

    def __ror__(self, other: Constraint) -> ConstraintSet:
        """A single constraint, and then this set."""
        return ConstraintSet.of(other) | self

    def remove(self, *names: str) -> ConstraintSet:
        """The set without some constraints."""
        gone = {self._index(name) for name in names}
        return ConstraintSet(tuple(c for i, c in enumerate(self.constraints) if i not in gone))

    def replace(self, name: str, constraint: Constraint) -> ConstraintSet:
        """The set with the constraint `name` exchanged for another."""
        i = self._index(name)
        return ConstraintSet((*self.constraints[:i], constraint, *self.constraints[i + 1 :]))

    def tightened(self, amount: float | Float[Array, ""], names: Iterable[str] | None = None) -> ConstraintSet:
        """The set with `amount` added to margins, each in its own units (m, rad).

        Args:
          names: of which constraints; default all that have a margin.
        Raises:
          KeyError, ValueError: one of `names` is not in the set, or has no margin.
        """
        if names is None:
            return ConstraintSet(tuple(tightened(c, amount) for c in self))
        out = self
        for name in (names,) if isinstance(names, str) else names:
            if not has_margin(self[name]):
                able = [c.name for c in self if has_margin(c)]
                raise ValueError(
                    f"constraint {name!r} has no margin to tighten; these have: {', '.join(able) or 'none'}"
                )
            out = out.replace(name, tightened(self[name], amount))
        return out

    def soften(self, *names: str, weight: float | Float[Array, ""]) -> ConstraintSet:
        """The set with some constraints made costs: no longer asked for, but paid for, by half of `weight` times the squared violation.

        Args:
          weight: per squared unit of the residual [1/m^2, 1/rad^2, ...]; the plan's own cost is half its squared distance in standard
            deviations, so that with 1e4 a centimetre costs as much as one standard deviation.
        Raises:
          KeyError, ValueError: one of `names` is not in the set, or cannot be softened (a check has no derivative).
        """
        out = self
        for name in names:
            out = out.replace(name, soft(self[name], weight))
        return out

    def auxiliary(self, plan: Any, context: Any) -> dict[str, Float[Array, "seeds n"]]:
        """Auxiliary unknowns of all constraints by name, each with its initial guesses; of a shared one those of the last to name it
        come first."""
        out: dict[str, Array] = {}
        for constraint in self:
            if isinstance(constraint, HasAuxiliary):
                for name, guesses in constraint.auxiliary(plan, context).items():
                    out[name] = jnp.concatenate([guesses, out[name]]) if name in out else guesses
        return out

    @property
    def approaches(self) -> bool:
        """Whether guesses of all unknowns can be brought near to a plan by the realised equalities themselves."""
        return bool(self.realised) and all(isinstance(self[name], Approaches) for name in self.realised)

    def approached(
        self, plan: Any, guesses: dict[str, Float[Array, "S n"]], steps: int
    ) -> dict[str, Float[Array, "S n"]]:
        """Guesses after some steps towards a plan, by the realised equalities that know how."""
        for name in self.realised:
            constraint = self[name]
            if isinstance(constraint, Approaches):
                guesses = constraint.approach(plan, guesses, steps)
        return guesses

    @property
    def asks(self) -> bool:
        """Whether auxiliary unknowns have to be found before a plan can be judged."""
        return any(isinstance(constraint, HasAuxiliary) for constraint in self)

    def bounds(self) -> dict[str, tuple[Array, Array]]:
        """Box bounds of auxiliary unknowns, by name; where several constraints bound one, their intersection."""
        out: dict[str, tuple[Array, Array]] = {}
        for constraint in self:
            if isinstance(constraint, Bounded):
                for name, (lower, upper) in constraint.bounds().items():
                    low, high = out.get(name, (lower, upper))
                    out[name] = (jnp.maximum(low, lower), jnp.minimum(high, upper))
        return out

    def realise(self, plan: Any, aux: Auxiliary, context: Any) -> Any:
        """The plan with everything that realisable equalities determine computed from the auxiliary unknowns."""
        for constraint in self:
            if isinstance(constraint, Realisable):
                plan = constraint.realise(plan, aux, context)
        return plan

    @property
    def realised(self) -> tuple[str, ...]:
        """Names of the constraints that `realise` satisfies by construction."""
        return tuple(c.name for c in self if isinstance(c, Realisable))

    def covered(self) -> ConstraintSet:
        """The set with the spheres that cover exact collision bodies (`bodies="primitives"`) in their place: stricter, and far cheaper."""
        return ConstraintSet(tuple(covered(c) for c in self))

    def of_kind(self, *kinds: Kind) -> tuple[Constraint, ...]:
        """The constraints of some kinds, in order."""
        return tuple(c for c in self if c.kind in kinds)

    def report(self, plan: Any, aux: Auxiliary, context: Any) -> Report:
        """Violations of a plan, computed from the plan and its auxiliary unknowns alone."""
        violation, where, satisfied = {}, {}, jnp.asarray(True)
        framed = with_frames(self, plan, aux)
        for constraint in self:
            if constraint.kind == "cost":
                continue
            residual = constraint.residual(plan, framed if isinstance(constraint, LooksAtFrames) else aux, context)
            amount = jnp.abs(residual) if constraint.kind == "eq" else jnp.maximum(residual, 0)
            amount = jnp.where(jnp.isnan(amount), jnp.inf, amount)
            tolerance = jnp.broadcast_to(jnp.asarray(constraint.tolerance, amount.dtype), amount.shape)
            row = jnp.argmax(amount - tolerance) if residual.size else jnp.zeros((), jnp.int32)
            where[constraint.name] = row
            violation[constraint.name] = jnp.ravel(amount)[row] if residual.size else jnp.zeros(())
            satisfied &= jnp.all(amount <= tolerance)
        return Report(violation=violation, where=where, satisfied=satisfied)

    def labels(self) -> dict[str, tuple[str, ...]]:
        """By name, what the rows of a residual mean, for the constraints that say."""
        return {c.name: c.labels() for c in self if isinstance(c, Labelled)}

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"no constraint {name!r} in this set; it has: {', '.join(self.names) or 'none'}")
        return self.names.index(name)


def has_margin(constraint: Any) -> bool:
    """Whether a constraint, or what it is made of, keeps a margin."""
    return isinstance(constraint, HasMargin) or (isinstance(constraint, Wraps) and has_margin(constraint.base))


def covered(constraint: Any) -> Any:
    """The constraint with covers instead of exact collision bodies; itself if it looks at none."""
    inner: Any = constraint
    if isinstance(constraint, Covered):
        return constraint.covered()
    return replace(inner, base=covered(constraint.base)) if isinstance(constraint, Wraps) else constraint


def tightened(constraint: Any, amount: float | Float[Array, ""]) -> Any:
    """The constraint with `amount` added to its margin, in its own units; itself if it has none."""
    inner: Any = constraint
    if isinstance(constraint, HasMargin):
        return replace(inner, margin=constraint.margin + amount)
    return replace(inner, base=tightened(constraint.base, amount)) if isinstance(constraint, Wraps) else constraint


def _bind(constraints: tuple[Constraint, ...]) -> tuple[Constraint, ...]:
    """The constraints, those without a robot given the one that the others have (if they all have the same)."""
    robots = [c.robot for c in constraints if isinstance(c, OfRobot) and c.robot is not None]
    names = {robot.name for robot in robots}
    if len(names) != 1:
        return constraints
    return tuple(c.on(robots[0]) if isinstance(c, NeedsRobot) and c.robot is None else c for c in constraints)
