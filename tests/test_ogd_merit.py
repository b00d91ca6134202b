"""Which of several particles OGD returns."""

import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.samplers import OGD

MODES = np.array([[-1.0, 0.0], [1.0, 0.0]])


def right(plan):
    """x >= 0.6."""
    return 0.6 - plan.values[:1]


@pytest.mark.slow
def test_the_particle_that_the_network_would_move_least_is_nearest_to_a_mode():
    """All levels are solved, so that nothing is left for the terminal correction to say."""
    policy = gaussian_mixture(MODES, 0.05)
    wall = ConstraintSet.of(from_residual(right, name="wall", plan_type=Point))
    far = {}
    for merit in ("move", "stay"):
        sampler = OGD(every=1, window=(1.0, 0.0), particles=4, merit=merit)
        result = diffopt.sample(policy, wall, n=64, key=3, sampler=sampler, levels=8)
        assert np.asarray(result.feasible).mean() > 0.95
        far[merit] = np.linalg.norm(np.asarray(result.plans.values)[:, None] - MODES, axis=-1).min(axis=1).mean()
        assert int(result.stats.evaluations[0]) == 4 * 8 + (4 if merit == "stay" else 0)
    assert far["stay"] < 0.8 * far["move"]


def test_an_unknown_merit_is_named():
    with pytest.raises(ValueError, match="move, stay"):
        OGD(merit="luck")
