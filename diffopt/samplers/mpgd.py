"""Manifold-preserving guided diffusion: the clean estimate moves down the cost, not through the network (row 9 of the catalogue).

    x0 <- x0 - c grad J(x0)   (`inner` times),      x_{k-1} = alpha_{k-1} x0 + sqrt(sigma_{k-1}^2 - std^2) e + std z   with the old e

He et al. 2023 (arXiv 2311.16424, algorithm 1, without the autoencoder that projects the gradient onto the data's manifold).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, keeping_noise, plain_draw, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class MPGD:
    """See the module's docstring.

    Attributes:
      strength: c.
      inner: gradient steps per level.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.003
    inner: int = field(default=1, metadata=dict(static=True))
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

            def descend(state, _):
                target, tracks = state
                tracks = guide.follow(target, tracks)
                return (target - self.strength * guide.gradient(target, tracks)[1], tracks), None

            (target, tracks), _ = jax.lax.scan(descend, (clean, tracks), length=self.inner)
            mean = process.mean(x, clean, k)
            return Stepped(keeping_noise(process, x, clean, target, k) + process.std[k] * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="mpgd",
    build=MPGD,
    row=9,
    paper="He et al. 2023, arXiv 2311.16424",
    summary="the clean estimate moves down the cost, the noise estimate stays",
    needs=("gradient",),
    strength=("strength", (0.001, 0.003, 0.01, 0.03, 0.1)),
    differentiable=True,
)
