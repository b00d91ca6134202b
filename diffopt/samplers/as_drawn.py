"""Plans as the policy draws them, among plans that are steered: where nothing has to be found for one to be judged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, Start
from diffopt.samplers.correction import Correction
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.tracks import Tracks
from diffopt.solvers import RealTimeIteration


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AsDrawn:
    """`DDIM` that leaves the tracks which a steered draw would; it begins with noise, whatever the start.

    Attributes:
      tracks, search, penalty: of the steered draws.
    """

    penalty: float | Array
    tracks: int = field(metadata=dict(static=True))
    search: int = field(metadata=dict(static=True))

    def __call__(
        self,
        process: ReverseProcess,
        constraints: ConstraintSet,
        key: Array,
        warm: Tracks | None = None,
        start: Start | None = None,
    ) -> Draw:
        drawn = DDIM()(process, constraints, key)
        correction = Correction.of(process.policy, constraints, tracks=self.tracks, search=self.search)
        solver = RealTimeIteration(penalty=self.penalty, passes=correction.passes)
        return replace(drawn, warm=correction.seeds(drawn.x, solver))
