"""Reach problems: the prior, the instances, the oracle, and the experiment that uses them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import diffopt
from diffopt.evaluation import wrists
from diffopt.evaluation.posteriors import Reference
from diffopt.evaluation.reach_problems import (
    OBSTACLES,
    SHARES,
    Gripper,
    Oracle,
    Share,
    clear,
    inverse_kinematics,
    reach_problem,
)
from diffopt.evaluation.wrists import Support, WristSpec, demonstrations, proper, wrist_prior
from diffopt.geometry import Pose, rotation_from_6d
from experiments import compare
from experiments.comparison import benches, distances, methods, success


@pytest.fixture(scope="module")
def policy():
    return wrist_prior(count=512)


def test_demonstrations_hold_the_object_between_the_fingers():
    """The fingertips are within a few jitters of the axis, and the fingers close across it."""
    poses = demonstrations(256)
    R = np.asarray(rotation_from_6d(jnp.asarray(poses[:, 3:])))
    np.testing.assert_allclose(np.einsum("nij,nik->njk", R, R), np.eye(3)[None].repeat(256, 0), atol=1e-5)
    tips = poses[:, :3] + wrists.PINCH * R[:, :, 2]
    assert np.linalg.norm(tips[:, :2], axis=1).max() < 6 * wrists.JITTER[0] + 5 * wrists.JITTER[1] * wrists.PINCH
    assert np.abs(tips[:, 2]).max() < wrists.HALF_LENGTH
    assert np.abs(R[:, 2, 1]).max() < 5 * wrists.JITTER[1]


def test_a_wrist_vector_is_a_grasp_and_back():
    frame = Pose(
        position=jnp.array([0.1, 0.2, 0.3]),
        rotation=jnp.asarray(wrists._turn(np.array([[0.3, -0.2, 0.5]]))[0], jnp.float32),
    )
    vector = jnp.asarray(demonstrations(1, seed=3)[0], jnp.float32)
    spec = WristSpec()
    grasp = spec.decode(vector, frame)
    np.testing.assert_allclose(spec.encode(grasp, frame), vector, atol=1e-6)
    assert grasp.joints.shape == (1,)
    moved = vector.at[0].add(0.02)
    scale = jnp.full(9, 0.5)
    np.testing.assert_allclose(spec.difference(moved, vector, scale)[0], 0.04, rtol=1e-4)
    np.testing.assert_allclose(WristSpec(hold=0.01).difference(moved, vector, scale)[0], 2.0, rtol=1e-4)


def test_the_support_holds_what_the_prior_draws(policy):
    support = Support.of(policy, 2048, wrists.UNITS)
    x = proper(policy, policy.denoiser.sample(jax.random.key(5), 1000))
    assert abs(support(x).mean() - (1 - wrists.OUTSIDE)) < 4 * np.sqrt(wrists.OUTSIDE / 1000)
    away = x + np.eye(9)[0] * 1.5  # 9 cm
    assert support(away).mean() < 0.05
    assert not support(np.full((1, 9), np.nan)).any()
    own = np.asarray(jax.jit(jax.vmap(policy.denoiser.log_density))(jnp.asarray(x[:5])))
    plain = Support.of(policy, 16)
    np.testing.assert_allclose(np.diff(plain.log_density(x[:5])), np.diff(own), atol=1e-2)


def test_a_share_has_the_dial_that_it_is_about():
    assert Share(clear=0.02, tried=40, feasible=20).dial == "1"
    assert Share(clear=1.0, tried=10, feasible=10).dial is None
    assert Share(clear=0.0, tried=0, feasible=0).estimate == 0


def test_instances_are_of_one_structure_and_made_by_their_numbers():
    robot = diffopt.embodiments.load(benches.ROBOT)
    first, again, other = (reach_problem(robot, n) for n in (3, 3, 4))
    assert len(first.scene.obstacles) == OBSTACLES
    a, b, c = (jax.tree.leaves(p.constraints) for p in (first, again, other))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) and [np.shape(x) for x in a] == [
        np.shape(x) for x in c
    ]
    assert jax.tree.structure(first.constraints) == jax.tree.structure(other.constraints)


def test_a_gripper_in_the_table_is_not_clear():
    robot = diffopt.embodiments.load(benches.ROBOT)
    problem = reach_problem(robot, 3)
    down = jnp.diag(jnp.array([1.0, -1.0, -1.0]))
    at = Pose(position=jnp.array([[0.0, 0.0, 0.9], [0.0, 0.0, 0.05]]), rotation=jnp.stack([down, down]))
    np.testing.assert_array_equal(clear(Gripper.of(robot), problem.scene.shapes, at), [True, False])


@pytest.mark.slow
def test_what_the_oracle_finds_feasible_is_so_by_the_judge(policy):
    """Of an instance with room: the oracle's joints hold the gripper where the draw is, and a base far away reaches nothing."""
    robot = diffopt.embodiments.load(benches.ROBOT)
    problem = reach_problem(robot, 0)
    oracle = Oracle.of(policy, robot, draws=256)
    index = oracle.clear(problem)[:32]
    solved = oracle.solve(problem, index)
    grasps = oracle.grasps(problem, index)
    assert solved.feasible.any()
    judge = problem.judge
    for i in np.flatnonzero(solved.feasible):
        assert judge(jax.tree.map(lambda leaf, i=i: leaf[i], grasps), solved.joints[i]).feasible
    away = replace(problem, robot=problem.robot.at(jnp.array([3.0, 0.0, 0.0])))
    assert not inverse_kinematics(away.constraints, grasps).feasible.any()


