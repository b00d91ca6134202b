"""The independent judge says yes to what is executable and no to each way of not being so."""

from dataclasses import replace

import jax
import jaxlie
import numpy as np
import pytest

import diffopt
from diffopt.constraints import OrientationCone, TolerantReach, WorkspaceBox
from diffopt.evaluation.allowance import Allowance
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


def pose_within(rng, tilt, turn, axis):
    """A rotation that tilts `axis` by `tilt` and turns about it by `turn`."""
    axis = axis / np.linalg.norm(axis)
    across = np.cross(axis, rng.normal(size=3))
    rotations = (
        jaxlie.SO3.exp(np.asarray(v, np.float32)) for v in (across / np.linalg.norm(across) * tilt, axis * turn)
    )
    first, second = (np.asarray(r.as_matrix(), float) for r in rotations)
    return first @ second


def test_room_is_measured_as_poses_are_made():
    """Poses made with a known tilt, turn and offset are missed by what they exceed the room by, and not at all within it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        tilt, turn = rng.uniform(0, 1.5), rng.uniform(-3, 3)
        planned = rng.normal(size=3), pose_within(rng, 0.3, rng.uniform(-3, 3), rng.normal(size=3))
        offset = rng.uniform(-0.05, 0.05, 3)
        tool = planned[0] + planned[1] @ offset, planned[1] @ pose_within(rng, tilt, turn, axis)
        full = Allowance().missed(planned, tool)
        np.testing.assert_allclose(full[0], np.linalg.norm(offset), atol=1e-6)
        whole = np.arccos(np.clip((np.trace(planned[1].T @ tool[1]) - 1) / 2, -1, 1))
        np.testing.assert_allclose(full[1], whole, atol=1e-5)
        wide = Allowance(position=np.full(3, 0.05), tilt=tilt + 1e-4, turn=abs(turn) + 1e-4, axis=axis)
        np.testing.assert_allclose(wide.missed(planned, tool), 0.0, atol=1e-5)
        free = Allowance(position=np.zeros(3), tilt=0.0, turn=np.pi, axis=axis).missed(planned, tool)
        np.testing.assert_allclose(free[1], tilt, atol=1e-5)
        steep = Allowance(tilt=np.pi, turn=0.5 * abs(turn), axis=axis).missed(planned, tool)
        np.testing.assert_allclose(steep[1], 0.5 * abs(turn), atol=1e-5)
        assert Allowance(tilt=np.pi, turn=np.pi, axis=axis).missed(planned, tool)[1] < 1e-5


def test_a_plan_within_the_room_is_feasible_and_one_beyond_it_is_not(setting):
    """The judge and the constraint agree, at poses on both sides of the room's border."""
    robot, scene, grasp, joints = setting
    reach = TolerantReach(robot=robot, position=(0.02, 0.01, 0.03), tilt=0.1, turn=0.4)
    judge, strict = Judge.of(robot, scene, robot.constraints.replace("reach", reach)), Judge.of(robot, scene)
    residual = jax.jit(lambda plan: reach.residual(plan, {"joints": robot.home}, None))
    rng, seen = np.random.default_rng(1), set()
    for share in (0.6, 0.9, 1.4, 2.0) * 5:
        offset = share * rng.choice([-1, 1], 3) * np.array([0.02, 0.01, 0.03])
        turned = pose_within(rng, share * 0.1, share * rng.choice([-0.4, 0.4]), np.array([0.0, 0.0, 1.0]))
        rotation = grasp.rotation @ turned.T
        plan = replace(grasp, position=grasp.position - rotation @ offset, rotation=rotation)
        verdict = judge(plan, joints)
        rows = np.abs(np.asarray(residual(jax.tree.map(lambda v: np.asarray(v, np.float32), plan))))
        assert verdict.feasible == (share < 1) == bool((rows < np.array(reach.tolerance)).all())
        np.testing.assert_allclose(verdict.reach_position, np.linalg.norm(rows[:3]), atol=1e-5)
        assert not strict(plan, joints).feasible
        seen.add(verdict.feasible)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", ["position", "axis"])
def test_what_is_left_free_is_not_judged(setting, kind):
    robot, scene, grasp, joints = setting
    made = TolerantReach.position_only(robot) if kind == "position" else TolerantReach.free_axis(robot)
    judge = Judge.of(robot, scene, [made])
    rng = np.random.default_rng(2)
    about = pose_within(rng, 0.0, 2.5, np.array([0.0, 0.0, 1.0]))
    lying = pose_within(rng, 1.2, 0.3, np.array([0.0, 0.0, 1.0]))
    assert judge(replace(grasp, rotation=grasp.rotation @ about), joints).feasible
    assert judge(replace(grasp, rotation=grasp.rotation @ lying), joints).feasible == (kind == "position")
    assert not judge(replace(grasp, position=grasp.position + 0.01), joints).feasible


def test_cones_and_boxes_are_judged_where_the_tool_is(setting):
    robot, scene, grasp, joints = setting
    lean = np.arccos(np.clip(grasp.rotation[2, 2], -1, 1))
    for bound, holds in ((lean + 0.05, True), (lean - 0.05, False)):
        verdict = Judge.of(robot, scene, [OrientationCone(bound=bound)])(grasp, joints)
        assert verdict.feasible == holds
        np.testing.assert_allclose(verdict.cone, lean - bound, atol=1e-4)
    corner = grasp.position + grasp.rotation @ np.array([0.0, 0.0, 0.1])
    for shift, holds in ((0.0, True), (0.08, False)):
        box = WorkspaceBox.between(corner - 0.05 + shift, corner + 0.05 + shift, point=np.array([0.0, 0.0, 0.1]))
        verdict = Judge.of(robot, scene, [box])(grasp, joints)
        assert verdict.feasible == holds
        np.testing.assert_allclose(verdict.box, shift - 0.05, atol=1e-4)
