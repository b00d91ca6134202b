"""Projected coupled diffusion: a step down the cost, then the projection (row 13 of the catalogue).

    x_{k-1} = P(mu + std z - lambda std^2 grad c(x_k))

Luan et al. 2025 (arXiv 2508.10531; there c couples the plans of several robots). Here c is the sum of the set's costs, or, of a set
without any, the softened cost J of its constraints. The step is scaled by the variance, as a score is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.projection import Last, Projection, finish_projected
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, plain_draw, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PCD:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      share: at which share of the levels, counted from the end.
      softness: of the cost's rows; see `guidance`.
      tracks: starting points of the projection. passes: its solver steps. See `projection`.
      terminal: solver steps of a further, terminal projection.
    """

    strength: float | Array = 0.1
    share: float = field(default=1.0, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    passes: int = field(default=3, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        soft = ConstraintSet(constraints.of_kind("cost")) if constraints.of_kind("cost") else constraints
        guide = Guide(policy=process.policy, constraints=soft, softness=self.softness, tracks=self.tracks)
        projection = Projection.onto(process, constraints, tracks=self.tracks, passes=self.passes)

        def rule(x, carry, level):
            last, tracks = carry
            mean, std = process.mean_std(x, level.k)
            tracks = guide.follow(x, tracks)
            aimed = mean + std * level.noise - self.strength * std**2 * guide.gradient(x, tracks)[1]
            corrected = projection(aimed, last.tracks)
            return Stepped(corrected.x, mean, (last.then(corrected), tracks))

        walked = walk(process, key, rule, lambda x, k: (Last.first(projection, x), guide.start(x)), share=self.share)
        walked = replace(walked, carry=walked.carry[0])
        return finish_projected(projection, walked, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="pcd",
    build=PCD,
    row=13,
    paper="Luan et al. 2025, arXiv 2508.10531",
    summary="a step down the cost, then the projection",
    needs=("gradient", "projection"),
    strength=("strength", (0.0003, 0.001, 0.003, 0.01, 0.03)),
)
