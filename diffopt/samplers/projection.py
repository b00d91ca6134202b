"""The projection onto the feasible set, as samplers use it level after level.

P(c) is the nearest vector to c, in normalised coordinates, whose plan satisfies the constraints, with the joints that realise it: the
problem of `correction` with a stiff penalty, by `passes` Gauss-Newton steps. The joints start where the last level left off, the vector at
c: from there, rows that a step has reached stay active, slightly violated by |P(c) - c| / 1e5, and the next step keeps them. (Multipliers
carried over from another c would push rows to the inside, from where a step ignores them.) `tightened` shrinks the set first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints import Bounded, Constraint, ConstraintSet, HasAuxiliary
from diffopt.constraints.base import Auxiliary, LikeBase
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, stats
from diffopt.samplers.correction import Correction
from diffopt.samplers.tracks import Corrected, Tracks
from diffopt.solvers import RealTimeIteration

if TYPE_CHECKING:
    from diffopt.samplers.walk import Walked

FARTHEST = 10.0  # a projection moves a normalised coordinate in one step


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Projection:
    """See the module's docstring.

    Attributes:
      correction: the problem.
      passes: solver steps per projection.
      penalty: per squared violation in scales.
    """

    correction: Correction
    passes: int = field(default=3, metadata=dict(static=True))
    penalty: float | Array = 10.0

    @staticmethod
    def onto(process: ReverseProcess, constraints: ConstraintSet, *, tracks: int, passes: int) -> Projection:
        correction = Correction.of(process.policy, constraints, tracks=tracks)
        return Projection(correction=correction, passes=passes)

    @property
    def solver(self) -> RealTimeIteration:
        """Steps are limited where the unknowns are joints; a vector may go all the way at once."""
        longest = 0.5 if self.correction.nearest.eliminated else FARTHEST
        return RealTimeIteration(penalty=self.penalty, hard=False, longest=longest, passes=self.correction.passes)

    def start(self, c: Float[Array, "n"]) -> Tracks:
        """Where the first projection starts."""
        return self.correction.start(c, self.solver)

    def __call__(self, c: Float[Array, "n"], tracks: Tracks, weight: Any = 1.0) -> Corrected:
        """P(c); where the vector is an unknown it starts at c, whatever the tracks say."""
        return self.correction.settle(c, self.correction.at(c, tracks), self.solver, weight, steps=self.passes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Last:
    """The carry of a walk that projects: the tracks, and what the last projection answered.

    Attributes:
      tracks: where the next projection starts.
      aux, settled: of the last one.
      iterations: so far.
    """

    tracks: Tracks
    aux: dict[str, Array]
    settled: Array
    iterations: Array

    @staticmethod
    def first(projection: Projection, c: Float[Array, "n"]) -> Last:
        tracks = projection.start(c)
        aux = {name: values[0] for name, values in tracks.z.items() if name != "x"}
        return Last(tracks=tracks, aux=aux, settled=jnp.asarray(False), iterations=jnp.zeros((), jnp.int32))

    def then(self, corrected: Corrected) -> Last:
        return Last(
            tracks=corrected.tracks,
            aux=corrected.aux,
            settled=corrected.settled,
            iterations=self.iterations + corrected.iterations,
        )


def finish_projected(projection: Projection, walked: Walked, *, evaluations: Any, terminal: int) -> Draw:
    """The plan as the last projection left it; with `terminal` > 0 projected once more, by so many solver steps."""
    x, last, moved = walked.x, walked.carry, walked.moved
    if terminal:
        more = Projection(correction=projection.correction, passes=terminal, penalty=projection.penalty)
        end = more(x, last.tracks)
        moved = moved + jnp.linalg.norm(end.x - end.reference)
        x, last = end.x, last.then(end)
    return Draw(
        x=x,
        aux=last.aux,
        settled=last.settled,
        stats=stats(
            evaluations=evaluations,
            iterations=last.iterations,
            control_energy=walked.energy,
            terminal_move=moved,
        ),
        warm=None,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tightened(LikeBase):
    """An inequality with a margin.

    Attributes:
      base: the inequality.
      margin: added to every row, in the residual's units.
    """

    base: Constraint
    margin: float | Array

    @property
    def plan_type(self) -> type | tuple[type, ...]:
        return self.base.plan_type

    def residual(self, plan: Any, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        return self.base.residual(plan, aux, context) + self.margin


def tightened(constraints: ConstraintSet, margin: Any) -> ConstraintSet:
    """The set with a margin on its inequalities; box bounds, and constraints that bring unknowns of their own, stay as they are."""
    for constraint in constraints.of_kind("ineq"):
        if not isinstance(constraint, (Bounded, HasAuxiliary)):
            constraints = constraints.replace(constraint.name, Tightened(base=constraint, margin=margin))
    return constraints
