"""The problem of one step: the nearest vector, in normalised coordinates, whose plan satisfies the constraints.

Given a reference vector c (an iterate or a clean estimate), over the vector x and the auxiliary unknowns a (the robot's joints),

    minimise    1/2 w^2 |x - c|^2 + 1/2 |cost(x, a)|^2        (x - c: the policy's `difference`)
    subject to  eq(x, a) = 0,   ineq(x, a) <= 0,   a_lower <= a <= a_upper.

c is first replaced by encode(decode(c)), what it means. What a vector may hold beyond that, such as six numbers of a rotation that are
not orthonormal, is left alone. Realisable equalities (reach: wrist pose = FK(joints)) are eliminated: x = encode(realise(decode(c), a)),
so that the only unknowns are the joints, seven for an arm, and what comes out is reachable by construction. Rows are scaled by their
tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints import (
    Bounded,
    Constraint,
    ConstraintSet,
    JointsRealised,
    Realisable,
)
from diffopt.constraints.posture import LooksAtFrames, with_frames
from diffopt.policies.base import Policy
from diffopt.samplers.linearization import Piece, by_joints, jacobian_of, scale
from diffopt.solvers import Jacobian, Problem, Terms, Window


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Nearest:
    """See the module's docstring. Starting points z hold the auxiliary unknowns by name and, where it is one, the vector "x".

    Attributes:
      policy: decodes and encodes; bound.
      constraints: the set.
    """

    policy: Policy
    constraints: ConstraintSet

    @property
    def eliminated(self) -> bool:
        """Whether realisable equalities are solved for the plan."""
        return bool(self.constraints.realised)

    def meaning(self, c: Float[Array, "n"]) -> Float[Array, "n"]:
        """encode(decode(c))."""
        return self.policy.encode(self.policy.decode(c))

    def guesses(
        self, c: Float[Array, "n"], number: int, least: int = 1, near: Float[Array, "n"] | None = None
    ) -> tuple[dict[str, Array], int]:
        """The first guesses for a reference, `number` of them or as many as there are, but at least `least`, and how many they are;
        auxiliary unknowns are guessed for `near`, or for the reference."""
        seeds = self.constraints.auxiliary(self.policy.decode(c if near is None else near), self.policy.context)
        count = max((len(values) for values in seeds.values()), default=1)
        number = max(min(number, count), least)
        # a slice where it can be one: what is not asked for is then not computed
        z = {n: v[:number] if number <= len(v) else v[jnp.arange(number) % len(v)] for n, v in seeds.items()}
        return (z if self.eliminated else {"x": jnp.broadcast_to(c, (number, c.size))} | z), number

    def approached(self, z: dict[str, Array], c: Float[Array, "n"], steps: int) -> dict[str, Array]:
        """Starting points (leading axis) after some steps towards the reference, where the constraints know such (`approaches`)."""
        return z | jax.lax.stop_gradient(self.constraints.approached(self.policy.decode(c), auxiliary(z), steps))

    @property
    def problem(self) -> Problem:
        """What the solver needs to know; its arguments are the reference and the weight w."""
        return Problem(
            cost=self._cost,
            eq=self._equalities if self._solved("eq") else None,
            ineq=self._inequalities if self._solved("ineq") else None,
            bounds=self._bounds if self.constraints.bounds() else None,
            linearize=self._linearize if self._joints_only else None,
            sizes=partial(self._sizes, "problem"),
        )

    @property
    def distance(self) -> Problem:
        """The problem without its constraints."""
        return Problem(
            cost=self._cost,
            bounds=self._bounds if self.constraints.bounds() else None,
            linearize=self._linearize_cost if self._joints_only else None,
            sizes=partial(self._sizes, "distance"),
        )

    def _sizes(self, which: str, z, args) -> tuple[int, int, int]:
        return _counted(which, *_abstract((self, z, args)))

    def plan(self, z, c) -> tuple[Any, dict[str, Array]]:
        """The plan of a starting point, and its auxiliary unknowns."""
        aux = auxiliary(z)
        plan = self.policy.decode(c if self.eliminated else z["x"])
        return (self.constraints.realise(plan, aux, self.policy.context) if self.eliminated else plan), aux

    def vector(self, z, c) -> Float[Array, "n"]:
        """The vector x of a starting point."""
        return self.policy.encode(self.plan(z, c)[0]) if self.eliminated else z["x"]

    def _cost(self, z, args) -> Float[Array, "m"]:
        c, weight = args
        plan, aux = self.plan(z, c)
        costs = [jnp.ravel(k.residual(plan, aux, self.policy.context)) for k in self._solved("cost")]
        return jnp.concatenate([weight * self.policy.difference(self.vector(z, c), c)[self._free_rows], *costs])

    @property
    def _free_rows(self) -> Any:
        """The elements of the difference that the unknowns can change; the others are zero."""
        if not self.eliminated:
            return slice(None)
        fields = {name for k in self.constraints if isinstance(k, Realisable) for name in k.realises}
        return self.policy.spec.rows(*sorted(fields))

    def _equalities(self, z, args) -> Float[Array, "m"]:
        return self._rows("eq", z, args[0])

    def _inequalities(self, z, args) -> Float[Array, "m"]:
        return self._rows("ineq", z, args[0])

    def _rows(self, kind, z, c) -> Float[Array, "m"]:
        plan, aux = self.plan(z, c)
        framed = with_frames(self._solved(kind), plan, aux)
        auxes = [(k, framed if isinstance(k, LooksAtFrames) else aux) for k in self._solved(kind)]
        rows = [jnp.ravel(scale(k, k.residual(plan, aux, self.policy.context))) for k, aux in auxes]
        return jnp.concatenate(rows)

    def _solved(self, kind) -> tuple[Constraint, ...]:
        """The constraints of a kind that are neither eliminated nor plain bounds."""
        skip = self.constraints.realised if self.eliminated else ()
        return tuple(k for k in self.constraints.of_kind(kind) if k.name not in skip and not isinstance(k, Bounded))

    def _bounds(self, args) -> tuple[dict[str, Array], dict[str, Array]]:
        c, _ = args
        bounds = self.constraints.bounds()
        seeds = self.constraints.auxiliary(self.policy.decode(c), self.policy.context)
        free = {name: jnp.full(values.shape[1:], jnp.inf) for name, values in seeds.items()}
        if not self.eliminated:
            free["x"] = jnp.full(c.size, jnp.inf)
        lower = {name: bounds[name][0] if name in bounds else -infinite for name, infinite in free.items()}
        upper = {name: bounds[name][1] if name in bounds else infinite for name, infinite in free.items()}
        return lower, upper

    @property
    def _joints_only(self) -> bool:
        """Whether the joints are all unknowns, and the realised plan's derivative by them is known."""
        realised = [k for k in self.constraints if k.name in self.constraints.realised]
        if not (self.eliminated and len(realised) == 1 and isinstance(realised[0], JointsRealised)):
            return False
        return _unknowns(*_abstract(self)) == {"joints"}

    def _move(self, z, args) -> tuple[Any, Any, Float[Array, "m"], Piece]:
        """The realised plan, its rate, and the difference to the reference with its Jacobian."""
        c, weight = args
        (reach,) = (k for k in self.constraints if isinstance(k, JointsRealised))
        plan, rate = reach.realised(self.policy.decode(c), auxiliary(z), self.policy.context)

        def difference(plan: Any) -> Float[Array, "m"]:
            return weight * self.policy.difference(self.policy.encode(plan), c)[self._free_rows]

        values, columns = jax.vmap(lambda t: jax.jvp(difference, (plan,), (t,)), out_axes=(None, 0))(rate)
        if z["joints"].ndim == 1:
            return plan, rate, values, columns
        # of a path, all knots at once: each moves with its own joints alone
        blocks = columns.reshape(columns.shape[0], z["joints"].shape[0], -1, 1)
        return plan, rate, values, Window(blocks=jnp.moveaxis(blocks, 0, -1))

    def _linearize_cost(self, z, args) -> tuple[Terms, Jacobian]:
        return self._linearize(z, args, only_cost=True)

    def _linearize(self, z, args, only_cost: bool = False) -> tuple[Terms, Jacobian]:
        plan, rate, difference, piece = self._move(z, args)
        parts, pieces, aux = [], [piece], auxiliary(z)
        framed = aux if only_cost else with_frames(self._solved("ineq"), plan, aux)
        for kind, values in (("cost", [difference]), ("eq", []), ("ineq", [])):
            for k in () if only_cost and kind != "cost" else self._solved(kind):
                rows, more = by_joints(
                    k, plan, rate, framed if isinstance(k, LooksAtFrames) else aux, self.policy.context
                )
                values.append(rows)
                pieces += more
            parts.append(jnp.concatenate([jnp.zeros(0), *values]))
        return Terms(*parts), jacobian_of(pieces, z["joints"])


