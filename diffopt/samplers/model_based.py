"""Model-based diffusion around the policy: the clean estimate is a mean of rollouts, weighted by their cost (row 21 of the catalogue).

    y_i = x0 + r_k w_i,  w_i ~ N(0, 1),      x0* = x0 + sum_i (W_i - 1/N) r_k w_i,      W = softmax(-J(y_i) / temperature)
    r_k = spread sigma_k / sqrt(alpha_k^2 + sigma_k^2),      then the plain step with x0*

Model-based diffusion (arXiv 2407.01573) draws around the iterate, with a density that is all cost; PAD-TRO (arXiv 2510.04436) around what a
trajectory optimiser predicts. Here it is around the clean estimate of the policy, r_k being its uncertainty for a prior of unit
variance. The 1/N takes the mean of the drawn w out, so that a cost of zero changes nothing. J need not be differentiable (the joints,
where there are any, are those of the clean estimate).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, plain_draw, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ModelBased:
    """See the module's docstring.

    Attributes:
      temperature: of the softmax, in units of J.
      spread: factor on r_k.
      rollouts: N.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the papers have none.
    """

    temperature: float | Array = 1.0
    spread: float | Array = 1.0
    rollouts: int = field(default=256, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def rule(x, tracks, level):
            k = level.k
            clean = process.clean(x, k)
            tracks = guide.follow(clean, tracks)
            q = guide.best(clean, tracks)
            alpha, sigma = process.alpha[k], process.sigma[k]
            away = (
                self.spread
                * sigma
                / jnp.sqrt(alpha**2 + sigma**2)
                * jax.random.normal(level.key, (self.rollouts, x.size))
            )
            costs = jax.vmap(lambda w: guide.cost(clean + w, q))(away)
            weights = jax.nn.softmax(-costs / self.temperature) - 1 / self.rollouts
            mean = process.mean(x, clean, k)
            return Stepped(process.mean(x, clean + weights @ away, k) + process.std[k] * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="model_based",
    build=ModelBased,
    row=21,
    paper="MBD, arXiv 2407.01573; PAD-TRO, arXiv 2510.04436",
    summary="the clean estimate is a mean of rollouts around it, weighted by their cost",
    needs=("check",),
    strength=("temperature", (0.003, 0.01, 0.03, 0.1, 0.3)),
    differentiable=True,
)
