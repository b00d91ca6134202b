"""A nudge of the iterate before each step (row 5 of the catalogue).

    x_k <- x_k - lambda abar_k clip(grad J(x_k), -c, c),      then the plain step from there

Embodiment-aware diffusion policy (arXiv 2510.02614): the gradient of the tracking cost is clipped per entry (0.05 for positions, 0.005 for
rotations, normalised) and weighted by abar_k = alpha_k^2, so that early levels are left alone; lambda from 0.8 to 1.5.
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
class Nudge:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      clip: c, for every entry or one per entry of the vector.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 1.0
    clip: float | Array = 0.05
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def rule(x, tracks, level):
            k = level.k
            tracks = guide.follow(x, tracks)
            g = jnp.clip(guide.gradient(x, tracks)[1], -self.clip, self.clip)
            mean, std = process.mean_std(x - self.strength * process.alpha[k] ** 2 * g, k)
            return Stepped(mean + std * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="nudge",
    build=Nudge,
    row=5,
    paper="EADP, arXiv 2510.02614",
    summary="the iterate is moved down the clipped gradient before each step",
    needs=("gradient",),
    strength=("strength", (0.3, 1.0, 3.0, 10.0, 30.0)),
    differentiable=True,
)