def configuration(*overrides):
    with initialize_config_dir(str(benches.FOLDER), version_base=None):
        config = OmegaConf.to_container(compose("compare", overrides=list(overrides)))
    return {k: v for k, v in config.items() if k not in ("output", "hydra")}


def test_the_configuration_is_checked_before_any_work():
    config = configuration("method=[snapp]")
    compare.check(config)
    with pytest.raises(ValueError, match=r"method='snapp'; there are: .*snap, snap_tight"):
        methods.listed(config, "method", list(config["methods"]))
    with pytest.raises(ValueError, match="one, matched"):
        compare.check(configuration("budget=two"))
    with pytest.raises(ValueError, match="default='mine'"):
        compare.check(configuration("default=mine"))


def test_every_method_of_the_configuration_can_be_made():
    for entry in configuration()["methods"].values():
        assert isinstance(methods.method(entry, {}), diffopt.samplers.Sampler)


def test_draws_fill_the_time_of_the_default():
    config = configuration("budget=matched")
    times = {"default": {"1": 10.0}, "draw": {"ogd": 2.0, "snap": 4.0, "twisted": 50.0}}
    assert [success.draws(config, name, "1", times) for name in ("ogd", "snap", "twisted")] == [None, 2.5, 1.0]
    assert success.draws(configuration(), "snap", "1", times) is None
    with pytest.raises(ValueError, match="no time is known for 'dps' at 1 %"):
        success.draws(config, "dps", "1", times)
    with pytest.raises(ValueError, match="no time is known for 'ogd' at 10 %"):
        success.draws(config, "snap", "10", times)


def test_the_summary_tests_pairs_against_the_default():
    config = configuration("instances=50", "keys=2")
    rows = [{"method": name, "dial": "1", "success": bits} for name, bits in (("ogd", "1" * 100), ("snap", "10" * 50))]
    ours, snap = success.summarise(rows, config, {})
    assert (ours["success"], snap["success"]) == (1.0, 0.5) and snap["gain"] == 0.5 and snap["p"] < 1e-9


def test_distances_count_pairs_of_a_point_with_itself():
    """With them, the energy distance of a sample to itself is zero."""
    x = np.random.default_rng(0).normal(size=(64, 3))
    assert abs(distances._biased(x, Reference.of(x))) < 1e-9


def test_the_instances_are_of_their_dials_and_validation_is_apart():
    place = benches.ReachBench(policy=wrist_prior(count=8))
    for dial, rows in json.loads(benches.INSTANCES.read_text())["instances"].items():
        low, high = SHARES[dial]
        assert all(low <= share <= high and found >= 5 for _, share, found in rows)
        mine, theirs = place.instances(dial, 8), place.instances(dial, 8, validation=True)
        assert max(theirs) < benches.REPORTED <= min(mine)


def test_the_ratio_of_distances_has_an_interval_over_instances():
    rows = [{"distance": 2.0 * e, "exact": e} for e in (1.0, 2.0, 3.0)]
    same = distances.ratio(rows)
    assert same["ratio"] == same["ratio_low"] == same["ratio_high"] == 2.0
    wide = distances.ratio([*rows, {"distance": 9.0, "exact": 1.0}])
    assert wide["ratio_low"] <= wide["ratio"] == 3.0 <= wide["ratio_high"] and wide["ratio_low"] < wide["ratio_high"]
