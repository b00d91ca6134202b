"""What a constraint is.

A constraint is a residual of a plan in physical units. Most constraints of a robot speak about the joint positions that realise
the plan; these are no part of the plan but an auxiliary unknown, named "joints" and shared by every constraint of a set, so that
reach, limits and collisions are solved for once and together.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Array, Float

Kind = Literal["eq", "ineq", "cost", "check"]
Auxiliary = dict[str, Array]


@runtime_checkable
class Constraint(Protocol):
    """A residual of a plan; a pytree.

    Attributes:
      name: how the set and the solution call it.
      kind: "eq" (satisfied at zero), "ineq" (satisfied when <= 0), "cost" (half its squared norm is added to the objective) or "check"
        (satisfied when <= 0, and without a derivative: judged, but shown to no solver).
      plan_type: the type of plan that it speaks about.
      tolerance: per row (or one for all), what still counts as satisfied, in the residual's units.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def plan_type(self) -> type | tuple[type, ...]: ...

    @property
    def tolerance(self) -> float | tuple[float, ...]: ...

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """The residual [m, rad, s, N ...]."""
        ...


@runtime_checkable
class HasAuxiliary(Protocol):
    """A constraint that brings unknowns of its own."""

    def auxiliary(self, plan: Any, context: Any) -> dict[str, Float[Array, "seeds n"]]:
        """Unknowns by name, each with several initial guesses, the best first."""
        ...


@runtime_checkable
class Realisable(Protocol):
    """An equality that can be solved for a part of the plan.

    `realise` returns the plan with that part computed from the auxiliary unknowns, so that the residual is zero by construction
    and the solver has fewer unknowns and no equality.

    Attributes:
      realises: the fields of the plan that it computes.
    """

    @property
    def realises(self) -> tuple[str, ...]: ...

    def realise(self, plan: Any, aux: Auxiliary, context: Any) -> Any: ...


@runtime_checkable
class JointsRealised(Protocol):
    """A realisable equality, solved by the joints alone, that knows how the realised plan moves with them."""

    def realised(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Any, Any]:
        """The realised plan, and its derivative by aux["joints"]: a plan whose leaves have a leading axis of joints."""
        ...


@runtime_checkable
class Approaches(Protocol):
    """A realisable equality that can bring guesses of its unknowns near to a plan by itself, many at once and without derivatives of the
    plan's coordinates."""

    def approach(self, plan: Any, aux: Auxiliary, steps: int) -> Auxiliary:
        """Guesses (leading axis) after some steps towards the plan."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A constraint that is only box bounds on auxiliary unknowns, which a solver may enforce by clipping."""

    def bounds(self) -> dict[str, tuple[Float[Array, "n"], Float[Array, "n"]]]:
        """Lower and upper bounds by the name of the unknown."""
        ...


@runtime_checkable
class HasMargin(Protocol):
    """A constraint that keeps a margin, in its residual's units; a dataclass, so that `replace` changes it."""

    @property
    def margin(self) -> Any: ...


@runtime_checkable
class Covered(Protocol):
    """A constraint on exact collision bodies, which has a cheaper and stricter form: on the spheres that cover them."""

    def covered(self) -> Constraint: ...


@runtime_checkable
class Labelled(Protocol):
    """A constraint that can say what the rows of its residual mean, for messages."""

    def labels(self) -> tuple[str, ...]: ...


@runtime_checkable
class JointsLinear(Protocol):
    """A constraint that knows its Jacobian by the joints better than automatic differentiation does."""

    def jacobian(self, plan: Any, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m J"]]:
        """The residual of the realised plan, and its derivative by aux["joints"] where the plan moves along with them; of a path, by the
        joints of all knots, (..., H, A)."""
        ...


@runtime_checkable
class Windowed(Protocol):
    """A constraint of a path whose rows each look at a few neighbouring knots, and that knows its Jacobian by their joints."""

    def windows(
        self, plan: Any, aux: Auxiliary, context: Any
    ) -> tuple[Float[Array, "R m"], tuple[tuple[int, Float[Array, "r m w A"]], ...]]:
        """The residual, and its derivatives by the joints: per piece the first knot k of its first row group, and the derivatives of
        the m rows of each of its r groups by the w knots from there (group i starts at knot k + i)."""
        ...


@runtime_checkable
class Wraps(Protocol):
    """A constraint made of another."""

    @property
    def base(self) -> Any: ...


class LikeBase:
    """What a constraint that is made of another has from it."""

    base: Any

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def kind(self) -> Kind:
        return self.base.kind

    @property
    def tolerance(self) -> Any:
        return self.base.tolerance


@runtime_checkable
class OfRobot(Protocol):
    """A constraint of one robot."""

    @property
    def robot(self) -> Any: ...


@runtime_checkable
class NeedsRobot(Protocol):
    """A constraint of a robot that can be made before it is known which: `robot` is None until then."""

    @property
    def robot(self) -> Any: ...

    def on(self, robot: Any) -> Constraint: ...
