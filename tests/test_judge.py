"""The independent judge says yes to what is executable and no to each way of not being so."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import diffopt
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.scenes import Part, objects, tabletop


@pytest.fixture(scope="module")
def setting():
    """The arm in its home posture, 60 cm from the object, with nothing else around."""
    robot = diffopt.embodiments.load("panda-allegro").at(np.array([-0.6, 0.0, 0.0], np.float32))
    far = Pose(position=np.array([0.6, 0.0, 0.03], np.float32), rotation=np.eye(3, dtype=np.float32))
    scene = tabletop(objects.box((0.03, 0.03, 0.03), 0.1), placement=far)
    tool = robot.tool_pose(robot.home)
    grasp = Grasp(position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=0 * robot.hand_home)
    return robot, scene, jax.tree.map(np.asarray, grasp), np.asarray(robot.home)


def test_a_clear_posture_is_feasible(setting):
    robot, scene, grasp, joints = setting
    assert Judge.of(robot, scene)(grasp, joints).feasible


def test_a_missed_wrist_is_not(setting):
    robot, scene, grasp, joints = setting
    verdict = Judge.of(robot, scene)(replace(grasp, position=grasp.position + np.array([0.0, 0.0, 0.01])), joints)
    assert not verdict.feasible
    np.testing.assert_allclose(verdict.reach_position, 0.01, atol=1e-4)


def test_a_joint_beyond_its_limit_is_not(setting):
    robot, scene, grasp, joints = setting
    beyond = joints.copy()
    beyond[6] = float(robot.upper[6]) + 0.1
    verdict = Judge.of(robot, scene)(grasp, beyond)
    assert not verdict.feasible
    np.testing.assert_allclose(verdict.limit, 0.1, atol=1e-5)


def test_an_obstacle_in_the_hand_is_not(setting):
    robot, scene, grasp, joints = setting
    block = Part(kind="box", size=(0.05, 0.05, 0.05), position=tuple(float(v) for v in grasp.position))
    verdict = Judge.of(robot, replace(scene, obstacles=(block,)))(grasp, joints)
    assert not verdict.feasible and verdict.scene > 0.01


def test_a_folded_arm_is_not(setting):
    robot, scene, grasp, _ = setting
    folded = np.array([0.0, 0.0, 0.0, -3.0, 0.0, 0.8, 0.0])
    verdict = Judge.of(robot, scene)(grasp, folded)
    assert not verdict.feasible and verdict.itself > 1e-3


def test_the_hand_may_touch_the_object_but_the_arm_may_not(setting):
    robot, scene, grasp, joints = setting
    in_hand = replace(scene, placement=Pose(position=grasp.position + 0.05 * grasp.rotation[:, 0], rotation=np.eye(3)))
    assert Judge.of(robot, in_hand)(grasp, joints).feasible
    elbow = np.asarray(robot.base.apply(robot.frames(joints).position[robot.kinematics.body("link4")]))
    at_elbow = replace(scene, placement=Pose(position=elbow, rotation=np.eye(3)))
    assert not Judge.of(robot, at_elbow)(grasp, joints).feasible


def test_a_plan_with_a_nan_is_not(setting):
    robot, scene, grasp, joints = setting
    assert not Judge.of(robot, scene)(grasp, joints * np.nan).feasible
