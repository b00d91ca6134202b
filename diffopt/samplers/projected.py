"""Projected diffusion: every iterate of the last levels is projected onto the feasible set (row 12 of the catalogue).

    x_{k-1} = P(mu + std z)

Projected diffusion models (arXiv 2402.03559), simultaneous multi-robot diffusion (SMD, arXiv 2502.03607), and DPCC (arXiv 2412.09342),
which tightens the constraints (`tighten` = 0.025) against the mismatch of its model. The constraints see the noisy iterate; the last
one is the plan, so that it satisfies them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.projection import Last, Projection, finish_projected, tightened
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, plain_draw, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Projected:
    """See the module's docstring.

    Attributes:
      share: at which share of the levels, counted from the end, iterates are projected.
      tighten: margin on the inequalities, in their units.
      tracks: starting points of the projection. passes: its solver steps. See `projection`.
      terminal: solver steps of a further, terminal projection.
    """

    share: float = field(default=0.5, metadata=dict(static=True))
    tighten: float | Array = 0.0
    tracks: int = field(default=2, metadata=dict(static=True))
    passes: int = field(default=3, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        projection = Projection.onto(
            process, tightened(constraints, self.tighten), tracks=self.tracks, passes=self.passes
        )

        def rule(x, last, level):
            mean, std = process.mean_std(x, level.k)
            corrected = projection(mean + std * level.noise, last.tracks)
            return Stepped(corrected.x, mean, last.then(corrected))

        walked = walk(process, key, rule, lambda x, k: Last.first(projection, x), share=self.share)
        return finish_projected(projection, walked, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="projected",
    build=Projected,
    row=12,
    paper="PDM, arXiv 2402.03559; SMD, arXiv 2502.03607; DPCC, arXiv 2412.09342",
    summary="every iterate of the last levels is projected onto the feasible set",
    needs=("projection",),
    strength=("share", (0.125, 0.25, 0.5, 0.75, 1.0)),
)
