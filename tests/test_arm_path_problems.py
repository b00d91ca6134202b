"""Motions of an arm: demonstrations, obstacles by number, a judge that looks between the knots, and a constraint that does so, too."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import fit
from diffopt.evaluation.arm_path_problems import DT, GATES, HIDDEN, NEW, OPEN, H, demonstrations, posture, routes
from diffopt.evaluation.path_judge import PathJudge
from diffopt.paths import JointPath
from diffopt.scenes import tabletop
from diffopt.scenes.solids import Part
from diffopt.solvers import Knots, Window
from experiments.comparison import benches, trials


@pytest.fixture(scope="module")
def place():
    return benches.bench("arm_paths", 0.0)


def bare(robot, *obstacles, velocity=1.0):
    """The judge of the robot on its table, with some obstacles and a share of its velocity."""
    return PathJudge.of(robot, tabletop(obstacles=obstacles), velocity * np.asarray(robot.velocity), DT, [OPEN])


def test_the_closed_form_puts_the_gripper_where_it_should_be(place):
    bearing, radius, height = (
        np.array([0.0, 0.5, -0.5, 0.2]),
        np.array([0.5, 0.37, 0.61, 0.5]),
        np.array([0.25, 0.27, 0.25, 0.53]),
    )
    pose = jax.vmap(place.robot.tool_pose)(jnp.asarray(posture(bearing, radius, height), jnp.float32))
    there = np.stack([radius * np.cos(bearing), radius * np.sin(bearing), height], axis=1)
    np.testing.assert_allclose(pose.position, there, atol=1e-5)
    np.testing.assert_allclose(pose.rotation[:, :, 2], [[0, 0, -1]] * 4, atol=1e-5)
    assert np.isnan(posture(np.array(0.0), np.array(2.0), np.array(0.2))).any()


def test_demonstrations_and_draws_are_clear_of_the_table_and_within_limits(place):
    judge = bare(place.robot)
    assert len(routes()) == len(GATES) ** 2 and demonstrations(1).shape == (len(routes()), H, 7)
    assert all(judge(path) for path in place.demonstrated[::4])
    draws = place.motions(place.draws(3, 128))
    assert all(judge(path) for path in draws)


def test_the_judge_sees_what_is_between_the_knots_limits_and_nan(place):
    aside = np.where(np.arange(H) < H // 2, -0.21, 0.21)
    across = posture(aside, np.full(H, 0.6), np.full(H, 0.3))
    post = Part(kind="cylinder", size=(0.01, 0.3), position=(0.6, 0.0, 0.3))
    assert bare(place.robot, HIDDEN)(across) and not bare(place.robot, post)(across)
    assert all(bare(place.robot, post).clear(knot) for knot in across)
    path = place.demonstrated[0]
    assert bare(place.robot, HIDDEN)(path)
    assert not bare(place.robot, velocity=0.1)(path)
    bent = path.copy()
    bent[:, 3] = 0.1  # above its limit
    assert not bare(place.robot)(bent) and not bare(place.robot)(np.full_like(path, np.nan))
    low = path.copy()
    low[5:9, 1] += 0.6  # leans into the table
    assert not bare(place.robot)(low)


def test_vectors_are_paths_and_back(place):
    policy = place.policy.given(None)
    x = place.draws(5, 1)[0]
    plan = policy.decode(x)
    assert plan.arm.shape == (H, 7) and plan.joints.shape == (H, 1) and plan.dt == DT
    np.testing.assert_allclose(policy.encode(plan), x, atol=1e-5)
    np.testing.assert_array_equal(policy.spec.rows("arm"), np.arange(7 * H))
    assert policy.spec.rows("joints").size == 0
    np.testing.assert_allclose(policy.difference(x + 1.0, x), 1.0, atol=1e-4)


def test_instances_are_of_their_dials_and_of_one_structure(place):
    for dial, rows in json.loads(benches.ARM_PATHS.read_text())["instances"].items():
        low, high = benches.SHARES[dial]
        assert all(low <= share <= high and found >= 5 and accepted >= 0.1 for _, share, found, accepted in rows)
        reported = sum(number < benches.APART for number, *_ in rows)
        assert reported and max(place.instances(dial, reported)) < benches.APART
        with pytest.raises(ValueError, match=f"there are {reported}"):
            place.instances(dial, reported + 1)
    numbers = place.instances("10", 2)
    one, two = (place.constraints("10", n) for n in numbers)
    assert jax.tree.structure(one) == jax.tree.structure(two) and len(place.problem(numbers[0]).scene.obstacles) == NEW
    assert [np.shape(a) for a in jax.tree.leaves(one)] == [np.shape(b) for b in jax.tree.leaves(two)]
    again = benches.bench("arm_paths", 0.0).constraints("10", numbers[0])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True))


def test_the_share_of_an_instance_is_that_of_fresh_draws(place):
    body = json.loads(benches.ARM_PATHS.read_text())["instances"]
    number, share, *_ = body["10"][0]
    good = place.problem(number).feasible(place.motions(place.draws(7, 1024)))
    assert abs(good.mean() - share) < 5 * np.sqrt(share / 1024) + 0.2 * share
    exact = place.exact("10", number, 8)
    assert place.problem(number).feasible(place.motions(exact)).all() and place.support(exact).mean() > 0.5


def test_what_the_constraints_allow_the_judge_accepts_and_hardly_the_other_way(place):
    """Of the prior's draws: the spheres that cover the robot, and what obstacles are grown by, cost some plans that are feasible."""
    policy = place.policy.given(None)
    x = place.draws(11, 256)

    @jax.jit
    def satisfied(constraints):
        def one(v):
            plan = policy.decode(v)
            return fit(constraints, policy.spec).report(plan, {"joints": plan.arm}, policy.context).satisfied

        return jax.lax.map(one, x)

    for number in place.instances("50", 2):
        allowed = np.asarray(satisfied(place.constraints("50", number)))
        good = place.problem(number).feasible(place.motions(x))
        assert not np.any(allowed & ~good) and 0.3 * good.mean() <= allowed.mean()


@pytest.mark.slow
def test_derivatives_between_the_knots_are_those_of_the_rows(place):
    (number,) = place.instances("10", 1)
    constraint = place.constraints("10", number)["scene_collision"]
    joints = jnp.asarray(place.demonstrated[3], jnp.float32)
    plan = JointPath(arm=joints, joints=jnp.full((H, 1), OPEN), dt=DT)

    @jax.jit
    def both(joints):
        rows, windows = constraint.windows(plan, {"joints": joints}, None)
        pieces = tuple(Window(blocks=blocks, first=first) for first, blocks in windows)
        told = constraint.residual(plan, {"joints": joints}, None)
        rate = jax.jacrev(lambda q: jnp.ravel(constraint.residual(plan, {"joints": q}, None)))(joints)
        return rows, told, Knots(pieces=pieces, horizon=H, width=7).dense().T, rate.reshape(rows.size, -1)

    rows, told, stated, rate = both(joints)
    assert rows.shape[0] == 2 * H - 1
    np.testing.assert_allclose(rows, told, atol=1e-6)
    np.testing.assert_allclose(stated, rate, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "snap", "ogd"])
def test_no_sampler_claims_what_the_judge_refuses(place, name):
    sampler = diffopt.samplers.load(name)
    if name == "ogd":
        sampler = replace(sampler, every=3, attempts=1)
    wanted = trials.trials("10", place.instances("10", 4), 4, 7)
    outcome = trials.run(place, sampler, wanted, 16, most=1)
    assert not np.any(outcome.claimed & ~outcome.feasible)
    assert name != "ogd" or outcome.feasible.mean() > 0.2
