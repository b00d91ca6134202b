"""Where arms stand, what is recorded of an episode, and episodes played again."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest
from mujoco.mjx._src.collision_driver import geom_pairs

import diffopt
from diffopt.chunks import Chunk
from diffopt.controller import Controller
from diffopt.evaluation.arm_loop import ArmRun, _Answer, _constrained, _episode, _gone, _Watch
from diffopt.evaluation.replay import Recording, drift, in_c, in_mjx
from diffopt.geometry import Pose
from diffopt.memory import Memory
from diffopt.paths import ToolPath
from diffopt.tasks import visuomotor
from diffopt.tasks.clutter import Cluttered
from diffopt.tasks.placement import OVER, Around, useful
from diffopt.tasks.workcell import PERIOD, Unreachable, Workcell, observation

SEED = visuomotor.HELD_OUT + 7001


@pytest.fixture(scope="module")
def robot():
    return diffopt.embodiments.load("panda-gripper")


@pytest.fixture(scope="module")
def cell(robot):
    return Workcell(Cluttered(base=visuomotor.load("pick-place"), posts=2), robot, render=False)


def test_a_moved_base_is_what_a_new_workcell_has(cell, robot):
    base = Around().place(cell, SEED)
    fresh = Workcell(cell.task, robot.at(base), render=False)
    for name in ("body_pos", "body_quat", "geom_pos", "body_invweight0", "dof_invweight0"):
        np.testing.assert_allclose(getattr(cell.model, name), getattr(fresh.model, name), atol=1e-9, err_msg=name)
    one, other = cell.start(SEED), fresh.start(SEED)
    np.testing.assert_allclose(one.data.xpos, other.data.xpos, atol=1e-9)
    with pytest.raises(ValueError, match="no base"):
        Workcell(cell.task, render=False).move_base(base)


def test_a_base_is_within_its_ranges_and_of_use(cell):
    around = Around()
    bases = [around.draw(np.random.default_rng(i)) for i in range(200)]
    xy, z = np.array([b.position[:2] for b in bases]), np.array([b.position[2] for b in bases])
    distance = np.linalg.norm(xy, axis=1)
    assert distance.min() >= 0.45 - 1e-6 and distance.max() <= 0.75 + 1e-6 and z.min() >= 0 and z.max() <= 0.15
    facing = [np.arccos(-b.rotation[:2, 0] @ b.position[:2] / np.linalg.norm(b.position[:2])) for b in bases]
    assert np.max(facing) <= np.pi / 6 + 1e-3 and np.max(facing) > 0.8 * np.pi / 6
    assert {(x > 0, y > 0) for x, y in xy} == {(a, b) for a in (True, False) for b in (True, False)}

    first = around.place(cell, SEED)
    data, tool = cell.scene(SEED)
    for point in cell.task.landmarks(data):  # what `useful` promises, by forward kinematics
        over = Pose(position=point + np.array([0, 0, OVER]) - 0.1 * tool.rotation[:, 2], rotation=tool.rotation)
        q = cell.reach(over, data)
        data.qpos[cell.arm.joints] = q
        mujoco.mj_forward(cell.model, data)
        assert np.linalg.norm(data.body("gripper").xpos - over.position) < 0.0021 and not cell.hits(data)
    assert np.array_equal(around.place(cell, SEED).position, first.position)
    with pytest.raises(Unreachable, match="none of 3 bases"):
        Around(distance=(2.0, 2.5), tries=3).place(cell, SEED)
    assert not useful(cell, SEED)


def test_commands_are_judged_before_they_are_cut(cell, robot):
    """One joint sent twice as fast as it may go, one to where it cannot be, one as fast as allowed; and by whom."""
    Around().place(cell, SEED)
    episode = cell.start(SEED)
    watch = _Watch(robot=cell.robot)
    most = np.asarray(robot.velocity) * PERIOD

    def send(source, joints):
        still = ToolPath(position=np.zeros((1, 3)), rotation=np.eye(3)[None], joints=np.zeros((1, 1)), dt=0.1)
        answer = _Answer(
            source=source, latency=0.0, plan=still, joints=joints[None], opening=np.array([0.04]), changed=0.0
        )
        before = np.array(episode.joints)
        watch.asked(answer)
        watch.move(episode, answer, 0)
        assert (np.abs(episode.joints - before) <= most + 1e-9).all()

    send("planned", episode.joints + 0.99 * most * np.array([1, 0, 0, 0, 0, 0, -1]))
    assert (watch.beyond, watch.beyond_planned) == (0, 0)
    send("planned", episode.joints + 2.0 * most * np.array([-1, 0, 0, 0, 0, 0, 0]))
    assert (watch.beyond, watch.beyond_planned) == (1, 1)
    send("rest", np.where(np.arange(7) == 6, np.asarray(robot.upper) + 0.1, episode.joints))
    assert (watch.beyond, watch.beyond_planned) == (2, 1)
    run = watch.run(SEED, episode)
    assert run.chunks == {"planned": 2, "rest": 1} and run.beyond == 2 and 0 < run.tracking < 0.2


def test_what_counts_as_a_success():
    solved = ArmRun(seed=0, success=True)
    assert solved.safe and not replace(solved, hits=1).clean
    assert replace(solved, beyond=1).clean and not replace(solved, beyond=1).safe
    assert not replace(solved, success=False).safe


def recorded(cell, periods):
    """The gripper goes down towards the block and closes."""
    Around().place(cell, SEED)
    episode, recording = cell.start(SEED), Recording()
    recording.look(episode)
    rng = np.random.default_rng(0)
    for k in range(periods):
        episode.move_joints(episode.joints + rng.uniform(-0.03, 0.03, 7), 0.04 if k < periods // 2 else 0.0)
        recording.look(episode)
    return episode, recording


def test_c_repeats_an_episode_exactly(cell):
    episode, recording = recorded(cell, 6)
    course = in_c(cell, recording)
    np.testing.assert_array_equal(course.qpos[5], episode.data.qpos)
    np.testing.assert_array_equal(course.qvel[5], episode.data.qvel)
    same = drift(cell, recording.start, "block", course, course)
    assert same.joints == same.carried == 0.0 and same.solved == (False, False)
    moved = replace(course, qpos=course.qpos + 0.01)
    assert drift(cell, recording.start, "block", course, moved).carried == pytest.approx(0.01 * np.sqrt(3))


def test_nothing_that_stands_fast_meets_its_like_in_mjx(cell):
    """Posts reach into the table: a contact between two things that cannot move has no solution."""
    pairs = np.array([pair[:2] for pair in geom_pairs(cell.model)])
    bodies = cell.model.geom_bodyid[pairs]
    fast = (cell.model.body_weldid[bodies] == 0) | (cell.model.body_mocapid[bodies] >= 0)
    assert len(pairs) and not fast.all(axis=1).any()


@pytest.mark.slow
def test_mjx_agrees(cell):
    """Half a second of moving joints: single precision and another solver, but the same physics."""
    _, recording = recorded(cell, 5)
    (course,) = in_mjx(cell, [recording])
    found = drift(cell, recording.start, "block", in_c(cell, recording), course)
    assert found.joints < 1e-4 and found.carried < 1e-4


def test_after_a_way_of_its_own_the_memory_goes_on(robot):
    """What a servo sent in place of a plan stands in the trail, so that the controller can plan, and go back, from there."""
    home = np.asarray(robot.home, np.float32)
    memory = Memory(
        past=np.tile(home, (3, 1)), hand=np.array([0.04], np.float32), trail=home[None], grips=np.full((1, 1), 0.04)
    )
    sent = [home + 0.01 * k for k in range(1, 9)]
    grips = np.linspace(0.04, 0.0, 16)[:, None]
    plan = ToolPath(position=np.zeros((16, 3)), rotation=np.tile(np.eye(3), (16, 1, 1)), joints=grips, dt=PERIOD)
    watch = _Watch(robot=robot, commands=[home] * 3 + sent, seams=[0, 3])
    after = _gone(memory, watch, _Answer(source="followed", latency=0.0, plan=plan))
    np.testing.assert_array_equal(after.past, sent[-3:])
    np.testing.assert_array_equal(after.trail, [home, *sent])
    np.testing.assert_allclose(after.grips[:, 0], [0.04, *grips[:8, 0]], atol=1e-7)
    assert after.chunk is None and after.calls == 1


def test_what_of_an_answer_is_executed():
    """Of a chunk its first knots, of a way back and of a stop in its place all there are."""
    plan = ToolPath(
        position=np.zeros((16, 3)), rotation=np.tile(np.eye(3), (16, 1, 1)), joints=np.zeros((16, 1)), dt=PERIOD
    )
    for source, knots, expected in (
        ("planned", 16, 8),
        ("rewind", 13, 13),
        ("rewind", 3, 3),
        ("stop", 1, 1),
        ("rest", 16, 8),
    ):
        assert _Answer(source=source, latency=0.0, plan=plan, joints=np.zeros((knots, 7))).sent(8) == expected
    assert _Answer(source="followed", latency=0.0, plan=plan).sent(8) == 8


class Barren(Controller):
    """Finds nothing feasible from its third plan on."""

    def plan(self, observation, memory, more=None, hand=None, joints=None):
        joints, hand = np.tile(memory.past[-1], (16, 1)) + 0.01 * np.arange(1, 17)[:, None], np.full((16, 1), 0.04)
        source = "planned" if memory.calls < 2 else "rest"
        still = Pose(position=np.zeros((16, 3)), rotation=np.tile(np.eye(3), (16, 1, 1)))
        chunk = Chunk(joints=joints, hand=hand, dt=PERIOD, source=source, expected=still)
        return chunk, self.after(chunk, memory, self.execute)

    def rewind(self, memory, deviation=None, more=None, hand=None, joints=None):
        goal = memory.trail[memory.waypoints[-1]]
        chunk = Chunk(joints=goal[None], hand=hand[None], dt=PERIOD, source="rewind", expected=None)
        return chunk, replace(self.after(chunk, memory, 1), barren=memory.barren)


def test_the_loop_goes_back_where_plans_find_nothing(cell, robot):
    """The second plan in a row without anything feasible is not executed: the robot is sent to where the last feasible chunk began."""
    Around().place(cell, SEED)
    episode = cell.start(SEED)
    view = observation([episode.moment()] * 2)
    controller = Barren(policy=diffopt.policies.load("pick-place"), robot=cell.robot, opens=1.0)
    memory, sources = controller.start(episode.joints), []
    ask = _constrained(strict=True)
    for _ in range(4):
        answer = ask(controller, view, memory, cell, episode)
        sources.append(answer.source)
        before, memory = memory, answer.memory
    assert sources == ["planned", "planned", "rest", "rewind"]
    np.testing.assert_allclose(answer.joints, before.trail[8:9])  # after the first chunk's eight knots
    answer = _constrained(strict=False)(controller, view, before, cell, episode)
    assert answer.source == "followed"


class Standing(Controller):
    """Plans to stay where the last command was, and holds this to be good as long as the tool is within a centimetre of there."""

    def plan(self, observation, memory, more=None, hand=None, joints=None):
        still, setting = np.tile(memory.past[-1], (16, 1)), self._setting(memory, more, hand, joints)
        chunk = self._chunk(still, np.full((16, 1), 0.04), setting, source="planned", plan=())
        return chunk, self.after(chunk, memory, self.execute)

    def holds(self, chunk, k, memory, joints, more=None, hand=None):
        assert more is not None and hand.shape == (1,) and hand[0] > 0.03
        away = np.subtract(*(self.robot.tool_pose(q).position for q in (joints, memory.past[-1])))
        return self.guard is None or bool(np.linalg.norm(away) < 0.01)


@pytest.mark.parametrize("guard", [(0.01, 0.1), None])
def test_the_rest_of_a_chunk_is_not_sent_to_a_robot_that_is_held_up(cell, guard):
    """From the third period on something lifts the tool by more than a centimetre: it is planned anew, from the commands that were sent,
    from where the arm is, and with what is seen now and a period ago."""
    Around().place(cell, SEED)
    notes, seen = [], []
    controller = Standing(policy=diffopt.policies.load("pick-place"), robot=cell.robot, opens=1.0, guard=guard)

    def look(episode):
        seen.append((episode.tool.position, episode.posture))
        episode.data.xfrc_applied[cell.model.body("gripper").id, 2] = 120.0 if len(seen) >= 3 else 0.0
        if len(seen) > 9:
            episode.data.time = cell.task.time_limit

    def ask(controller, view, memory, cell, episode):
        notes.append((memory, view, len(seen) - 1))
        return _constrained(strict=True)(controller, view, memory, cell, episode)

    run = _episode(cell, controller, SEED, ask, 2, look)
    away = np.array([np.linalg.norm(position - seen[0][0]) for position, _ in seen])
    first = int(np.argmax(away > 0.01))
    assert 3 <= first < 8 and away.max() > 0.015
    if guard is None:
        assert run.broken == 0 and [sent for *_, sent in notes] == [0, 8]
        return
    assert run.broken >= 1 and notes[1][2] == first and run.chunks["planned"] == len(notes)
    memory, view, _ = notes[1]
    assert len(memory.trail) == 1 + first
    np.testing.assert_allclose(memory.past[-1], memory.trail[0], atol=1e-6)
    np.testing.assert_allclose(view.position, [seen[first - 1][0], seen[first][0]], atol=1e-6)