Shapes = tuple[tuple[tuple[int, ...], Any], ...]


def _abstract(tree: Any) -> tuple[Any, Shapes]:
    """The structure of a pytree, and the shapes and types of its leaves: what the functions below are cached by."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@lru_cache(maxsize=256)
def _counted(which: str, structure: Any, shapes: Shapes) -> tuple[int, int, int]:
    """The numbers of rows of a problem."""

    def terms(leaves: list[Array]) -> Terms:
        nearest, z, args = jax.tree.unflatten(structure, leaves)
        return getattr(nearest, which).terms(z, args)

    found = jax.eval_shape(terms, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    return found.cost.size, found.eq.size, found.ineq.size


@lru_cache(maxsize=256)
def _unknowns(structure: Any, shapes: Shapes) -> frozenset[str]:
    """The names of what there are guesses for."""

    def guesses(leaves: list[Array]) -> dict[str, Array]:
        nearest = jax.tree.unflatten(structure, leaves)
        return nearest.guesses(jnp.zeros(nearest.policy.spec.dim), 1)[0]

    return frozenset(jax.eval_shape(guesses, [jax.ShapeDtypeStruct(*shape) for shape in shapes]))


def auxiliary(z: dict[str, Array]) -> dict[str, Array]:
    """The unknowns that are not the plan's vector."""
    return {name: value for name, value in z.items() if name != "x"}
