"""Trackability: the roll-out against a plain simulation of the same controller, with MuJoCo's kinematics, and against closed forms."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.constraints import NearPath, Tracking
from diffopt.paths import ToolPath
from diffopt.robots import embodiments
from diffopt.samplers.linearization import by_joints
from diffopt.solvers import Knots

H, DT = 5, 0.1


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-gripper").at(
        jnp.array([0.2, -0.4, 0.1]), jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    )


def path_of(robot, joints):
    tool = jax.jit(jax.vmap(robot.tool_pose))(joints)
    return ToolPath(position=tool.position, rotation=tool.rotation, joints=jnp.full((len(joints), 1), 0.04), dt=DT)


def resolved_rate(robot, data, sent, wanted, damping):
    """The damped least-squares step, by MuJoCo's poses and Jacobian, in double precision."""
    model = data.model

    def tool(q):
        for name, value in zip(robot.arm, q, strict=True):
            data.joint(name).qpos = value
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        return data.body(robot.tool).xpos.copy(), data.body(robot.tool).xmat.reshape(3, 3).copy()

    goal, turned = tool(wanted)
    position, rotation = tool(sent)
    J = np.zeros((6, model.nv))
    mujoco.mj_jacBody(model, data, J[:3], J[3:], model.body(robot.tool).id)
    J = J[:, [model.joint(name).dofadr[0] for name in robot.arm]]
    quaternion, turn = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, (turned @ rotation.T).ravel())
    mujoco.mju_quat2Vel(turn, quaternion, 1.0)
    return J.T @ np.linalg.solve(J @ J.T + damping**2 * np.eye(6), np.concatenate([goal - position, turn]))


def simulated(robot, tracking, joints, fine=4000):
    """Commands and joints of the controller, its servos by small Euler steps of T q' = c - q along the ramps."""
    data = mujoco.MjData(robot.model_spec().compile())
    past, T = np.asarray(tracking.past, float), np.asarray(tracking.lag, float)
    low, high = np.asarray(robot.lower, float), np.asarray(robot.upper, float)
    longest = np.asarray(robot.velocity, float) * DT if tracking.longest is None else np.asarray(tracking.longest)
    q, sent = past[0].copy(), past[0]

    def ramp(q, a, b):
        for k in range(fine):
            q = q + DT / fine * (a + (k + 0.5) / fine * (b - a) - q) / T
        return q

    for after in past[1:]:
        q, sent = ramp(q, sent, after), after
    commands, found, before = [], [], past[-1]
    for wanted in np.asarray(joints, float):
        led = wanted + np.clip(T / DT * (wanted - before), -tracking.offset, tracking.offset)
        way = led - sent if tracking.by == "joints" else resolved_rate(robot, data, sent, led, tracking.damping)
        after = np.clip(sent + np.clip(way, -longest, longest), low, high)
        q, sent, before = ramp(q, sent, after), after, wanted
        commands.append(sent)
        found.append(q)
    return np.array(commands), np.array(found)


@pytest.mark.parametrize("by", ["joints", "tool"])
def test_the_rollout_is_the_controllers(robot, by):
    """Random motions that the velocity limits, the joint limits and the bound of the lead all cut."""
    rng = np.random.default_rng(0)
    start = np.array(robot.home)
    start[0] = float(robot.upper[0]) - 0.05
    steps = start + np.cumsum(0.12 * rng.normal(size=(3 + H, 7)), axis=0).astype(np.float32)
    lag = np.linspace(0.04, 0.09, 7).astype(np.float32)
    tracking = Tracking(robot=robot, past=steps[:3], lag=jnp.asarray(lag), offset=0.06, by=by, longest=0.2)
    commands, found = simulated(robot, tracking, steps[3:])
    np.testing.assert_allclose(tracking.commands(steps[3:], DT), commands, atol=1e-4)
    np.testing.assert_allclose(tracking.followed(steps[3:], DT), found, atol=1e-4)
    if by == "joints":
        led = steps[3:] + np.clip(lag / DT * np.diff(steps[2:], axis=0), -0.06, 0.06)
        assert (commands[:, 0] == float(robot.upper[0])).any() and (np.abs(commands - led) > 1e-3).mean() > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("by", ["joints", "tool"])
