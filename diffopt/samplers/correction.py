"""The problem of one step: the nearest vector, in normalised coordinates, whose plan satisfies the constraints.

Given a reference vector c (an iterate or a clean estimate), over the vector x and the auxiliary unknowns a (the robot's joints),

    minimise    1/2 w^2 |x - c|^2 + 1/2 |cost(x, a)|^2        (x - c: the policy's `difference`)
    subject to  eq(x, a) = 0,   ineq(x, a) <= 0,   a_lower <= a <= a_upper.

c is first replaced by encode(decode(c)), what it means. What a vector may hold beyond that, such as six numbers of a rotation that are
not orthonormal, is left alone. Realisable equalities (reach: wrist pose = FK(joints)) are eliminated: x = encode(realise(decode(c), a)),
so that the only unknowns are the joints, seven for an arm, and what comes out is reachable by construction. Rows are scaled by their
tolerance. Inverse kinematics has local minima: several starting points, the tracks, are carried along and the best one counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffopt.constraints import (
    Bounded,
    Constraint,
    ConstraintSet,
    JointsRealised,
    Realisable,
)
from diffopt.constraints.posture import LooksAtFrames, with_frames
from diffopt.paths import is_path
from diffopt.policies.base import Policy
from diffopt.samplers.linearization import Piece, by_joints, jacobian_of, scale
from diffopt.samplers.tracks import Corrected, Progress, Tracks
from diffopt.solvers import (
    Jacobian,
    Problem,
    RealTimeIteration,
    Solver,
    SolverResult,
    Status,
    Terms,
    Window,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Correction:
    """See the module's docstring.

    Attributes:
      policy: decodes and encodes; bound.
      constraints: the set.
      tracks: number of starting points.
      search, steps: among how many guesses they are looked for, and by how many steps.
      eliminate: whether realisable equalities are solved for the plan.
    """

    policy: Policy
    constraints: ConstraintSet
    tracks: int = field(default=4, metadata=dict(static=True))
    search: int = field(default=8, metadata=dict(static=True))
    steps: int = field(default=5, metadata=dict(static=True))
    eliminate: bool = field(default=True, metadata=dict(static=True))

    @property
    def eliminated(self) -> bool:
        return self.eliminate and bool(self.constraints.realised)

    @property
    def passes(self) -> int:
        """Passes of a Gauss-Newton step: along a path, which of the many limits bind takes some finding."""
        return 5 if is_path(self.policy.spec.plan_type) else 1

    def seeds(self, c: Float[Array, "n"], solver: Solver) -> Tracks:
        """Tracks at the constraints' own first guesses for a reference, before any search."""
        z, _ = self._guesses(self.meaning(c), self.tracks)
        warm = jax.vmap(lambda z: solver.cold(self._problem, z, (c, jnp.ones(()))))(z)
        return Tracks(z=z, warm=warm)

    def start(self, c: Float[Array, "n"], solver: Solver, tracks: Tracks | None = None) -> Tracks:
        """Tracks for a reference, the best first: by half the squared distance to it, plus ten times the largest scaled violation.

        With joints to be found, `search` guesses are first brought near the reference by `steps` steps that look at nothing but the
        distance; of the nearest, twice as many as there are tracks, those that violate least become the tracks. `tracks`, of an
        earlier reference, are guesses too. Exact collision bodies are covered by spheres here, which is enough for a choice.
        """
        c = self.meaning(c)
        args = (c, jnp.ones(()))
        z, number = self._guesses(c, self.search)
        old = {} if tracks is None else _auxiliary(tracks.z)
        if old:
            earlier = len(next(iter(old.values())))
            old |= {} if self.eliminated else {"x": z["x"][:earlier]}
            z = {name: jnp.concatenate([old[name], values]) for name, values in z.items()}
            number += earlier
        if self.eliminated:
            z, merits = jax.vmap(lambda z: self._approach(z, args))(z)
        else:
            merits = jnp.zeros(number)

        strict = replace(self, constraints=self.constraints.covered())._problem

        def violation(z: dict[str, Array]) -> Float[Array, ""]:
            terms = strict.terms(z, args)
            return jnp.max(jnp.abs(terms.eq), initial=0.0) + jnp.max(terms.ineq, initial=0.0)

        if number > 2 * self.tracks:
            z, merits = _least(z, merits, 2 * self.tracks)
        z, _ = _least(z, merits + 10 * jax.vmap(violation)(z), min(self.tracks, number))
        warm = jax.vmap(lambda z: solver.cold(self._problem, z, args))(z)
        return Tracks(z=z, warm=warm)

    def _guesses(self, c: Float[Array, "n"], number: int) -> tuple[dict[str, Array], int]:
        """The first guesses for a reference, at least as many as there are tracks, and how many they are."""
        seeds = self.constraints.auxiliary(self.policy.decode(c), self.policy.context)
        count = max((len(values) for values in seeds.values()), default=1)
        number = max(min(number, count), self.tracks)
        # a slice where it can be one: what is not asked for is then not computed
        z = {n: v[:number] if number <= len(v) else v[jnp.arange(number) % len(v)] for n, v in seeds.items()}
        return (z if self.eliminated else {"x": jnp.broadcast_to(c, (number, c.size))} | z), number

    def _approach(self, z: dict[str, Array], args) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Some steps towards the reference, within bounds, without regard to the other constraints; and the cost there."""
        solver, problem = RealTimeIteration(longest=1.0), self._distance

        def body(z: dict[str, Array], _: None) -> tuple[dict[str, Array], Float[Array, ""]]:
            result = solver(problem, z, args)
            return result.z, result.cost

        z, costs = jax.lax.scan(body, z, length=self.steps)
        return z, costs[-1]

    def meaning(self, c: Float[Array, "n"]) -> Float[Array, "n"]:
        """encode(decode(c))."""
        return self.policy.encode(self.policy.decode(c))

    def step(
        self, c: Float[Array, "n"], tracks: Tracks, solver: Solver, weight: Any = 1.0
    ) -> tuple[Tracks, SolverResult]:
        """One call of the solver on every track for the reference c, from where the tracks are."""
        args = (c, jnp.asarray(weight, c.dtype))
        result = jax.vmap(lambda z, warm: solver(self._problem, z, args, warm))(tracks.z, tracks.warm)
        return Tracks(z=result.z, warm=result.warm), result

    def __call__(
        self, c: Float[Array, "n"], tracks: Tracks, solver: Solver, weight: Any = 1.0, *, steps: int = 1
    ) -> Corrected:
        """Correct c by `steps` calls of the solver; of the tracks the one that the solver thinks best is chosen."""
        tracks, progress = self.improve(c, self.at(c, tracks), solver, weight, steps=steps)
        return self.best(c, tracks, progress, weight)

    def settle(
        self, c: Float[Array, "n"], tracks: Tracks, solver: Solver, weight: Any = 1.0, *, steps: int
    ) -> Corrected:
        """Correct c by `steps` calls of the solver; the set itself judges, and the nearest satisfied track is chosen."""
        tracks, progress = self.improve(c, tracks, solver, weight, steps=steps)
        return self.judged(c, tracks, progress)

    def at(self, c: Float[Array, "n"], tracks: Tracks) -> Tracks:
        """The tracks with their vector at c, where it is an unknown."""
        if self.eliminated:
            return tracks
        return replace(tracks, z=tracks.z | {"x": jnp.broadcast_to(self.meaning(c), tracks.z["x"].shape)})

    def improve(
        self,
        c: Float[Array, "n"],
        tracks: Tracks,
        solver: Solver,
        weight: Any = 1.0,
        *,
        steps: int | Array,
        most: int | None = None,
    ) -> tuple[Tracks, Progress]:
        """`steps` calls of the solver on every track; a traced number of them is at most `most`."""
        c = self.meaning(c)

        def step(tracks: Tracks, progress: Progress) -> tuple[Tracks, Progress]:
            tracks, result = self.step(c, tracks, solver, weight)
            return tracks, Progress(
                cost=result.cost,
                violation=result.eq_violation + result.ineq_violation,
                settled=result.status != Status.iteration_limit,
                iterations=progress.iterations + result.iterations,
            )

        def body(carry: tuple[Tracks, Progress], i: Array) -> tuple[tuple[Tracks, Progress], None]:
            if most is None:
                return step(*carry), None
            return jax.lax.cond(i < steps, step, lambda *carry: carry, *carry), None

        number = steps if most is None else most
        return jax.lax.scan(body, (tracks, Progress.none(tracks)), jnp.arange(number))[0]

    def best(self, c: Float[Array, "n"], tracks: Tracks, progress: Progress, weight: Any = 1.0) -> Corrected:
        """The track that the solver thinks best."""
        c = self.meaning(c)
        x = jax.vmap(lambda z: self._vector(z, c))(tracks.z)
        merit = progress.cost / jnp.asarray(weight) ** 2 + 10 * progress.violation
        return self._choose(c, x, tracks, progress, merit, jnp.zeros(merit.shape, bool))

    def judged(self, c: Float[Array, "n"], tracks: Tracks, progress: Progress) -> Corrected:
        """The nearest track that satisfies the set, judged by itself; or the one that violates it least."""
        c = self.meaning(c)
        x = jax.vmap(lambda z: self._vector(z, c))(tracks.z)

        def judge(x: Float[Array, "n"], z: dict[str, Array]) -> Bool[Array, ""]:
            return self.constraints.report(self.policy.decode(x), _auxiliary(z), self.policy.context).satisfied

        satisfied = jax.vmap(judge)(x, tracks.z)
        merit = jnp.where(satisfied, progress.cost, 1e6 * (1 + progress.violation))
        return self._choose(c, x, tracks, progress, merit, satisfied)

    def _choose(self, c, x, tracks: Tracks, progress: Progress, merit, satisfied) -> Corrected:
        best = jnp.argmin(jnp.where(jnp.isfinite(merit), merit, jnp.inf))
        return Corrected(
            reference=c,
            x=x[best],
            aux=_auxiliary(jax.tree.map(lambda values: values[best], tracks.z)),
            tracks=tracks,
            satisfied=satisfied[best],
            settled=progress.settled[best],
            iterations=jnp.sum(progress.iterations),
        )

    @property
    def _problem(self) -> Problem:
        return Problem(
            cost=self._cost,
            eq=self._equalities if self._solved("eq") else None,
            ineq=self._inequalities if self._solved("ineq") else None,
            bounds=self._bounds if self.constraints.bounds() else None,
            linearize=self._linearize if self._joints_only else None,
            sizes=partial(self._sizes, "_problem"),
        )

    @property
    def _distance(self) -> Problem:
        """The problem without its constraints."""
        return Problem(
            cost=self._cost,
            bounds=self._bounds if self.constraints.bounds() else None,
            linearize=self._linearize_cost if self._joints_only else None,
            sizes=partial(self._sizes, "_distance"),
        )

    def _sizes(self, which: str, z, args) -> tuple[int, int, int]:
        return _counted(which, *_abstract((self, z, args)))

    def _plan(self, z, c) -> tuple[Any, dict[str, Array]]:
        aux = _auxiliary(z)
        plan = self.policy.decode(c if self.eliminated else z["x"])
        return (self.constraints.realise(plan, aux, self.policy.context) if self.eliminated else plan), aux

    def _vector(self, z, c) -> Float[Array, "n"]:
        return self.policy.encode(self._plan(z, c)[0]) if self.eliminated else z["x"]

    def _cost(self, z, args) -> Float[Array, "m"]:
        c, weight = args
        plan, aux = self._plan(z, c)
        costs = [jnp.ravel(k.residual(plan, aux, self.policy.context)) for k in self._solved("cost")]
        return jnp.concatenate([weight * self.policy.difference(self._vector(z, c), c)[self._free_rows], *costs])

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
        plan, aux = self._plan(z, c)
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
        plan, rate = reach.realised(self.policy.decode(c), _auxiliary(z), self.policy.context)

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
        parts, pieces, aux = [], [piece], _auxiliary(z)
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
    """The numbers of rows of a correction's problem."""

    def terms(leaves: list[Array]) -> Terms:
        correction, z, args = jax.tree.unflatten(structure, leaves)
        return getattr(correction, which).terms(z, args)

    found = jax.eval_shape(terms, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    return found.cost.size, found.eq.size, found.ineq.size


@lru_cache(maxsize=256)
def _unknowns(structure: Any, shapes: Shapes) -> frozenset[str]:
    """The names of what a correction brings guesses for."""

    def guesses(leaves: list[Array]) -> dict[str, Array]:
        correction = jax.tree.unflatten(structure, leaves)
        return correction._guesses(jnp.zeros(correction.policy.spec.dim), 1)[0]

    return frozenset(jax.eval_shape(guesses, [jax.ShapeDtypeStruct(*shape) for shape in shapes]))


def _least(z: dict[str, Array], merits: Float[Array, "T"], n: int) -> tuple[dict[str, Array], Float[Array, "n"]]:
    """The n starting points with the least merits, the best first."""
    values, order = jax.lax.top_k(-merits, n)
    return jax.tree.map(lambda leaf: leaf[order], z), -values


def _auxiliary(z: dict[str, Array]) -> dict[str, Array]:
    """The unknowns that are not the plan's vector."""
    return {name: value for name, value in z.items() if name != "x"}
