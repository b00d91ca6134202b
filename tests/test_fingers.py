"""Fingers that are not where they are told to be: what C MuJoCo says of them at every opening that they may have."""

from dataclasses import replace

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import diffopt
from diffopt import Controller
from diffopt.chunks import kept, widest
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.geometry import shapes
from diffopt.paths import JointPathSpec
from diffopt.policies import gaussian_mixture

H, HALF = 4, 0.004
ONE = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def robot():
    return diffopt.embodiments.load("panda-gripper")


def beside(robot, gap):
    """A post in the robot's home posture, `gap` beyond the outer side of the open hand's left finger, at the height of its pad [m]."""
    tool = robot.tool_pose(robot.home)
    R = np.asarray(tool.rotation)
    centre = np.asarray(tool.position) + R @ np.array([0.0, 0.04 + 0.0152 + gap + HALF, 0.1036])
    return centre, R


def touches(robot, centre, R, opening):
    """Whether C MuJoCo finds a contact of the left finger with the post, at that opening."""
    spec = robot.model_spec()
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, R.ravel())
    spec.worldbody.add_geom(name="post", type=mujoco.mjtGeom.mjGEOM_BOX, size=(HALF, HALF, HALF), pos=centre, quat=quat)
    model = spec.compile()
    data = mujoco.MjData(model)
    for name, value in zip((*robot.arm, *robot.hand), (*np.asarray(robot.home), opening), strict=True):
        data.joint(name).qpos[0] = value
    data.joint("gripper_right").qpos[0] = opening
    mujoco.mj_forward(model, data)
    post = model.geom("post").id
    return bool(np.any(data.contact.geom[: data.ncon] == post))


def test_fingers_count_as_open_as_they_may_be(robot):
    """A post beside the hand that only open fingers touch: a hand told to be closed is clear of it, unless something may hold it open."""
    spec = JointPathSpec(arm_names=robot.arm, joint_names=robot.hand, horizon=H, dt=0.1)
    policy = gaussian_mixture(np.zeros((1, spec.dim)), 0.05, spec=spec)
    controller = Controller(policy=policy, robot=robot, opens=1.0, between=2, execute=2)
    centre, R = beside(robot, -0.006)
    post = ConstraintSet.of(SceneCollision(shapes=shapes.box((HALF,) * 3, centre, R)))
    still = np.tile(np.asarray(robot.home), (H, 1))
    memory = controller.start(np.asarray(robot.home))

    def fine(told, measured=None):
        setting = controller._setting(memory, post, measured)
        return controller._fine(setting, still, np.asarray(told, np.float32)[:, None])

    openings = np.linspace(0.0, 0.04, 9)
    contact = [touches(robot, centre, R, opening) for opening in openings]
    assert contact[-1] and not any(contact[:5])
    for opening, hit in zip(openings, contact, strict=True):
        assert not (
            hit and fine(np.zeros(H), np.array([opening]))
        )  # held open by something: nothing that touches is called clear
        assert not (hit and fine(np.full(H, opening)))
    assert fine(np.zeros(H)) and fine(np.zeros(H), np.array([0.01]))  # closed, or around something thin
    assert fine(np.zeros(H), np.array([0.0])) and not fine(
        np.full(H, 0.04), np.array([0.0])
    )  # what it is told opens it as well
    assert not fine([0.04, 0.0, 0.0, 0.0])  # nor is closing believed
    with pytest.raises(ValueError, match="gripper_left"):
        replace(controller, opens=0.0)._setting(memory, post, np.array([0.01]))


def test_fingers_do_not_close_on_what_stands_between_them(robot):
    """A thin post on the inner side of an open left finger, at every place that C MuJoCo says the open hand is clear of: to stay open is
    fine, to close is not, even if something that the hand holds would stop it halfway."""
    spec = JointPathSpec(arm_names=robot.arm, joint_names=robot.hand, horizon=H, dt=0.1)
    policy = gaussian_mixture(np.zeros((1, spec.dim)), 0.05, spec=spec)
    controller = Controller(policy=policy, robot=robot, opens=1.0, between=2, execute=2)
    still, memory = np.tile(np.asarray(robot.home), (H, 1)), controller.start(np.asarray(robot.home))
    for aside in (0.008, 0.016, 0.026):  # of the post's centre from the middle of the hand
        centre, R = beside(robot, aside - 0.04 - 0.0152 - HALF)
        assert not touches(robot, centre, R, 0.04) and any(
            touches(robot, centre, R, q) for q in np.linspace(0, 0.04, 41)
        )
        post = ConstraintSet.of(SceneCollision(shapes=shapes.box((HALF,) * 3, centre, R)))

        def fine(told, post=post):
            setting = controller._setting(memory, post, np.array([0.04]))
            return controller._fine(setting, still, np.asarray(told, np.float32)[:, None])

        assert fine(np.full(H, 0.04)) and not fine([0.04, 0.03, 0.0, 0.0])


def test_the_widest_so_far():
    """By hand: the first joint opens upwards, the second downwards, of the third nothing is known."""
    hand = jnp.array([[0.1, 0.1, 0.1], [0.3, 0.2, 0.3], [0.2, -0.4, 0.2], [0.0, 0.0, 0.0]])
    expected = [[0.1, 0.1, 0.1], [0.3, 0.1, 0.3], [0.3, -0.4, 0.2], [0.3, -0.4, 0.0]]
    opens = np.array([1.0, -1.0, 0.0], np.float32)
    np.testing.assert_allclose(widest(hand, opens), expected)
    low, high = kept(np.array([0.15, 0.05, 0.1]), opens)
    np.testing.assert_allclose(low, [0.15, -np.inf, -np.inf])
    np.testing.assert_allclose(high, [np.inf, 0.05, np.inf])
    assert np.isinf(np.concatenate(kept(None, opens))).all()


def test_the_tool_does_not_move_with_what_the_hand_holds(robot):
    """Fingers alone are where something keeps them; as far as they are told to open, they go."""
    held = replace(robot, hand_kept=kept(np.array([0.02]), ONE))
    for told, at in ((0.0, 0.02), (0.03, 0.03)):
        frames = held.frames(robot.home, jnp.array([told]))
        plain = robot.frames(robot.home, jnp.array([at]))
        np.testing.assert_allclose(frames.position, plain.position, atol=1e-7)
    np.testing.assert_allclose(held.tool_pose(robot.home).position, robot.tool_pose(robot.home).position)
