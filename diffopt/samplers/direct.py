"""DiRecT: the clean estimate at the *next* iterate is corrected, and the iterate moves along (row 17 of the catalogue).

    xb = mu + std z,      xt = x0(xb, k-1),      x* = argmin over the feasible set of  lambda C(x) + alpha_{k-1}^2/(2 std^2) |x - xt|^2
    x_{k-1} = xb + alpha_{k-1} (x* - xt)

arXiv 2606.15359; C are the set's costs. The quadratic term is the energy of the control that makes the move, with the drawn noise as the
anchor. On the last half of the levels, lambda = 1. In a set without costs x* is the projection, whatever lambda.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.projection import Last, Projection, finish_projected
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, plain_draw, solved_levels, walk

LEAST = 0.05  # standard deviation of a step, for the weight of the last one


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DiRecT:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      share: at which share of the levels, counted from the end.
      tracks: starting points of the projection. passes: its solver steps. See `projection`.
      terminal: solver steps of a further, terminal projection.
    """

    strength: float | Array = 1.0
    share: float = field(default=0.5, metadata=dict(static=True))
    tracks: int = field(default=2, metadata=dict(static=True))
    passes: int = field(default=3, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        projection = Projection.onto(process, constraints, tracks=self.tracks, passes=self.passes)

        def rule(x, last, level):
            k = level.k
            mean, std = process.mean_std(x, k)
            drawn = mean + std * level.noise
            alpha = process.alpha[k - 1]
            weight = alpha / (jnp.maximum(std, LEAST) * jnp.sqrt(self.strength)) if constraints.of_kind("cost") else 1.0
            corrected = projection(process.clean(drawn, k - 1), last.tracks, weight)
            return Stepped(drawn + alpha * (corrected.x - corrected.reference), mean, last.then(corrected))

        walked = walk(process, key, rule, lambda x, k: Last.first(projection, x), share=self.share)
        evaluations = process.count + solved_levels(process, self.share)
        return finish_projected(projection, walked, evaluations=evaluations, terminal=self.terminal)


CARD = Card(
    name="direct",
    build=DiRecT,
    row=17,
    paper="arXiv 2606.15359",
    summary="the clean estimate at the next iterate is corrected, and the iterate moves along",
    needs=("projection",),
    evaluations="2 where it corrects, 1 before",
    strength=("share", (0.125, 0.25, 0.5, 0.75, 1.0)),
)