def test_the_derivative_is_exact_and_what_solvers_get(robot, by):
    rng = np.random.default_rng(1)
    joints = jnp.asarray(robot.home + np.cumsum(0.05 * rng.normal(size=(3 + H, 7)), axis=0), jnp.float32)
    tracking, joints = Tracking(robot=robot, past=joints[:3], offset=0.02, by=by), joints[3:]
    path = path_of(robot, joints)

    @jax.jit
    def look(q):
        given, pieces = by_joints(tracking, path, None, {"joints": q}, None)
        dense = Knots(pieces=tuple(pieces), horizon=H, width=7).dense().T
        auto = jax.jacfwd(lambda q: tracking.residual(path, {"joints": q}, None))(q)
        return tracking.residual(path, {"joints": q}, None), given, dense, auto

    rows, given, dense, auto = look(joints)
    scale = np.maximum(np.asarray(tracking.tolerance), 1e-2)
    np.testing.assert_allclose(given, np.ravel(rows / scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dense, (auto / scale[:, None, None]).reshape(2 * H, -1), atol=5e-3)


def test_a_bounded_lead_takes_away_the_reason_to_slow_down(robot):
    """At constant speed v the joint is T v behind without a lead, T v - offset with one, and not at all where the bound allows; there
    neither residual nor derivative asks for a slower path."""
    T, v, offsets = 0.06, 0.5, jnp.array([0.0, 0.01, 0.05])
    steps = DT * jnp.arange(-12, 12)[:, None] * jnp.zeros(7).at[0].set(1.0)
    path = path_of(robot, jnp.tile(robot.home, (12, 1)))

    @jax.jit
    @jax.vmap
    def look(offset):
        def worst(speed):
            moved = robot.home + speed * steps
            tracking = Tracking(robot=robot, past=moved[:12], lag=T, offset=offset, slack=0.0)
            behind = moved[12:] - tracking.followed(moved[12:], DT)
            return tracking.residual(path, {"joints": moved[12:]}, None)[-1, 0], behind[-1, 0]

        return jax.value_and_grad(worst, has_aux=True)(v)

    (_, behind), slope = look(offsets)
    # before the path commands had no lead: what the first one changes fades away with E^h
    fading = np.exp(-11 * DT / T)
    np.testing.assert_allclose(behind, [T * v, T * v - 0.01, 0.0], atol=T * v * fading + 1e-5)
    arm = np.linalg.norm(np.asarray(robot.tool_pose(robot.home).position - robot.base.position)[:2])
    np.testing.assert_allclose(slope[:2], T * arm, rtol=1e-2)
    assert abs(slope[2]) < 0.02 * T * arm


def test_what_is_sent_stays_within_the_bound_of_the_path(robot):
    rng = np.random.default_rng(2)
    joints = jnp.asarray(robot.home + np.cumsum(0.1 * rng.normal(size=(3 + H, 7)), axis=0), jnp.float32)
    tracking = Tracking(robot=robot, past=joints[:3], lag=0.2, offset=0.03, longest=1.0)
    off = np.abs(tracking.commands(joints[3:], DT) - np.clip(joints[3:], robot.lower, robot.upper))
    assert off.max() <= 0.03 + 1e-5 and (off > 0.0299).any()


def test_what_cannot_be_is_said(robot):
    with pytest.raises(ValueError, match="a controller by 'wire' in 'tracking'; there are: joints, tool"):
        Tracking(robot=robot, past=robot.home[None], by="wire").followed(robot.home[None], DT)
    with pytest.raises(ValueError, match=r"past of 'tracking' has shape \(1, 6\); expected steps of panda_joint1"):
        Tracking(robot=robot, past=robot.home[None, :6]).followed(robot.home[None], DT)
    reference = path_of(robot, jnp.tile(robot.home, (4, 1))).tool
    with pytest.raises(ValueError, match=r"positions \(4, 3\); expected \(3 knots, 3\)"):
        NearPath(reference=reference, robot=robot).residual(None, {"joints": jnp.tile(robot.home, (3, 1))}, None)
    assert (robot.constraints | NearPath(reference=reference))["near_path"].robot is not None


def test_nearness_is_measured_at_the_same_time(robot):
    """Half a step late is as far as the tool moves in half a step."""
    joints = robot.home + 0.05 * jnp.arange(4)[:, None] * jnp.zeros(7).at[0].set(1.0)
    near = NearPath(reference=path_of(robot, joints).tool, robot=robot, position=0.0, angle=0.0)
    behind = joints - 0.025 * jnp.zeros(7).at[0].set(1.0)
    late = jax.jit(lambda q: near.residual(None, {"joints": q}, None))(behind)
    arm = np.linalg.norm(np.asarray(robot.tool_pose(robot.home).position - robot.base.position)[:2])
    np.testing.assert_allclose(late[:, 0], 2 * arm * np.sin(0.0125), rtol=1e-3)
    np.testing.assert_allclose(late[:, 1], 0.025, rtol=1e-3)
