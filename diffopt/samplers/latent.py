"""Latent optimisation: the noise from which a deterministic sample starts is itself optimised (row 22 of the catalogue).

    minimise over x_K    strength J(x_0(x_K)) + (pull/2) |x_K - drawn|^2 / sigma_K^2,      x_0(.) the rollout without noise (DDIM, Euler)

Ben-Hamu et al. 2024 (D-Flow, arXiv 2402.14017, algorithm 1: L-BFGS with a line search, gradients through the whole rollout; here the
search is that of `descent`). The term that pulls towards the drawn noise is off by default, as there: the rollout itself keeps to the
prior. No noise is injected, so that the control energy is that of x_K's change, 1/2 |x_K - drawn|^2 / sigma_K^2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.descent import descend
from diffopt.samplers.guidance import Guide
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Walked, finish, plain_draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Latent:
    """See the module's docstring.

    Attributes:
      strength: weight of J.
      pull: weight of the distance to the drawn noise.
      iterations: of L-BFGS.
      softness: of the cost's rows. tracks: of the joints, the best of which is optimised along. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 1.0
    pull: float | Array = 0.0
    iterations: int = field(default=8, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        still = replace(process, std=jnp.zeros_like(process.std))
        quiet = jnp.zeros((process.count, process.dim))
        drawn = process.prior(jax.random.split(key)[0])
        x = still.rollout(drawn, quiet)
        tracks = guide.start(x)

        def loss(z):
            distance = jnp.sum((z["start"] - drawn) ** 2) / process.sigma[-1] ** 2
            return self.strength * guide.cost(still.rollout(z["start"], quiet), z["aux"]) + 0.5 * self.pull * distance

        end = descend(loss, {"start": drawn, "aux": guide.best(x, tracks)}, iterations=self.iterations)
        energy = 0.5 * jnp.sum((end.z["start"] - drawn) ** 2) / process.sigma[-1] ** 2
        walked = Walked(x=still.rollout(end.z["start"], quiet), carry=None, energy=energy, moved=jnp.zeros(()))
        tracks = jax.tree.map(lambda all, one: all.at[0].set(one), tracks, end.z["aux"])
        draw = finish(
            process,
            guide,
            walked,
            tracks,
            evaluations=process.count * (end.evaluations + 2),
            terminal=self.terminal,
            iterations=self.iterations,
            begun=0,
        )
        return draw if self.terminal else replace(draw, settled=end.settled)


CARD = Card(
    name="latent",
    build=Latent,
    row=22,
    paper="D-Flow, arXiv 2402.14017",
    summary="the noise from which a deterministic sample starts is optimised through the whole rollout",
    needs=("gradient", "network gradient"),
    evaluations="51: 6 per iteration of L-BFGS, one of which also backwards",
    strength=("strength", (0.003, 0.01, 0.03, 0.1, 0.3)),
)
