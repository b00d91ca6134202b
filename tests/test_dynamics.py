"""Inverse dynamics against C MuJoCo, and the constraints of a motion that build on kinematics in time."""

import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.constraints import MovingCollision, Tracking, moved, torque_limits
from diffopt.geometry import Pose, shapes
from diffopt.paths import ToolPath
from diffopt.robots import embodiments, mjcf
from diffopt.robots.dynamics import inertias, inverse_dynamics
from diffopt.robots.embodiment import Embodiment

SLIDER = """<mujoco><worldbody><body name="cart"><joint name="rail" type="slide" axis="0 1 0" range="-1 1"/>
<geom type="box" size=".1 .1 .1" mass="2"/><body name="arm" pos="0 0 .2"><joint name="swing" axis="1 0 0" range="-2 2" armature=".03"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 .1 .4" mass="1.3"/><body name="tool" pos="0 .1 .4"><joint name="roll" axis="0 .3 1"
range="-2 2"/><geom type="box" size=".05 .02 .1" mass=".7" pos=".02 0 .1"/></body></body></body></worldbody></mujoco>"""


def motion(robot, seed):
    rng = np.random.default_rng(seed)
    q = np.asarray(robot.lower) + rng.uniform(0.1, 0.9, len(robot.arm)) * np.asarray(robot.upper - robot.lower)
    return q, *rng.normal(size=(2, len(robot.arm))) * [[1.5], [5.0]]


@pytest.mark.parametrize("name", ["panda-gripper", "ur5e-gripper", "slider"])
def test_inverse_dynamics_are_mujocos(name):
    """Against `mj_rne` with rotor inertias, at random states, the base turned."""
    robot = Embodiment.from_mjcf(SLIDER, tool="tool", hand=()) if name == "slider" else embodiments.load(name)
    turn = np.array([[1.0, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    model = mjcf.read(robot.xml)[0].compile()
    model.opt.gravity = turn.T @ model.opt.gravity  # of a base that is turned, seen from the base
    model.body_gravcomp[:] = 0
    data = mujoco.MjData(model)
    dofs = [model.joint(j).dofadr[0] for j in robot.arm]
    ours = jax.jit(inverse_dynamics)
    for seed in range(4):
        q, qd, qdd = motion(robot, seed)
        for j, value in zip((*robot.arm, *robot.hand), (*q, *np.asarray(robot.hand_home)), strict=True):
            data.joint(j).qpos = value
        for coupling in robot.kinematics.couplings:
            data.joint(coupling.joint).qpos = np.asarray(robot.qpos(jnp.asarray(q)))[
                model.joint(coupling.joint).qposadr[0]
            ]
        data.qvel[:], data.qacc[:] = 0, 0
        data.qvel[dofs], data.qacc[dofs] = qd, qdd
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        expected = np.zeros(model.nv)
        mujoco.mj_rne(model, data, 1, expected)
        expected = expected[dofs] + model.dof_armature[dofs] * qdd
        found = ours(robot.at(Pose(position=jnp.zeros(3), rotation=jnp.asarray(turn))), q, qd, qdd)
        np.testing.assert_allclose(found, expected, atol=2e-4 * (1 + np.abs(expected).max()))


def test_torque_limits_are_the_files():
    robot = embodiments.load("panda-gripper")
    np.testing.assert_allclose(inertias(robot).limit, [87, 87, 87, 87, 12, 12, 12])
    with pytest.raises(ValueError, match="rail, swing, roll"):
        torque_limits(Embodiment.from_mjcf(SLIDER, tool="tool", hand=()))


def test_the_lag_is_that_of_a_servo():
    """The closed form against small Euler steps of T q' = r - q along the ramps."""
    robot = embodiments.load("panda-gripper")
    rng = np.random.default_rng(0)
    steps = np.asarray(robot.home) + np.cumsum(0.05 * rng.normal(size=(4, 7)), axis=0)
    T, dt, fine = 0.06, 0.1, 20000
    q = steps[0].copy()
    for a, b in itertools.pairwise(steps):
        for k in range(fine):
            q += dt / fine * (a + (k + 0.5) / fine * (b - a) - q) / T
    tracking = Tracking(robot=robot, past=jnp.asarray(steps[:3]), lag=T)
    np.testing.assert_allclose(tracking.lags(jnp.asarray(steps), dt), steps[-1] - q, atol=1e-5)


def test_moving_shapes_are_checked_where_they_are_then():
    """At every knot as if the scene stood still there; a wrong number of knots is named."""
    robot = embodiments.load("panda-gripper")
    plan = ToolPath(
        position=jnp.zeros((3, 3)), rotation=jnp.tile(jnp.eye(3), (3, 1, 1)), joints=jnp.full((3, 1), 0.04), dt=0.1
    )
    travel = jnp.array([[0.3, 0, 0], [0.1, 0, 0], [0.0, 0.0, 0.0]])
    ball = shapes.sphere(0.05, robot.tool_pose(robot.home).position)
    constraint = MovingCollision(shapes=moved(ball, travel), robot=robot)
    joints = jnp.tile(robot.home, (3, 1))
    rows = constraint.residual(plan, {"joints": joints}, None)
    for h in range(3):
        alone = MovingCollision(shapes=moved(ball, jnp.tile(travel[h], (3, 1))), robot=robot)
        np.testing.assert_allclose(rows[h], alone.residual(plan, {"joints": joints}, None)[0], atol=1e-6)
    with pytest.raises(ValueError, match="3 knots"):
        MovingCollision(shapes=moved(ball, travel[:2]), robot=robot).residual(plan, {"joints": joints}, None)
