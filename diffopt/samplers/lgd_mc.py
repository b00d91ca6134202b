"""Loss-guided diffusion with Monte Carlo: the likelihood of a noisy iterate, averaged over clean ones (row 8 of the catalogue).

    log p(x_k) = log mean_i exp(-J(x0 + r_k w_i)),   w_i ~ N(0, 1),   r_k^2 = sigma_k^2 / (alpha_k^2 + sigma_k^2),   i = 1 .. n
    e <- e - lambda sigma_k grad_{x_k} log p(x_k)

Song et al. 2023 (Loss-guided diffusion models for plug-and-play controllable generation, ICML; n = 10). r_k is the posterior's standard
deviation for a prior of unit variance. lambda = 1 would be exact with the exact p. The clean estimate is clipped.
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
from diffopt.samplers.walk import Stepped, finish, plain_draw, shifted_noise, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LGDMC:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      draws: n.
      most: largest normalised coordinate of the guided clean estimate.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 1.0
    draws: int = field(default=10, metadata=dict(static=True))
    most: float | Array = 4.0
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
            alpha, sigma = process.alpha[k], process.sigma[k]
            spread = sigma / jnp.sqrt(alpha**2 + sigma**2)
            around = spread * jax.random.normal(level.key, (self.draws, x.size))
            q = guide.best(clean, tracks)

            def surprise(clean):
                return -jax.nn.logsumexp(-jax.vmap(lambda w: guide.cost(clean + w, q))(around))

            push = self.strength * sigma * pull(jax.grad(surprise)(clean))[0]
            guided = shifted_noise(process, clean, push, k, self.most)
            mean = process.mean(x, clean, k)
            return Stepped(process.mean(x, guided, k) + process.std[k] * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="lgd_mc",
    build=LGDMC,
    row=8,
    paper="Song et al. 2023 (ICML)",
    summary="as dps, with the cost averaged over draws around the clean estimate",
    needs=("gradient", "network gradient"),
    evaluations="1, and 1 backwards",
    strength=("strength", (0.1, 0.3, 1.0, 3.0, 10.0)),
    differentiable=True,
)
