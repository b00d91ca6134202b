"""Guidance of the noise estimate, repeated with renoising (row 4 of the catalogue).

    e <- e + lambda sigma_k grad J(x_k),      x_{k-1} from the DDIM step,      back to level k by the forward process, `repeats` times

Inference-time policy steering (arXiv 2411.16627; stochastic sampling, strengths 20 and 60), DynaGuide (arXiv 2506.13922; strength 1.5,
four repeats). The cost sees the noisy iterate. Their strengths belong to costs in other units than `softness`; the clean estimate is
clipped as in the schedulers they use.
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
from diffopt.samplers.walk import Stepped, finish, plain_draw, renoised, shifted_noise, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class EpsGuidance:
    """See the module's docstring.

    Attributes:
      strength: lambda.
      repeats: passes per level; all but the last are followed by renoising.
      most: largest normalised coordinate of the guided clean estimate.
      softness: of the cost's rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 0.1
    repeats: int = field(default=4, metadata=dict(static=True))
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

            def once(x, tracks):
                clean = process.clean(x, k)
                tracks = guide.follow(x, tracks)
                push = self.strength * process.sigma[k] * guide.gradient(x, tracks)[1]
                guided = shifted_noise(process, clean, push, k, self.most)
                return process.mean(x, clean, k), process.mean(x, guided, k), tracks

            def again(state, key):
                x, tracks = state
                step_key, back_key = jax.random.split(key)
                _, guided, tracks = once(x, tracks)
                ahead = guided + process.std[k] * jax.random.normal(step_key, x.shape)
                return (renoised(process, ahead, k, jax.random.normal(back_key, x.shape)), tracks), None

            (x, tracks), _ = jax.lax.scan(again, (x, tracks), jax.random.split(level.key, self.repeats - 1))
            mean, guided, tracks = once(x, tracks)
            return Stepped(guided + process.std[k] * level.noise, mean, tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(
            process, guide, walked, walked.carry, evaluations=process.count * self.repeats, terminal=self.terminal
        )


CARD = Card(
    name="eps_guidance",
    build=EpsGuidance,
    row=4,
    paper="ITPS, arXiv 2411.16627; DynaGuide, arXiv 2506.13922",
    summary="the noise estimate moves up the cost; levels repeat with renoising",
    needs=("gradient",),
    evaluations="1 per repeat (4)",
    strength=("strength", (0.01, 0.03, 0.1, 0.3, 1.0)),
    differentiable=True,
)
