"""Guidance by the standard deviation of a step instead of its variance (row 6 of the catalogue).

    x_{k-1} = mu - lambda std grad J(mu) + std z

An ablation in optimization-guided diffusion (arXiv 2606.24208): the control of a step is z - lambda grad J, whatever the level.
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
from diffopt.samplers.walk import Stepped, finish, plain_draw, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SigmaGuidance:
    """See the module's docstring.

    Attributes:
      strength: lambda.
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
            mean, std = process.mean_std(x, level.k)
            tracks = guide.follow(mean, tracks)
            control = level.noise - self.strength * guide.gradient(mean, tracks)[1]
            return Stepped(mean + std * control, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="sigma_guidance",
    build=SigmaGuidance,
    row=6,
    paper="ablation in arXiv 2606.24208",
    summary="the mean moves down the cost, by the standard deviation of the step",
    needs=("gradient",),
    strength=("strength", (0.003, 0.01, 0.03, 0.1, 0.3)),
    differentiable=True,
)
