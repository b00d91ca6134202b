"""The monitor, against poses whose gaps are known; the way back to a waypoint: the commands that came, reversed, within the limits."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt import Controller, Monitor
from diffopt.chunks import Chunk
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.geometry import Pose, shapes
from diffopt.memory import way_back
from diffopt.monitor import Deviation, gap
from diffopt.paths import JointPathSpec
from diffopt.policies import gaussian_mixture

H, DT = 6, 0.1
OFF = dict(what="object", distance=0.05, angle=0.0)
OPEN, CLOSED = np.array([0.04]), np.array([0.0])


def turned(degrees, position=(0.0, 0.0, 0.0)):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return Pose(position=np.array(position), rotation=np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]))


def holding(hand):
    return hand[0] < 0.02


def test_gaps_are_distances_and_angles():
    assert gap(turned(10.0), turned(35.0, (0.03, 0.04, 0.0))) == pytest.approx((0.05, np.deg2rad(25)), abs=1e-6)
    assert gap(turned(10.0), turned(10.0)) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_a_tool_that_is_pushed_is_off():
    monitor, planned = Monitor(), turned(0.0)
    belief = monitor.begin(planned)
    for tool, expected in (
        (turned(0.0, (0.029, 0.0, 0.0)), None),
        (turned(19.0), None),
        (turned(0.0, (0.0, 0.0, 0.031)), (0.031, 0.0)),
        (turned(-21.0), (0.0, np.deg2rad(21))),
    ):
        after, deviation = monitor.look(belief, planned, OPEN, tool)
        assert after == belief
        if expected is None:
            assert deviation is None
        else:
            assert deviation.what == "tool" and (deviation.distance, deviation.angle) == pytest.approx(
                expected, abs=1e-4
            )
    assert "tool off by 0.0 cm, 21 degrees" in str(deviation)


def test_an_object_stands_then_moves_with_the_hand_then_falls():
    """Grasped at one place, carried along a turn about the vertical: T_tool_object is constant. Then it slips, and then it is let go of."""
    monitor = Monitor(holding=holding, settle=2)
    block, tool = turned(0.0, (0.1, 0.0, 0.0)), turned(0.0, (0.1, 0.0, 0.1))
    belief = monitor.begin(tool, block, OPEN)

    def look(belief, hand, tool, object, foretold=None):
        return monitor.look(belief, tool, hand, tool, object, foretold)

    _, deviation = look(belief, OPEN, tool, turned(0.0, (0.14, 0.0, 0.0)))
    assert (deviation.what, deviation.held) == ("object", False) and deviation.distance == pytest.approx(0.04, abs=1e-6)
    assert (
        look(belief, OPEN, tool, turned(0.0, (0.3, 0, 0)), foretold=turned(0.0, (0.29, 0, 0)))[1] is None
    )  # a conveyor
    grasped = turned(0.0, (0.12, 0.0, 0.0))  # the fingers shift it by 2 cm, which the belief learns
    for _ in range(3):
        belief, deviation = look(belief, CLOSED, tool, grasped)
        assert deviation is None
    assert belief.held and belief.wait == 0
    relative = tool.inverse() @ grasped
    for degrees in (0.0, 30.0, 60.0):
        moved = turned(degrees, (0.1, 0.2, 0.3))
        carried = moved @ relative
        belief, deviation = look(belief, CLOSED, moved, carried)
        assert deviation is None
        _, deviation = look(
            belief, CLOSED, moved, replace(carried, position=carried.position - np.array([0, 0, 0.035]))
        )
        assert deviation.what == "object" and deviation.held and "in the hand off by 3.5 cm" in str(deviation)
    for height in (0.2, 0.1, 0.0):  # let go of: it may fall
        belief, deviation = look(belief, OPEN, moved, turned(0.0, (0.1, 0.2, height)))
        assert deviation is None
    assert look(belief, OPEN, moved, turned(0.0, (0.1, 0.2, 0.0)))[1] is None
    assert look(belief, OPEN, moved, turned(0.0, (0.1, 0.24, 0.0)))[1] is not None


def test_after_going_back_nothing_is_expected_of_a_lost_object_until_the_hand_has_opened():
    monitor = Monitor(holding=holding, settle=1)
    tool, block = turned(0.0), turned(0.0, (0.5, 0.0, 0.0))
    belief = monitor.after(Deviation(**OFF, held=True), tool, block, CLOSED)
    moved = turned(0.0, (0.2, 0.0, 0.0))
    assert monitor.look(monitor.seen(belief, tool, block), moved, CLOSED, moved, block)[1] is None
    for _ in range(2):
        belief, deviation = monitor.look(belief, moved, OPEN, moved, block)
        assert deviation is None and not belief.held
    assert monitor.look(belief, moved, OPEN, moved, turned(0.0, (0.4, 0.0, 0.0)))[1].what == "object"
    # pushed off its way with the object in the hand: that is where it was
    belief = monitor.after(Deviation(what="tool", distance=0.05, angle=0.0, held=True), tool, block, CLOSED)
    assert monitor.look(belief, moved, CLOSED, moved, block)[1].held
    # outside of the hand a chunk that is planned anew knows where it is
    belief = monitor.seen(monitor.after(Deviation(**OFF, held=False), tool, block, OPEN), tool, block)
    assert belief.object is block


@pytest.fixture(scope="module")
def controller():
    robot = diffopt.embodiments.load("panda-gripper")
    spec = JointPathSpec(arm_names=robot.arm, joint_names=robot.hand, horizon=H, dt=DT)
    return Controller(
        policy=gaussian_mixture(np.zeros((1, spec.dim)), 0.05, spec=spec), robot=robot, execute=4, lag=0.05
    )


def swung(controller, memory, start, rate, hand=OPEN):
    """A chunk that swings the first joint from `start` [rad] on at `rate` [rad/s]."""
    joints = np.tile(np.asarray(controller.robot.home), (H, 1))
    joints[:, 0] = start + rate * DT * np.arange(1, H + 1)
    expected = Pose(position=0.3 * joints[:, :3], rotation=np.tile(np.eye(3), (H, 1, 1)))  # some place that moves along
    chunk = Chunk(joints=joints, hand=np.tile(hand, (H, 1)), dt=DT, source="planned", expected=expected)
    return chunk, controller.after(chunk, memory, 4)


def test_the_way_back_is_the_way_that_came():
    commands = np.array([[0.0], [1.0], [3.0], [4.0]])
    np.testing.assert_allclose(way_back(commands, 1), [[3.0], [1.0], [0.0]])
    np.testing.assert_allclose(way_back(commands, 2), [[4.0], [3.5], [3.0], [2.0], [1.0], [0.5], [0.0]])
    np.testing.assert_allclose(way_back(commands[:1], 2), [[0.0]])


def test_rewinding_goes_to_the_last_waypoint_then_further(controller):
    """Three chunks of four knots, the third broken off after two with the hand closed since the second."""
    robot = controller.robot
    memory = controller.start(np.asarray(robot.home))
    _, memory = swung(controller, memory, float(robot.home[0]), 1.0)
    _, memory = swung(controller, memory, float(robot.home[0]) + 0.4, 1.0, CLOSED)
    assert memory.waypoints == (0, 4) and len(memory.trail) == 9
    chunk, _ = swung(controller, memory, float(robot.home[0]) + 0.8, 1.0, CLOSED)
    broken = controller.after(chunk, memory, 2)
    assert broken.waypoints == (0, 4, 8)
    turns = 0.1 * np.arange(11)

    back, after = controller.rewind(broken)
    assert back.source == "rewind" and after.chunk is None and after.rewound == 1
    np.testing.assert_allclose(back.joints[:, 0] - robot.home[0], turns[[9, 8]], atol=1e-5)
    np.testing.assert_allclose(after.past[-1], back.joints[-1], atol=1e-6)
    assert after.waypoints == (0, 4) and len(after.trail) == 9
    # asked again, and given up again after one knot: one waypoint more
    again = controller.after(swung(controller, after, float(robot.home[0]) + 0.8, -1.0)[0], after, 1)
    back, after = controller.rewind(again)
    assert after.rewound == 2 and after.waypoints == (0,)
    np.testing.assert_allclose(back.joints[-1], memory.trail[4], atol=1e-5)
    assert back.report == "" and "5.0 cm" in controller.rewind(broken, Deviation(**OFF, held=True))[0].report
    # where the servos should bring the tool: behind the commands, and there at last
    where = np.asarray(robot.tool_pose(jnp.asarray(back.joints[-1])).position)
    assert 1e-3 < np.linalg.norm(back.tool_at(len(back.joints) - 1).position - where) < 0.08
    # a chunk executed whole forgets the rewindings
    assert swung(controller, after, 0.0, 0.5)[1].rewound == 0


@pytest.mark.slow
def test_the_way_back_is_judged(controller):
    """Limits on the acceleration make it slower; what stands in its way by now makes it a stop."""
    robot = controller.robot
    memory = controller.start(np.asarray(robot.home))
    _, memory = swung(controller, memory, float(robot.home[0]), 1.0)
    slow, _ = replace(controller, acceleration=11.0).rewind(memory)
    assert slow.source == "rewind" and len(slow.joints) == 1 + 2 * 4
    rates = np.diff(np.concatenate([memory.past, slow.joints]), 2, axis=0) / DT**2
    assert np.abs(rates).max() < 11.0
    tool = np.asarray(robot.tool_pose(robot.home).position)
    wall = ConstraintSet.of(SceneCollision(shapes=shapes.sphere(0.05, tool)))
    stop, after = controller.rewind(memory, more=wall)
    assert stop.source == "stop" and after.rewound == 1
    np.testing.assert_allclose(stop.joints, memory.past[-1:], atol=1e-6)


def test_a_robot_without_a_feasible_chunk_goes_back_to_where_it_had_one(controller):
    """Plans that find nothing are no waypoints; after two of them it is stuck, and stays so until a chunk is found."""
    robot = controller.robot
    start = float(robot.home[0])
    memory = controller.start(np.asarray(robot.home))
    _, first = swung(controller, memory, start, 1.0)
    chunk, second = swung(controller, first, start + 0.4, 1.0)
    assert second.waypoints == (0, 4) and not controller.stuck(second)
    rest = replace(second.chunk, source="rest")
    third = controller.after(rest, second, 4)
    assert third.waypoints == (0, 4) and third.barren == 1 and not controller.stuck(third)
    assert controller.stuck(controller.after(replace(third.chunk, source="rest"), third, 4))
    back, after = controller.rewind(third)
    np.testing.assert_allclose(
        back.joints[-1], first.trail[-1], atol=1e-5
    )  # where the second chunk began, not where it ended
    stop = replace(chunk, source="stop", joints=np.repeat(back.joints[-1:], H, axis=0))
    again = controller.after(stop, after, 4)
    assert controller.stuck(again) and after.barren == 1
    further, _ = controller.rewind(after)
    np.testing.assert_allclose(further.joints[-1], memory.trail[-1], atol=1e-5)
    assert controller.after(chunk, again, 4).barren == 0
