"""Real-time chunking: a new chunk of actions is drawn around the part of the old one that is being executed (row 24 of the catalogue).

    x0 <- x0 + min(beta sigma_k, (alpha_k^2 + sigma_k^2)/alpha_k) J' W (Y - x0),      J = d x0 / d x_k,      then the plain step

Black et al. 2025 (arXiv 2506.07339, eqs. 2 to 5): on the flow path, where a velocity v + c e moves the clean estimate by sigma c e, this is
their min(beta, (1 - tau)/(tau r^2)) with tau = alpha and r^2 = sigma^2/(alpha^2 + sigma^2), which holds on any path. Y is what is left of
the old chunk, W how firmly its actions are held: 1 for the first `delay`, which will be executed whatever is drawn, 0 for those that it
does not have any more, and in between, with c_i = (H - s - i)/(H - s - d + 1), by `mask`: zeros, ones, c_i (linear), or
c_i (exp(c_i) - 1)/(e - 1) (exponential).

Constraints take no part; the plan is judged by them as any other. Without a chunk to hold on to, this is plain sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, plain_draw, tracks_at, walk

Mask = Literal["zeros", "ones", "linear", "exponential"]
MASKS: tuple[Mask, ...] = ("zeros", "ones", "linear", "exponential")


def mask_weights(horizon: int, delay: int, executed: int, mask: Mask = "exponential") -> Float[np.ndarray, "H"]:
    """W of the H actions of the new chunk.

    Args:
      horizon: H.
      delay: d, actions of the old chunk that will be executed before the new one is there.
      executed: s, actions of the old chunk that were executed; it has H - s left.
    """
    if mask not in MASKS:
        raise ValueError(f"mask={mask!r}; there are: {', '.join(MASKS)}")
    if not 0 <= delay <= horizon - executed <= horizon:
        raise ValueError(
            f"horizon={horizon}, delay={delay}, executed={executed}; expected 0 <= delay <= horizon - executed"
        )
    i = np.arange(horizon)
    c = np.clip((horizon - executed - i) / (horizon - executed - delay + 1), 0, 1)
    between = {
        "zeros": np.zeros(horizon),
        "ones": np.ones(horizon),
        "linear": c,
        "exponential": c * np.expm1(c) / (math.e - 1),
    }
    return np.where(i < delay, 1.0, np.where(i < horizon - executed, between[mask], 0.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RealTimeChunking:
    """See the module's docstring.

    Attributes:
      chunk: Y, in normalised coordinates; what it is where W is zero does not matter.
      weights: W, per entry of the vector.
      beta: limit of the guidance.
      tracks: of the joints by which the plan is judged. terminal: solver steps of a terminal correction; the paper has none.
    """

    chunk: Float[Array, "n"] | None = None
    weights: Float[Array, "n"] | None = None
    beta: float | Array = 5.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    @staticmethod
    def after(
        old: Float[np.ndarray, "H a"], *, delay: int, executed: int, mask: Mask = "exponential", beta: float = 5.0
    ) -> RealTimeChunking:
        """The sampler of the chunk that follows `old` (normalised actions, of which `executed` are done)."""
        old = np.asarray(old, np.float32)
        if old.ndim != 2:
            raise ValueError(f"the old chunk has shape {old.shape}; expected (horizon, actions)")
        left = np.concatenate([old[executed:], np.zeros_like(old[:executed])])
        weights = np.repeat(mask_weights(len(old), delay, executed, mask), old.shape[1])
        return RealTimeChunking(chunk=jnp.asarray(left.ravel()), weights=jnp.asarray(weights, jnp.float32), beta=beta)

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if (self.chunk is None) != (self.weights is None):
            raise ValueError("a chunk and its weights go together; see RealTimeChunking.after")
        if self.chunk is None or self.weights is None:
            return plain_draw(process, constraints, key)
        held, weights = self.chunk, self.weights
        if held.shape != (process.dim,) or weights.shape != (process.dim,):
            raise ValueError(
                f"chunk {held.shape} and weights {weights.shape}; the policy's vector has {process.dim} entries"
            )
        guide = Guide(policy=process.policy, constraints=constraints, tracks=self.tracks)

        def rule(x, tracks, level):
            k = level.k
            clean, pull = jax.vjp(lambda x: process.clean(x, k), x)
            alpha, sigma = process.alpha[k], process.sigma[k]
            gain = jnp.minimum(self.beta * sigma, (alpha**2 + sigma**2) / alpha)
            guided = clean + gain * pull(weights * (held - clean))[0]
            mean = process.mean(x, clean, k)
            return Stepped(process.mean(x, guided, k) + process.std[k] * level.noise, mean, guide.follow(clean, tracks))

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="real_time_chunking",
    build=RealTimeChunking,
    row=24,
    paper="Black et al. 2025, arXiv 2506.07339",
    summary="a new chunk is drawn around the part of the old one that is being executed",
    needs=("network gradient",),
    evaluations="1, and 1 backwards",
)
