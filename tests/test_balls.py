"""Ball joints in arms and hands: the hinges that stand for them reach the same poses, within the file's range."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import diffopt
from diffopt.robots.balls import widest
from diffopt.robots.embodiment import Embodiment

SHOULDER = """<mujoco model="puppet"><compiler angle="{unit}"/><worldbody><body name="base"><geom size=".05"/>
  <body name="upper" pos="0 0 .1"><joint name="shoulder" type="ball" pos="0 0 .02" damping=".5" {range}/>
    <geom type="capsule" size=".03" fromto="0 0 .05 0 0 .3"/>
    <body name="fore" pos="0 0 .3"><joint name="elbow" axis="0 1 0" range="-1 1"/><geom type="capsule" size=".02" fromto="0 0 .05 0 0 .2"/>
      <body name="palm" pos="0 0 .25"><joint name="wrist" type="ball"/><geom size=".03"/></body></body></body></body></worldbody>
  <actuator><motor name="pull" joint="shoulder" gear="1 0 0"/><motor name="bend" joint="elbow"/></actuator>
  <sensor><ballquat name="felt" joint="shoulder"/></sensor></mujoco>"""


@pytest.mark.slow
def test_the_hinges_reach_what_the_ball_reaches():
    """Random postures of the ball joints in MuJoCo are found by inverse kinematics with the hinges."""
    xml = SHOULDER.format(unit="radian", range="")
    robot = Embodiment.from_mjcf(xml, tool="palm")
    assert robot.arm == ("shoulder_x", "shoulder_y", "shoulder_z", "elbow", "wrist_x", "wrist_y", "wrist_z")
    notes = " ".join(robot.notes)
    assert "ball joint shoulder is taken as the hinges" in notes and "left out: felt, pull" in notes
    model = mujoco.MjModel.from_xml_string(robot.xml)
    np.testing.assert_allclose(model.dof_damping[:4], [0.5, 0.5, 0.5, 0.0])
    model = mujoco.MjModel.from_xml_string(xml)
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    positions, rotations = [], []
    for _ in range(16):
        q = rng.normal(size=9)
        data.qpos[:] = [*q[:4] / np.linalg.norm(q[:4]), rng.uniform(-1, 1), *q[5:] / np.linalg.norm(q[5:])]
        mujoco.mj_kinematics(model, data)
        positions.append(data.body("palm").xpos.copy())
        rotations.append(data.body("palm").xmat.reshape(3, 3).copy())
    poses = diffopt.geometry.Pose(
        position=jnp.asarray(np.array(positions), jnp.float32), rotation=jnp.asarray(np.array(rotations), jnp.float32)
    )
    found = diffopt.ik(
        robot, poses, diffopt.constraints.ConstraintSet.of(robot.constraints["joint_limits"]), attempts=32
    )
    assert np.asarray(found.solved).mean() > 0.9


@pytest.mark.parametrize("unit", ["radian", "degree"])
def test_no_turn_is_beyond_the_range_of_the_ball(unit):
    most = 0.8
    given = f'range="0 {most if unit == "radian" else np.rad2deg(most)}"'
    robot = Embodiment.from_mjcf(SHOULDER.format(unit=unit, range=given), tool="palm")
    np.testing.assert_allclose(robot.upper[:3], widest(most), rtol=1e-5)
    rng = np.random.default_rng(0)
    corners = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    postures = widest(most) * np.concatenate([corners, rng.uniform(-1, 1, (200, 3))])
    upper = robot.kinematics.body("upper")

    def turn(q):
        R = robot.frames(jnp.concatenate([q, jnp.zeros(4)])).rotation[upper]
        return jnp.arccos(jnp.clip((jnp.trace(R) - 1) / 2, -1, 1))

    angles = np.asarray(jax.jit(jax.vmap(turn))(jnp.asarray(postures, jnp.float32)))
    assert angles.max() < most + 1e-3 and angles.max() > most - 1e-3


def test_taken_names_are_said():
    xml = (
        SHOULDER.format(unit="radian", range="")
        .replace('name="elbow"', 'name="shoulder_y"')
        .replace('joint="elbow"', 'joint="shoulder_y"')
    )
    with pytest.raises(ValueError, match="ball joint 'shoulder' becomes hinges, but 'shoulder_y' is taken; rename"):
        Embodiment.from_mjcf(xml, tool="palm")
