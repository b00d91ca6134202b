"""Primal-dual sampling: multipliers that grow while a constraint is violated, from level to level (row 15 of the catalogue).

    mu <- mu - sum_i [lambda_i + rho_k c_i]+ grad c_i(mu),      lambda_i <- [lambda_i + eta c_i(mu)]+,      x_{k-1} = mu + std z

Constrained diffusers (arXiv 2506.12544: the primal-dual and the augmented Lagrangian variant; eta = 0.45, rho from 0.025 to 0.154 over the
levels). An equality counts as two inequalities. c are the rows in units of `softness`; their coefficients belong to rows of order one.
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
class PrimalDual:
    """See the module's docstring.

    Attributes:
      strength: eta.
      first, last: rho at the first and at the last level; geometric between.
      softness: of the rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.45
    first: float | Array = 0.025
    last: float | Array = 0.154
    softness: float | Array = 100.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        begin = tracks_at(process, guide)

        def rule(x, carry, level):
            tracks, multipliers = carry
            mean, std = process.mean_std(x, level.k)
            tracks = guide.follow(mean, tracks)
            q = guide.best(mean, tracks)
            rows, pull = jax.vjp(lambda x: guide.rows(x, q), mean)
            done = (process.count - level.k) / max(process.count - 1, 1)
            rho = self.first * (self.last / self.first) ** done
            mu = mean - pull(jnp.maximum(multipliers + rho * rows, 0))[0]
            multipliers = jnp.maximum(multipliers + self.strength * rows, 0)
            return Stepped(mu + std * level.noise, mean, (tracks, multipliers))

        def first(x, k):
            tracks = begin(x, k)
            return tracks, jnp.zeros_like(guide.rows(x, guide.best(x, tracks)))

        walked = walk(process, key, rule, first)
        return finish(process, guide, walked, walked.carry[0], evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="primal_dual",
    build=PrimalDual,
    row=15,
    paper="Constrained diffusers, arXiv 2506.12544",
    summary="multipliers grow from level to level while a constraint is violated",
    needs=("gradient",),
    strength=("strength", (0.003, 0.01, 0.03, 0.1, 0.3)),
    differentiable=True,
)
