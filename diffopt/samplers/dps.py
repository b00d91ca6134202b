"""Diffusion posterior sampling: a step down the gradient of the residual's norm, through the network (row 7 of the catalogue).

    x_{k-1} = mu + std z - zeta grad_{x_k} sqrt(2 J(x0(x_k)))

Chung et al. 2023 (arXiv 2209.14687, algorithm 1): the step zeta / |residual| on the squared norm is zeta on the norm. Its length does
not shrink with the residual, so that an inequality is crossed by up to one step.
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
class DPS:
    """See the module's docstring.

    Attributes:
      strength: zeta, in normalised coordinates times `softness`.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.03
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def rule(x, tracks, level):
            k = level.k
            clean, pull = jax.vjp(lambda x: process.clean(x, k), x)
            tracks = guide.follow(clean, tracks)
            value, g = guide.gradient(clean, tracks)
            root = jnp.sqrt(jnp.where(value > 0, 2 * value, 1.0))
            push = jnp.where(value > 0, pull(g)[0] / root, 0.0)
            mean, std = process.mean(x, clean, k), process.std[k]
            return Stepped(mean + std * level.noise - self.strength * push, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="dps",
    build=DPS,
    row=7,
    paper="Chung et al. 2023, arXiv 2209.14687",
    summary="a step down the norm of the residual at the clean estimate, through the network",
    needs=("gradient", "network gradient"),
    evaluations="1, and 1 backwards",
    strength=("strength", (0.003, 0.01, 0.03, 0.1, 0.3)),
    differentiable=True,
)
