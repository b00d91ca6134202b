"""`sample` with the shipped policy on the real arm and hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.geometry import Pose


@pytest.fixture(scope="module")
def problem():
    robot = diffopt.embodiments.load("panda-allegro")
    scene = diffopt.scenes.random_tabletop(0, diffopt.scenes.objects.held_out(1)[0], "easy")
    return diffopt.policies.load("grasp-allegro"), robot, scene


def draw(problem, base):
    policy, robot, scene = problem
    constraints = robot.at(base).constraints | scene.constraints
    return diffopt.sample(policy.given(scene.target), constraints, n=16, levels=8, attempts=1)


def test_most_plans_are_feasible_where_the_arm_stands_well_and_none_where_it_cannot_reach(problem):
    near = draw(problem, diffopt.scenes.random_base(1, problem[2], "easy"))
    assert np.mean(near.feasible) > 0.5
    far = draw(problem, Pose(position=jnp.array([5.0, 0.0, 0.0]), rotation=jnp.eye(3)))
    assert not np.any(far.feasible)
    assert repr(problem[0]).startswith("Policy('grasp-allegro', Grasp of ") and repr(far).endswith("infeasible)")
    assert near[int(np.argmax(near.feasible))].explain() == "plan 0: feasible"
    assert float(far.violation["support"].min()) > 0
    with pytest.raises(diffopt.InfeasibleError, match="support"):
        far.check()


def test_an_unbound_policy_says_what_to_do(problem):
    policy, robot, _ = problem
    with pytest.raises(ValueError, match=r"policy\.given"):
        diffopt.sample(policy, robot.constraints)
