"""Projection of the clean estimate at every level, with the noise kept or drawn anew (row 16 of the catalogue).

    x0 <- P(x0),      then   x_{k-1} = alpha_{k-1} x0 + sqrt(sigma_{k-1}^2 - std^2) e + std z     (e as the network said)
                      or     x_{k-1} = alpha_{k-1} x0 + sigma_{k-1} z                             (`renoise`)

Constrained posterior sampling (arXiv 2410.12652) is the first; project and renoise the second. The constraints see a clean plan, and
what the network does after the last projection but one is projected away at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.projection import Last, Projection, finish_projected
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, keeping_noise, plain_draw, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CleanProjection:
    """See the module's docstring.

    Attributes:
      renoise: whether all of the noise is drawn anew.
      share: at which share of the levels, counted from the end.
      tracks: starting points of the projection. passes: its solver steps. See `projection`.
      terminal: solver steps of a further, terminal projection.
    """

    renoise: bool = field(default=False, metadata=dict(static=True))
    share: float = field(default=1.0, metadata=dict(static=True))
    tracks: int = field(default=2, metadata=dict(static=True))
    passes: int = field(default=3, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        projection = Projection.onto(process, constraints, tracks=self.tracks, passes=self.passes)

        def rule(x, last, level):
            k = level.k
            clean = process.clean(x, k)
            corrected = projection(clean, last.tracks)
            mean = process.mean(x, clean, k)
            if self.renoise:
                ahead = process.alpha[k - 1] * corrected.x + process.sigma[k - 1] * level.noise
            else:
                ahead = keeping_noise(process, x, clean, corrected.x, k) + process.std[k] * level.noise
            return Stepped(ahead, mean, last.then(corrected))

        walked = walk(process, key, rule, lambda x, k: Last.first(projection, x), share=self.share)
        return finish_projected(projection, walked, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="clean_projection",
    build=CleanProjection,
    row=16,
    paper="CPS, arXiv 2410.12652",
    summary="the clean estimate is projected; the noise is kept, or drawn anew",
    needs=("projection",),
    strength=("share", (0.125, 0.25, 0.5, 0.75, 1.0)),
)
