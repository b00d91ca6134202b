"""Forward kinematics and Jacobians against C MuJoCo, on random trees with every type of joint."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffopt.robots import embodiments
from diffopt.robots.embodiments import parts
from diffopt.robots.kinematics import Kinematics

TYPES = ("hinge", "slide", "ball")
SHIPPED = (*parts.ARMS, *parts.HANDS, "panda-allegro", "ur5e-shadow")


def random_tree(seed: int) -> str:
    """A random tree of about ten bodies as MJCF: bodies with no, one or several joints, off-centre anchors, odd axes, a free root."""
    rng = np.random.default_rng(seed)

    def numbers(v):
        return " ".join(f"{x:.9f}" for x in v)

    def body(depth: int, free: bool) -> str:
        joints = '<freejoint name="free"/>' if free else ""
        if not free:
            kinds = list(rng.choice(TYPES[:2], rng.choice([0, 1, 1, 1, 2, 3]))) + ["ball"] * int(rng.uniform() < 0.25)
            for kind in kinds:  # MuJoCo wants a ball to be the last
                axis = rng.normal(size=3) if rng.uniform() < 0.6 else np.eye(3)[rng.integers(3)] * rng.choice([-1, 1])
                anchor = rng.normal(size=3) * 0.2 * rng.integers(2)
                reference = "" if kind == "ball" else f'axis="{numbers(axis)}" ref="{rng.normal():.5f}"'
                joints += f'<joint type="{kind}" pos="{numbers(anchor)}" {reference}/>'
        children = "".join(body(depth + 1, False) for _ in range(rng.choice([1, 2]) if depth < 3 else 0))
        pose = f'pos="{numbers(rng.normal(size=3))}" quat="{numbers(rng.normal(size=4))}"'
        return f'<body {pose}>{joints}<geom size="0.1" mass="1"/>{children}</body>'

    roots = body(0, seed % 2 == 0) + body(2, False)
    return f"<mujoco><compiler angle='radian'/><worldbody>{roots}</worldbody></mujoco>"


def oracle(model, qpos):
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    return data


def random_qpos(model, seed):
    rng = np.random.default_rng(seed)
    qpos = rng.normal(size=model.nq)
    for j in range(model.njnt):  # quaternions need not be normalised, but not be tiny either
        if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_BALL:
            a = model.jnt_qposadr[j]
            qpos[a : a + 4] /= np.linalg.norm(qpos[a : a + 4])
        if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE:
            a = model.jnt_qposadr[j] + 3
            qpos[a : a + 4] /= np.linalg.norm(qpos[a : a + 4])
    return qpos


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_random_trees_agree_with_mujoco(seed):
    model = mujoco.MjModel.from_xml_string(random_tree(seed))
    kinematics = Kinematics.from_model(model)
    fk = jax.jit(kinematics.fk)
    for k in range(3):
        qpos = random_qpos(model, 100 * seed + k)
        data, frames = oracle(model, qpos), fk(jnp.asarray(qpos, jnp.float32))
        np.testing.assert_allclose(frames.position, data.xpos, atol=1e-5)
        np.testing.assert_allclose(np.reshape(frames.rotation, (-1, 9)), data.xmat, atol=1e-5)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_jacobians_agree_with_mujoco(seed):
    model = mujoco.MjModel.from_xml_string(random_tree(seed))
    kinematics = Kinematics.from_model(model)
    qpos = random_qpos(model, seed)
    data, frames = oracle(model, qpos), kinematics.fk(jnp.asarray(qpos, jnp.float32))
    point = np.array([0.1, -0.2, 0.3])
    for b in range(1, model.nbody):
        jacp, jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, jacp, jacr, point, b)
        np.testing.assert_allclose(
            kinematics.jacobian(frames, jnp.asarray(point), b), np.vstack([jacp, jacr]), atol=1e-5
        )


@pytest.mark.parametrize(
    "name", [n if n in SHIPPED else pytest.param(n, marks=pytest.mark.slow) for n in embodiments.names()]
)
def test_shipped_robots_agree_with_mujoco(name):
    robot = embodiments.load(name)
    model = mujoco.MjModel.from_xml_string(robot.xml)
    rng = np.random.default_rng(0)
    fk = jax.jit(robot.kinematics.fk)
    for _ in range(5):
        qpos = rng.uniform(model.jnt_range[:, 0], model.jnt_range[:, 1])
        data, frames = oracle(model, qpos), fk(jnp.asarray(qpos, jnp.float32))
        np.testing.assert_allclose(frames.position, data.xpos, atol=1e-5)
        np.testing.assert_allclose(np.reshape(frames.rotation, (-1, 9)), data.xmat, atol=1e-5)
    point, body = np.array([0.1, -0.2, 0.3]), model.nbody - 1
    jacp, jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    mujoco.mj_jac(model, data, jacp, jacr, point, body)
    exact = robot.kinematics.jacobian(frames, jnp.asarray(point, jnp.float32), body)
    np.testing.assert_allclose(exact, np.vstack([jacp, jacr]), atol=2e-5)


def test_only_computes_the_same_where_it_computes():
    robot = embodiments.load("panda-allegro")
    palm = robot.kinematics.body("palm")
    qpos = robot.qpos(robot.home + 0.3)
    full, part = robot.kinematics.fk(qpos), robot.kinematics.fk(qpos, only=(palm,))
    np.testing.assert_allclose(part.position[palm], full.position[palm], atol=1e-6)
    np.testing.assert_allclose(part.rotation[palm], full.rotation[palm], atol=1e-6)


def test_autodiff_agrees_with_the_geometric_jacobian():
    robot = embodiments.load("panda-allegro")
    tip = robot.kinematics.body("mf_tip")
    qpos = robot.qpos(robot.home + 0.1, robot.hand_home + 0.2)
    frames = robot.kinematics.fk(qpos)
    exact = robot.kinematics.jacobian(frames, frames.position[tip], tip)[:3]
    for differentiate in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(
            differentiate(lambda q: robot.kinematics.fk(q).position[tip])(qpos), exact, atol=1e-5
        )


def test_a_model_without_joints_has_constant_frames():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body pos='1 2 3'><geom size='.1'/><body pos='0 0 1'><geom size='.1'/></body></body></worldbody></mujoco>"
    )
    frames = Kinematics.from_model(model).fk(jnp.zeros(0))
    np.testing.assert_allclose(frames.position, [[0, 0, 0], [1, 2, 3], [1, 2, 4]])
    assert frames.axis.shape == (0, 3)


def test_wrong_length_of_qpos_names_the_joints():
    with pytest.raises(ValueError, match="nq=7: panda_joint1"):
        embodiments.load("panda").kinematics.fk(jnp.zeros(6))


def test_unknown_names_are_answered_with_those_there_are():
    kinematics = embodiments.load("panda").kinematics
    with pytest.raises(KeyError, match=r"no joint 'elbow'; there are: panda_joint1"):
        kinematics.joint("elbow")
    with pytest.raises(KeyError, match=r"no body 'palm'; there are: world, link0"):
        kinematics.body("palm")
