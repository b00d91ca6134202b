"""Post-hoc snap: a plain sample, then the nearest plan that satisfies the constraints (row 2 of the catalogue).

The baseline of optimization-guided diffusion (arXiv 2606.24208) and, with all constraints in the projection, the terminal projection of
DPCC (arXiv 2412.09342). The denoiser is not asked again, so a sample that is far from feasible is moved off the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, stats, unconstrained
from diffopt.samplers.correction import Correction
from diffopt.samplers.registry import Card
from diffopt.solvers import RealTimeIteration


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Snap:
    """Terminal projection onto the feasible set.

    Attributes:
      tracks: starting points.
      steps: Gauss-Newton steps, each with an update of the multipliers.
      tighten: added to every margin, in its own units (m, rad).
    """

    tracks: int = field(default=4, metadata=dict(static=True))
    steps: int = field(default=16, metadata=dict(static=True))
    tighten: float | Array = 0.0

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        x, energy = unconstrained(process, key)
        if not constraints:
            return Draw(
                x=x,
                aux={},
                settled=jnp.asarray(True),
                stats=stats(evaluations=process.count, control_energy=energy),
                warm=None,
            )
        solver = RealTimeIteration(penalty=100.0)
        correction = Correction.of(process.policy, constraints.tightened(self.tighten), tracks=self.tracks)
        corrected = correction.settle(x, correction.start(x, solver), solver, steps=self.steps)
        return Draw(
            x=corrected.x,
            aux=corrected.aux,
            settled=corrected.settled,
            stats=stats(
                evaluations=process.count,
                iterations=corrected.iterations,
                control_energy=energy,
                terminal_move=jnp.linalg.norm(corrected.x - corrected.reference),
            ),
            warm=None,
        )


CARD = Card(
    name="snap",
    build=Snap,
    row=2,
    paper="baseline of arXiv 2606.24208; terminal projection of DPCC, arXiv 2412.09342",
    summary="a plain sample, then the nearest plan that satisfies the constraints",
    needs=("projection",),
)
