"""Trust sampling: several normalised gradient steps per level, as long as the iterate looks like one of its level (row 11 of the
catalogue).

    while |e(mu)| <= e_max:   mu <- mu - w grad/|grad|,   grad = grad_mu J(x0(mu)),      then x_{k-1} = mu + std z

Huang et al. 2024 (arXiv 2411.10932). e(mu) is the network's noise estimate at the level of mu; for vectors of n entries of pure noise
|e| is about sqrt(n), and a larger one says that mu has left the shell on which the network was trained. At most `inner` steps; at the
last step, whose mu has no noise, the network is asked at the level before. The paper's w = 1 belongs to motions of hundreds of entries.
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
class Trust:
    """See the module's docstring.

    Attributes:
      strength: w.
      trust: e_max / sqrt(n).
      inner: most gradient steps per level.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.1
    trust: float | Array = 1.0
    inner: int = field(default=4, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)

        def rule(x, tracks, level):
            mean, std = process.mean_std(x, level.k)
            at = jnp.maximum(level.k - 1, 1)

            def descend(state, _):
                mu, tracks, going = state
                clean, pull = jax.vjp(lambda mu: process.clean(mu, at), mu)
                noise = (mu - process.alpha[at] * clean) / process.sigma[at]
                tracks = guide.follow(clean, tracks)
                going &= jnp.sum(noise**2) <= self.trust**2 * x.size
                push = unit(pull(guide.gradient(clean, tracks)[1])[0])
                return (mu - jnp.where(going, self.strength, 0.0) * push, tracks, going), None

            (mu, tracks, _), _ = jax.lax.scan(descend, (mean, tracks, jnp.asarray(True)), length=self.inner)
            return Stepped(mu + std * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(
            process, guide, walked, walked.carry, evaluations=process.count * (1 + self.inner), terminal=self.terminal
        )


CARD = Card(
    name="trust",
    build=Trust,
    row=11,
    paper="Huang et al. 2024, arXiv 2411.10932",
    summary="several normalised gradient steps per level, while the noise estimate stays small",
    needs=("gradient", "network gradient"),
    evaluations="5, and 4 backwards",
    strength=("strength", (0.01, 0.03, 0.1, 0.3, 1.0)),
    differentiable=True,
)
