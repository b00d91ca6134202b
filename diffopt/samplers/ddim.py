"""Plain sampling: the control is drawn (row 0 of the catalogue).

Ho et al. 2020 (arXiv 2006.11239), Song et al. 2021 (arXiv 2010.02502). The plan is returned as the policy drew it; the joints of the
robot that realise it best are found afterwards, so that it can be judged and, if it happens to be feasible, executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, stats, unconstrained
from diffopt.samplers.correction import Correction
from diffopt.samplers.registry import Card
from diffopt.solvers import RealTimeIteration

EXACT = 100.0  # weight of the plan against the constraints, where the plan is not to be changed


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDPM with eta = 1, DDIM with eta = 0, Euler's method on the flow path.

    Attributes:
      tracks, steps: of the inverse kinematics that realises the plan, where a constraint asks for joints.
    """

    tracks: int = field(default=2, metadata=dict(static=True))
    steps: int = field(default=5, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        x, energy = unconstrained(process, key)
        aux, iterations = realise(process, constraints, x, tracks=self.tracks, steps=self.steps)
        return Draw(
            x=x,
            aux=aux,
            settled=jax.numpy.asarray(True),
            stats=stats(evaluations=process.count, iterations=iterations, control_energy=energy),
            warm=None,
        )


def realise(process, constraints, x, *, tracks: int, steps: int):
    """Auxiliary unknowns for a vector that is not to be changed, and the solver's iterations; nothing to do without any."""
    if not constraints.auxiliary(process.policy.decode(x), process.policy.context):
        return {}, 0
    correction = Correction.of(process.policy, constraints, tracks=tracks, held=True)
    solver = RealTimeIteration()
    corrected = correction.settle(x, correction.start(x, solver), solver, EXACT, steps=steps)
    return corrected.aux, corrected.iterations


CARD = Card(
    name="ddim",
    build=DDIM,
    row=0,
    paper="Ho et al. 2020, arXiv 2006.11239; Song et al. 2021, arXiv 2010.02502",
    summary="plain sampling, and the joints that come nearest",
)
