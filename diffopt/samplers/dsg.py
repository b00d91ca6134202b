"""Diffusion with spherical Gaussian constraint: the steepest step on the sphere on which the noise lives (row 10 of the catalogue).

    d = (1 - g) std z - g sqrt(n) std grad/|grad|,      x_{k-1} = mu + sqrt(n) std d / |d|,      grad = grad_{x_k} J(x0(x_k))

Yang et al. 2024 (arXiv 2402.03201, algorithm 1; g from 0.1 to 0.2). Where the cost is zero the step is the plain one; the paper, whose
losses never vanish, would put that on the sphere, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide, unit
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, plain_draw, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DSG:
    """See the module's docstring.

    Attributes:
      strength: g, the guidance rate, in [0, 1].
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.1
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
            push = pull(guide.gradient(clean, tracks)[1])[0]
            mean, std = process.mean(x, clean, k), process.std[k]
            radius = jnp.sqrt(x.size)
            blend = (1 - self.strength) * level.noise - self.strength * radius * unit(push)
            control = jnp.where(jnp.any(push != 0), radius * unit(blend), level.noise)
            return Stepped(mean + std * control, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="dsg",
    build=DSG,
    row=10,
    paper="Yang et al. 2024, arXiv 2402.03201",
    summary="the noise is blended with the descent direction and put back on its sphere",
    needs=("gradient", "network gradient"),
    evaluations="1, and 1 backwards",
    strength=("strength", (0.05, 0.1, 0.2, 0.5, 1.0)),
    differentiable=True,
)
