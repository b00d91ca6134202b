"""The nearest vector whose plan satisfies the constraints (`nearest`), from several starting points.

Inverse kinematics has local minima: several starting points, the tracks, are carried along, and the best one counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffopt.constraints import ConstraintSet
from diffopt.paths import is_path
from diffopt.policies.base import Policy
from diffopt.samplers.nearest import Nearest, auxiliary
from diffopt.samplers.tracks import Corrected, Progress, Tracks
from diffopt.solvers import RealTimeIteration, Solver, SolverResult, Status


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Correction:
    """See the module's docstring.

    Attributes:
      nearest: the problem.
      tracks: number of starting points.
      search, steps: among how many guesses they are looked for, and by how many steps.
      held: whether guesses are brought to the reference's own pose by inverse kinematics, where the constraints know some, and all of them
        judged. That finds joints for nearly every reference that has some; of one that has none it finds a plan further away.
    """

    nearest: Nearest
    tracks: int = field(default=4, metadata=dict(static=True))
    search: int = field(default=8, metadata=dict(static=True))
    steps: int = field(default=5, metadata=dict(static=True))
    held: bool = field(default=False, metadata=dict(static=True))

    @staticmethod
    def of(policy: Policy, constraints: ConstraintSet, **options: Any) -> Correction:
        """For the plans of a bound policy that satisfy a set."""
        return Correction(nearest=Nearest(policy=policy, constraints=constraints), **options)

    def tightened(self, by: Any) -> Correction:
        """With every margin grown by so much [m, rad]."""
        nearest = self.nearest
        return replace(self, nearest=replace(nearest, constraints=nearest.constraints.tightened(by)))

    @property
    def passes(self) -> int:
        """Passes of a Gauss-Newton step: along a path, which of the many limits bind takes some finding."""
        return 5 if is_path(self.nearest.policy.spec.plan_type) else 1

    def seeds(self, c: Float[Array, "n"], solver: Solver) -> Tracks:
        """Tracks at the constraints' own first guesses for a reference, before any search."""
        z, _ = self.nearest.guesses(self.nearest.meaning(c), self.tracks, self.tracks)
        warm = jax.vmap(lambda z: solver.cold(self.nearest.problem, z, (c, jnp.ones(()))))(z)
        return Tracks(z=z, warm=warm)

    def start(
        self, c: Float[Array, "n"], solver: Solver, tracks: Tracks | None = None, near: Float[Array, "n"] | None = None
    ) -> Tracks:
        """Tracks for a reference, the best first: by half the squared distance to it, plus ten times the largest scaled violation.

        With joints to be found, `search` guesses are first brought near the reference by `steps` steps that look at nothing but the
        distance; of the nearest, twice as many as there are tracks (of all where they are `held`), those that violate least become the
        tracks. `tracks`, of an earlier reference, are guesses too. Exact collision bodies are covered by spheres here, which is enough
        for a choice.

        Args:
          near: where they are `held`, the guesses are those for this vector instead.
        """
        c = self.nearest.meaning(c)
        args, held = (c, jnp.ones(())), self.held and self.nearest.constraints.approaches
        z, number = self.nearest.guesses(c, self.search, self.tracks, near if held else None)
        old = {} if tracks is None else auxiliary(tracks.z)
        if old:
            earlier = len(next(iter(old.values())))
            old |= {} if self.nearest.eliminated else {"x": z["x"][:earlier]}
            z = {name: jnp.concatenate([old[name], values]) for name, values in z.items()}
            number += earlier
        if held:
            z = self.nearest.approached(z, c, self.steps)
        if self.nearest.eliminated:
            steps = 1 if held else self.steps  # one at least, which gives the distance
            z, merits = jax.vmap(lambda z: self._approach(z, args, steps))(z)
        else:
            merits = jnp.zeros(number)

        strict = replace(self.nearest, constraints=self.nearest.constraints.covered()).problem

        def violation(z: dict[str, Array]) -> Float[Array, ""]:
            terms = strict.terms(z, args)
            return jnp.max(jnp.abs(terms.eq), initial=0.0) + jnp.max(terms.ineq, initial=0.0)

        if number > 2 * self.tracks and not held:
            z, merits = _least(z, merits, 2 * self.tracks)
        z, _ = _least(z, merits + 10 * jax.vmap(violation)(z), min(self.tracks, number))
        warm = jax.vmap(lambda z: solver.cold(self.nearest.problem, z, args))(z)
        return Tracks(z=z, warm=warm)

    def _approach(self, z: dict[str, Array], args, steps: int) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Some steps towards the reference, within bounds, without regard to the other constraints; and the cost there."""
        solver, problem = RealTimeIteration(longest=1.0), self.nearest.distance

        def body(z: dict[str, Array], _: None) -> tuple[dict[str, Array], Float[Array, ""]]:
            result = solver(problem, z, args)
            return result.z, result.cost

        z, costs = jax.lax.scan(body, z, length=steps)
        return z, costs[-1]

    def step(
        self, c: Float[Array, "n"], tracks: Tracks, solver: Solver, weight: Any = 1.0
    ) -> tuple[Tracks, SolverResult]:
        """One call of the solver on every track for the reference c, from where the tracks are."""
        args = (c, jnp.asarray(weight, c.dtype))
        result = jax.vmap(lambda z, warm: solver(self.nearest.problem, z, args, warm))(tracks.z, tracks.warm)
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
        if self.nearest.eliminated:
            return tracks
        return replace(tracks, z=tracks.z | {"x": jnp.broadcast_to(self.nearest.meaning(c), tracks.z["x"].shape)})

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
        c = self.nearest.meaning(c)

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
        c = self.nearest.meaning(c)
        x = jax.vmap(lambda z: self.nearest.vector(z, c))(tracks.z)
        merit = progress.cost / jnp.asarray(weight) ** 2 + 10 * progress.violation
        return self._choose(c, x, tracks, progress, merit, jnp.zeros(merit.shape, bool))

    def judged(self, c: Float[Array, "n"], tracks: Tracks, progress: Progress) -> Corrected:
        """The nearest track that satisfies the set, judged by itself; or the one that violates it least."""
        c = self.nearest.meaning(c)
        x = jax.vmap(lambda z: self.nearest.vector(z, c))(tracks.z)
        policy, constraints = self.nearest.policy, self.nearest.constraints

        def judge(x: Float[Array, "n"], z: dict[str, Array]) -> Bool[Array, ""]:
            return constraints.report(policy.decode(x), auxiliary(z), policy.context).satisfied

        satisfied = jax.vmap(judge)(x, tracks.z)
        merit = jnp.where(satisfied, progress.cost, 1e6 * (1 + progress.violation))
        return self._choose(c, x, tracks, progress, merit, satisfied)

    def _choose(self, c, x, tracks: Tracks, progress: Progress, merit, satisfied) -> Corrected:
        best = jnp.argmin(jnp.where(jnp.isfinite(merit), merit, jnp.inf))
        return Corrected(
            reference=c,
            x=x[best],
            aux=auxiliary(jax.tree.map(lambda values: values[best], tracks.z)),
            tracks=tracks,
            satisfied=satisfied[best],
            settled=progress.settled[best],
            iterations=jnp.sum(progress.iterations),
        )


def _least(z: dict[str, Array], merits: Float[Array, "T"], n: int) -> tuple[dict[str, Array], Float[Array, "n"]]:
    """The n starting points with the least merits, the best first."""
    values, order = jax.lax.top_k(-merits, n)
    return jax.tree.map(lambda leaf: leaf[order], z), -values
