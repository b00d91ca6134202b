"""Twisted diffusion sampler: particles that are guided, with weights that make up for it (row 20 of the catalogue).

    G_k(x_k) = -lambda J(x0(x_k)),      the proposal moves the mean by std^2 grad G_k(x_k), through the network

Wu et al. 2023 (arXiv 2306.17775, algorithm 1). With many particles the weighted population follows the prior times exp(-lambda J), however
crude the guidance; with few it is guidance that discards its failures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
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
class Twisted:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      count: particles, per plan.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.3
    count: int = field(default=8, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def look(x, tracks, k):
            clean, pull = jax.vjp(lambda x: process.clean(x, k), x)
            tracks = guide.follow(clean, tracks)
            value, g = guide.gradient(clean, tracks)
            return Look(clean, -self.strength * value, tracks, -self.strength * process.std[k] ** 2 * pull(g)[0])

        walked = steer(process, guide, key, self.count, look, lambda x, tracks: -guide.gradient(x, tracks)[0])
        asked = self.count * process.count
        return finish(process, guide, walked, walked.carry, evaluations=asked, terminal=self.terminal, begun=self.count)


CARD = Card(
    name="twisted",
    build=Twisted,
    row=20,
    paper="Wu et al. 2023, arXiv 2306.17775",
    summary="particles with guided proposals, whose weights make up for the guidance",
    needs=("gradient", "network gradient"),
    evaluations="1, and 1 backwards, per particle (8)",
    strength=("strength", (0.03, 0.1, 0.3, 1.0, 3.0)),
)
