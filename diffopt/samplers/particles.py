"""Feynman-Kac steering: a population drawn plainly and resampled by how its clean estimates do (row 20 of the catalogue).

    G_k(x_k) = -lambda excess(x0(x_k)),      the proposal is the plain step

Singhal et al. 2025 (arXiv 2501.06848, with the difference potential); JM2D (arXiv 2509.08775) steers motions by the same means. `excess` is
what a check reports, so that constraints need not be differentiable (where they bring joints, these are solved for by gradients).
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
from diffopt.samplers.population import Look, steer
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import finish, plain_draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Particles:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      count: members of the population, per plan.
      softness: unit of the excess. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 3.0
    count: int = field(default=16, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def look(x, tracks, k):
            clean = process.clean(x, k)
            tracks = guide.follow(clean, tracks)
            return Look(clean, -self.strength * guide.excess(clean, tracks), tracks, jnp.zeros_like(x))

        walked = steer(process, guide, key, self.count, look, lambda x, tracks: -guide.excess(x, tracks))
        asked = self.count * process.count
        return finish(process, guide, walked, walked.carry, evaluations=asked, terminal=self.terminal, begun=self.count)


CARD = Card(
    name="particles",
    build=Particles,
    row=20,
    paper="Feynman-Kac steering, arXiv 2501.06848; JM2D, arXiv 2509.08775",
    summary="a population of plain samples, resampled by how their clean estimates do",
    needs=("check",),
    evaluations="1 per particle (16)",
    strength=("strength", (0.3, 1.0, 3.0, 10.0, 30.0)),
)
