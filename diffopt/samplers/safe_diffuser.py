"""SafeDiffuser: a control barrier at every step of the reverse process (row 14 of the catalogue).

With b = -row (safe when >= 0), the step d = x_{k-1} - x_k is the nearest to the one drawn, d_nom, for which

    robust (ros):         grad b(x_k) . d + gamma (b(x_k) - delta) >= 0
    relaxed (res):        grad b(x_k) . d + gamma b(x_k) + w_k s >= 0,    with 1/2 s^2 added to the cost, w_k falling to zero
    time-varying (tvs):   grad b(x_k) . d + gamma (b(x_k) + g_k) >= 0,    g_k falling from the violation at the start to zero

Xiao et al. 2023 (arXiv 2306.00148, section 4), in discrete time with a linear class-K function: without noise a violation shrinks by
1 - gamma per level, so that it takes more levels than other methods. Constraints see the noisy iterate. Several rows are handled
together by `halfspaces`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.halfspaces import nearest
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, plain_draw, tracks_at, walk

Variant = Literal["ros", "res", "tvs"]
VARIANTS: tuple[Variant, ...] = ("ros", "res", "tvs")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SafeDiffuser:
    """See the module's docstring.

    Attributes:
      variant: robust, relaxed or time-varying.
      strength: gamma, in (0, 1].
      margin: delta of the robust variant, in units of `softness`.
      slack: w at the first level; it falls linearly to zero at the last.
      softness: of the rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    variant: Variant = field(default="ros", metadata=dict(static=True))
    strength: float | Array = 0.5
    margin: float | Array = 0.02
    slack: float | Array = 1.0
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}; there are: {', '.join(VARIANTS)}")

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        begin = tracks_at(process, guide)

        def rule(x, carry, level):
            tracks, allowed = carry
            mean, std = process.mean_std(x, level.k)
            left = (level.k - 1) / process.count  # falls to zero
            tracks = guide.follow(x, tracks)
            rows, jacobian = guide.linearized(x, tracks)
            if self.variant == "tvs":
                rows = rows - left * allowed
            elif self.variant == "ros":
                rows = rows + self.margin
            slack = self.slack * left if self.variant == "res" else 0.0
            step = nearest(mean + std * level.noise - x, -jacobian, self.strength * rows, slack)
            return Stepped(x + step, mean, (tracks, allowed))

        def first(x, k):
            tracks = begin(x, k)
            return tracks, jnp.maximum(guide.rows(x, guide.best(x, tracks)), 0)

        walked = walk(process, key, rule, first)
        return finish(process, guide, walked, walked.carry[0], evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="safe_diffuser",
    build=SafeDiffuser,
    row=14,
    paper="Xiao et al. 2023, arXiv 2306.00148",
    summary="every step obeys a control barrier: robust, relaxed or time-varying",
    needs=("gradient",),
    strength=("strength", (0.1, 0.25, 0.5, 0.75, 1.0)),
    differentiable=True,
)
