"""Rejection: draw N, judge each, keep one that is feasible, or else the one that violates least (row 1 of the catalogue)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.linearization import scale
from diffopt.samplers.registry import Card


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Best of N plain draws; among several feasible ones the first, so that what is returned follows the prior.

    Attributes:
      draws: N.
      base: how one is drawn and realised.
    """

    base: DDIM = field(default_factory=DDIM)
    draws: int = field(default=16, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        def one(key):
            draw = self.base(process, constraints, key)
            report = constraints.report(process.policy.decode(draw.x), draw.aux, process.policy.context)
            excess = [jnp.max(scale(constraints[name], value)) for name, value in report.violation.items()]
            return draw, report.satisfied, sum(excess, jnp.zeros(()))

        draws, satisfied, excess = jax.vmap(one)(jax.random.split(key, self.draws))
        best = jnp.argmin(jnp.where(satisfied, -1.0, jnp.where(jnp.isfinite(excess), excess, jnp.inf)))
        chosen = jax.tree.map(lambda leaf: leaf[best], draws)
        return replace(
            chosen,
            stats=replace(
                chosen.stats,
                evaluations=jnp.sum(draws.stats.evaluations),
                iterations=jnp.sum(draws.stats.iterations),
                acceptance=jnp.mean(satisfied.astype(jnp.float32)),
            ),
        )


CARD = Card(
    name="rejection",
    build=Rejection,
    row=1,
    paper="von Neumann 1951",
    summary="best of N plain samples",
    needs=("check",),
    evaluations="1 per draw",
    strength=("draws", (4, 8, 16, 32, 64)),
)
