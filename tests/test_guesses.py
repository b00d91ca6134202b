"""Joints that a correction looks for, at plans that are known to be feasible."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.evaluation.reach_problems import reach_problem
from diffopt.evaluation.wrists import wrist_prior
from diffopt.moves import WITHIN
from diffopt.plans import Grasp
from diffopt.policies.base import Context
from diffopt.samplers import OGD
from diffopt.samplers.correction import Correction
from diffopt.samplers.guidance import APPROACH, Guide
from diffopt.samplers.ogd import ASIDE
from diffopt.solvers import RealTimeIteration

NUMBER = 94  # of an instance at which one plan in a hundred is feasible


@pytest.fixture(scope="module")
def problem():
    """The policy, the constraints, and grasps that random postures hold which are within limits and clear of everything."""
    problem = reach_problem(diffopt.embodiments.load("panda-gripper"), NUMBER)
    robot, constraints = problem.robot, problem.constraints
    q = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(0), (300, len(robot.arm)))
    fingers = robot.hand_home

    @jax.jit
    @jax.vmap
    def held(q):
        tool = robot.tool_pose(q)
        grasp = Grasp(position=tool.position, rotation=tool.rotation, joints=fingers, squeeze=jnp.zeros_like(fingers))
        return grasp, constraints.report(grasp, {"joints": q}, None).satisfied

    grasps, satisfied = held(q)
    grasps = jax.tree.map(lambda leaf: leaf[np.flatnonzero(satisfied)], grasps)
    policy = replace(wrist_prior(count=64), context=Context(frame=problem.scene.placement)).bound()
    return policy, constraints, grasps


def test_a_few_steps_bring_guesses_to_the_pose(problem):
    _, constraints, grasps = problem
    reach = constraints["reach"]

    def missed(grasp, steps):
        near = reach.approach(grasp, reach.auxiliary(grasp, None), steps)
        return jnp.max(jnp.abs(jax.vmap(lambda q: reach.residual(grasp, {"joints": q}, None))(near["joints"])), axis=1)

    before, after = (np.asarray(jax.jit(jax.vmap(lambda g, n=n: missed(g, n)))(grasps)) for n in (0, 12))
    assert (before < 1e-2).mean() < 0.01
    assert (after < 1e-3).mean() > 0.5  # of all guesses; many end at a joint limit
    assert (after < 1e-3).any(axis=1).mean() > 0.98


def test_joints_are_found_for_nearly_all_that_is_feasible(problem):
    """0.97 of these poses at once, without `held` 0.86; and each now and then, where the guesses are those for vectors beside it."""
    policy, constraints, grasps = problem
    careful, solver = OGD().persistent(policy), RealTimeIteration(penalty=10.0)
    correction = Correction.of(policy, constraints, tracks=careful.tracks, search=careful.search, held=careful.held)

    @jax.jit
    def found(away, key):
        def one(grasp, noise):
            c = policy.encode(grasp)
            end = correction.settle(
                c, correction.start(c, solver, None, c + away * noise), solver, steps=careful.terminal
            )
            return end.satisfied & (jnp.linalg.norm(end.x - end.reference) <= WITHIN)

        return jax.vmap(one)(grasps, jax.random.normal(key, (len(grasps.position), policy.spec.dim)))

    once = np.asarray(found(0.0, jax.random.key(0)))
    beside = np.array([found(ASIDE, jax.random.key(i)) for i in range(8)])
    assert once.mean() > 0.93 and beside.mean() > 0.9
    assert not once.all() and beside.any(axis=0).mean() > 0.99


def test_a_guide_begins_with_the_guesses_that_cost_least(problem):
    policy, constraints, grasps = problem
    x = policy.encode(jax.tree.map(lambda leaf: leaf[0], grasps))
    guide = Guide(policy=policy, constraints=constraints, tracks=2)
    plan = policy.decode(x)
    all_of_them = constraints.approached(plan, constraints.auxiliary(plan, policy.context), APPROACH)
    costs = np.sort(jax.vmap(lambda q: guide.cost(x, q))(all_of_them))
    np.testing.assert_allclose(jax.vmap(lambda q: guide.cost(x, q))(guide.seeds(x)), costs[:2], rtol=1e-3, atol=1e-6)
    assert costs[-1] > 1.0  # not all guesses arrive
