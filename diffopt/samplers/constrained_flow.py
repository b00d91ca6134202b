"""Constrained flow: predict plainly, then correct along a field that vanishes, under a control barrier (row 23 of the catalogue).

    predict:   x_0 by the plain process
    correct:   for i = 0 .. S-1, with time s = i/S:    v = speed (1 - s) (D(x, t_c) - x)
               x <- x + d,   d nearest to v   with   grad b(x) . d + gamma_s b(x) >= 0,   b = -row

SafeFlowMatcher (arXiv 2509.24243: prediction and correction, a flow whose speed vanishes with time, the barrier's quadratic program) and
UniConFlow (arXiv 2506.02955: a zeroing function that reaches the constraints at a prescribed time, here half of the correction:
gamma_s = 1/(S/2 - i), and 1 from there on, where the steps left over take care of curvature). The field draws towards the clean
estimate at a small noise level t_c: to first order what the flow would do there. In our words and in discrete time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, unconstrained
from diffopt.samplers.guidance import Guide
from diffopt.samplers.halfspaces import nearest
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Walked, finish, plain_draw


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ConstrainedFlow:
    """See the module's docstring.

    Attributes:
      speed: of the correction's field at its beginning.
      level: index of the level whose noise t_c is, at most the number of levels.
      steps: S.
      softness: of the rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the papers have none.
    """

    speed: float | Array = 0.5
    level: int = field(default=2, metadata=dict(static=True))
    steps: int = field(default=8, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        predicted, energy = unconstrained(process, key)
        at = min(self.level, process.count)

        def correct(state, i):
            x, tracks = state
            tracks = guide.follow(x, tracks)
            rows, jacobian = guide.linearized(x, tracks)
            toward = self.speed * (1 - i / self.steps) * (process.clean(process.alpha[at] * x, at) - x)
            gamma = 1 / jnp.maximum(self.steps // 2 - i, 1)
            return (x + nearest(toward, -jacobian, gamma * rows), tracks), None

        (x, tracks), _ = jax.lax.scan(correct, (predicted, guide.start(predicted)), jnp.arange(self.steps))
        walked = Walked(x=x, carry=None, energy=energy, moved=jnp.linalg.norm(x - predicted))
        asked = process.count + self.steps
        return finish(process, guide, walked, tracks, evaluations=asked, terminal=self.terminal, begun=0)


CARD = Card(
    name="constrained_flow",
    build=ConstrainedFlow,
    row=23,
    paper="SafeFlowMatcher, arXiv 2509.24243; UniConFlow, arXiv 2506.02955",
    summary="a plain prediction, then a vanishing flow under a control barrier",
    needs=("gradient",),
    evaluations="1, and 8 in all for the correction",
    strength=("speed", (0.0, 0.1, 0.3, 0.5, 1.0)),
)
