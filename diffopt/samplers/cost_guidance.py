"""Cost guidance: the mean of a step is moved down the gradient of the cost, by its variance (row 3 of the catalogue).

    mu <- mu - lambda std^2 grad J(mu)      (`inner` times),      x_{k-1} = mu + std z

Janner et al. 2022 (Diffuser, arXiv 2205.09991, algorithm 1: the gradient at the noisy mean, scaled by the covariance); Carvalho et al.
2023 (Motion Planning Diffusion, arXiv 2308.01557). The last step has std = 0 and is not guided, and with eta = 0 none is.
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
class CostGuidance:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      inner: gradient steps per level.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.1
    inner: int = field(default=2, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def rule(x, tracks, level):
            mean, std = process.mean_std(x, level.k)

            def descend(state, _):
                mu, tracks = state
                tracks = guide.follow(mu, tracks)
                return (mu - self.strength * std**2 * guide.gradient(mu, tracks)[1], tracks), None

            (mu, tracks), _ = jax.lax.scan(descend, (mean, tracks), length=self.inner)
            return Stepped(mu + std * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="cost_guidance",
    build=CostGuidance,
    row=3,
    paper="Diffuser, arXiv 2205.09991; MPD, arXiv 2308.01557",
    summary="the mean moves down the cost, by the variance of the step",
    needs=("gradient",),
    strength=("strength", (0.01, 0.03, 0.1, 0.3, 1.0)),
    differentiable=True,
)
