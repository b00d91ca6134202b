"""Visuomotor tasks: every one of them can be solved, is not solved before, and is the same for the same seed."""

import jax
import numpy as np
import pytest

from diffopt.geometry import Pose
from diffopt.physics.render import NoOpenGL
from diffopt.robots import embodiments
from diffopt.tasks import visuomotor
from diffopt.tasks.gripper import OPEN, between, downward, pinching, rotvec, turn
from diffopt.tasks.script import Command, Progress, Waypoint, advance
from diffopt.tasks.workcell import Unreachable, Workcell, observation

NAMES = visuomotor.available()


@pytest.fixture(scope="module")
def cells():
    return {name: Workcell(visuomotor.load(name), render=False) for name in NAMES}


def follow_script(episode):
    """Runs the task's expert to its end or success."""
    script = episode.cell.task.script(episode.data, np.random.default_rng([episode.seed, 1]))
    progress = Progress()
    while not episode.over and (step := advance(script, progress, episode.command, episode.data)) is not None:
        command, progress = step
        episode.move(command)
    return episode


@pytest.mark.parametrize("name", NAMES)
def test_the_expert_succeeds_and_nothing_has_before(cells, name):
    for seed in (0, 1, visuomotor.HELD_OUT):
        episode = cells[name].start(seed)
        assert not episode.success
        assert follow_script(episode).success


@pytest.mark.parametrize("name", NAMES)
def test_doing_nothing_does_not_succeed(cells, name):
    episode = cells[name].start(2)
    for _ in range(10):
        episode.move(episode.command)
    assert not episode.success and not episode.diverged


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_is_a_placement(cells, name):
    first, same, other = (cells[name].start(seed) for seed in (3, 3, 4))
    for attribute in ("qpos", "qvel", "mocap_pos"):
        np.testing.assert_array_equal(getattr(first.data, attribute), getattr(same.data, attribute))
    assert not np.allclose(cells[name].task.landmarks(first.data), cells[name].task.landmarks(other.data))
    for episode in (first, same):
        episode.move(episode.command)
    np.testing.assert_array_equal(first.data.qpos, same.data.qpos)


@pytest.mark.parametrize("name", NAMES)
def test_obstacles_have_one_structure_and_stand_on_the_table(cells, name):
    task = cells[name].task
    first, other = (task.obstacles(cells[name].start(seed).data) for seed in (5, 6))
    assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, other)
    assert len(first) > 1
    assert float(first.distance(np.array([0.3, 0.5, 0.04]))[0]) == pytest.approx(
        0.04, abs=1e-6
    )  # the table comes first


@pytest.mark.parametrize("name", NAMES)
def test_predictions_come_true(cells, name):
    episode = cells[name].start(7)
    predicted = episode.cell.task.predicted(episode.data, np.array([0.0, 0.5]))
    for _ in range(5):
        episode.move(episode.command)
    now = episode.cell.task.predicted(episode.data, np.zeros(1))
    np.testing.assert_allclose(predicted.position[1], now.position[0], atol=2e-3)


def test_no_such_task_says_which_there_are():
    with pytest.raises(KeyError, match="pick-place"):
        visuomotor.load("juggle")


def test_the_floating_gripper_goes_where_it_is_told(cells):
    episode = cells["pick-place"].start(0)
    start = episode.tool
    for k in range(1, 6):
        goal = Pose(
            position=start.position + 0.02 * k * np.array([1.0, -1.0, 0.5]),
            rotation=turn(np.array([0.0, 0.0, 0.08 * k])) @ start.rotation,
        )
        episode.move(Command(pose=goal, opening=OPEN))
        assert np.linalg.norm(episode.tool.position - goal.position) < 0.012  # 2 * LAG * speed = 9 mm
    for _ in range(3):
        episode.move(Command(pose=goal, opening=0.02))
    assert np.linalg.norm(episode.tool.position - goal.position) < 1e-4
    assert np.linalg.norm(rotvec(episode.tool.rotation @ goal.rotation.T)) < 1e-3
    assert episode.moment().opening == pytest.approx(0.02, abs=1e-3)


def test_a_script_goes_back_when_nothing_is_held():
    here, there = (pinching(np.array([x, 0.0, 0.2]), downward(0.0)) for x in (0.0, 0.1))
    points = (
        Waypoint(target=lambda _: here, opening=OPEN),
        Waypoint(target=lambda _: there, opening=0.0, check=lambda held: held),
    )
    last = Command(pose=here, opening=0.0)
    on, _ = advance(points, Progress(index=1), last, True)
    again, progress = advance(points, Progress(index=1), last, False)
    assert on.opening == 0.0 and on.pose.position[0] > here.position[0]
    assert again.opening == OPEN and progress.index == 1  # the first is reached at once
    np.testing.assert_allclose(again.pose.position, here.position, atol=1e-12)


def test_rotation_vectors_and_ways_between_poses():
    for vector in (np.zeros(3), np.array([0.3, -0.2, 0.9]), np.array([1e-5, 0.0, 0.0]), np.array([0.0, 3.0, 0.0])):
        np.testing.assert_allclose(rotvec(turn(vector)), vector, atol=1e-9)
    start, goal = pinching(np.zeros(3), downward(0.0)), pinching(np.array([0.1, 0.0, 0.0]), downward(0.6))
    half = between(start, goal, 0.5)
    np.testing.assert_allclose(half.rotation, downward(0.3), atol=1e-12)
    np.testing.assert_allclose(half.position[0], 0.05, atol=1e-12)


def test_an_arm_does_the_task_within_its_limits():
    robot = embodiments.load("panda-gripper").at(np.array([-0.55, 0.0, 0.0]))
    cell = Workcell(visuomotor.load("pick-place"), robot, render=False)
    floating = Workcell(visuomotor.load("pick-place"), render=False).start(0)
    episode = cell.start(0)
    np.testing.assert_allclose(episode.tool.position, floating.tool.position, atol=3e-3)
    q = episode.joints.copy()
    episode.move_joints(q + 10.0, 0.0)  # far beyond what 0.1 s allows
    assert (np.abs(episode.joints - q) <= 0.1 * np.asarray(robot.velocity) + 1e-9).all()
    assert episode.held_back > 1.0
    assert follow_script(cell.start(0)).success
    away = Workcell(visuomotor.load("pick-place"), robot.at(np.array([-2.0, 0.0, 0.0])), render=False)
    with pytest.raises(Unreachable, match="panda-gripper"):
        away.start(0)


def test_another_hand_is_refused():
    with pytest.raises(ValueError, match="parallel gripper"):
        Workcell(visuomotor.load("pick-place"), embodiments.load("panda"), render=False)


def test_observations():
    try:
        cell = Workcell(visuomotor.load("pick-place"), size=32)
    except NoOpenGL as error:
        pytest.skip(str(error))
    with cell.cameras:
        episode = cell.start(0)
        before = episode.moment()
        episode.move(Command(pose=pinching(np.array([0.0, 0.0, 0.1]), downward(0.0)), opening=OPEN))
        seen = observation([before, episode.moment()])
        assert seen.images.shape == (2, 2, 32, 32, 3) and seen.images.dtype == np.uint8
        assert seen.position.shape == (2, 3) and seen.rotation.shape == (2, 3, 3) and seen.joints.shape == (2, 1)
        assert (seen.images[0] != seen.images[1]).any(axis=(1, 2, 3)).all()  # both cameras see the gripper move
        np.testing.assert_array_equal(before.images, cell.start(0).moment().images)
        red = (before.images[0].astype(int) @ [2, -1, -1]) > 150
        assert 5 < red.sum() < 200  # the block is in the scene camera's picture
