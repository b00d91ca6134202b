"""Inverse dynamics against C MuJoCo, and the constraints of a motion that build on kinematics in time."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffopt.constraints import MovingCollision, moved, torque_limits
from diffopt.geometry import Pose, shapes
from diffopt.paths import ToolPath
from diffopt.robots import embodiments, mjcf, sampling
from diffopt.robots.dynamics import inertias, inverse_dynamics
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.embodiments import parts

SLIDER = """<mujoco><worldbody><body name="cart"><joint name="rail" type="slide" axis="0 1 0" range="-1 1"/>
<geom type="box" size=".1 .1 .1" mass="2"/><body name="arm" pos="0 0 .2"><joint name="swing" axis="1 0 0" range="-2 2" armature=".03"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 .1 .4" mass="1.3"/><body name="tool" pos="0 .1 .4"><joint name="roll" axis="0 .3 1"
range="-2 2"/><geom type="box" size=".05 .02 .1" mass=".7" pos=".02 0 .1"/></body></body></body></worldbody></mujoco>"""


def motion(robot, seed):
    rng = np.random.default_rng(seed)
    q = np.asarray(robot.lower) + rng.uniform(0.1, 0.9, len(robot.arm)) * np.asarray(robot.upper - robot.lower)
    return q, *rng.normal(size=(2, len(robot.arm))) * [[1.5], [5.0]]


def random_arm(seed):
    """A random tree as MJCF: a chain of five hinges and slides up to the tool "b4", with bodies off the axes, and side branches, some of
    which have joints too, that stay where they are."""
    rng = np.random.default_rng(seed)

    def numbers(size, scale=0.2):
        return " ".join(f"{v:.6f}" for v in scale * rng.normal(size=size))

    xml, ends = "", ""
    for i in range(5):
        kind, turned = rng.choice(["hinge", "hinge", "slide"]), rng.normal(size=4)
        xml += f'<body name="b{i}" pos="{numbers(3)}" quat="{" ".join(f"{v:.6f}" for v in turned)}">'
        xml += f'<joint name="j{i}" type="{kind}" pos="{numbers(3, 0.05)}" axis="{numbers(3)}" range="-1.5 1.5" '
        xml += f'armature="{rng.uniform(0, 0.1):.4f}"/><geom type="box" size=".02 .03 .05" pos="{numbers(3, 0.1)}" '
        xml += f'mass="{rng.uniform(0.2, 2):.3f}"/>'
        held = f'<joint name="side{i}" axis="{numbers(3)}" range="-1 1"/>' if rng.uniform() < 0.5 else ""
        xml += f'<body name="side{i}" pos="{numbers(3)}">{held}<geom type="box" size=".03 .01 .02" mass=".3"/>'
        xml += f'<body name="twig{i}" pos="{numbers(3)}"><geom type="sphere" size=".03" mass=".2"/></body></body>'
        ends += "</body>"
    return f'<mujoco model="random"><compiler angle="radian"/><worldbody>{xml}{ends}</worldbody></mujoco>'


SHIPPED = ("panda-gripper", "ur5e-shadow", "xarm7-leap")
REST = tuple(n for n in embodiments.names() if n.split("-")[0] in parts.ARMS and n not in SHIPPED)


@pytest.mark.parametrize("name", [*SHIPPED, "slider", *(pytest.param(n, marks=pytest.mark.slow) for n in REST)])
def test_inverse_dynamics_are_mujocos(name):
    """Against `mj_rne` with rotor inertias, at random states, the base turned; of every shipped robot that has an arm."""
    agrees(Embodiment.from_mjcf(SLIDER, tool="tool", hand=()) if name == "slider" else embodiments.load(name))


def random_robot(seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_SAMPLES", 50)
        return Embodiment.from_mjcf(random_arm(seed), tool="b4")


def test_inverse_dynamics_of_a_random_tree_are_mujocos():
    agrees(random_robot(0))


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_inverse_dynamics_of_random_trees_are_mujocos(seed):
    agrees(random_robot(seed))


def agrees(robot):
    """`inverse_dynamics` and `mj_rne`, the base turned, the hand at rest, its followers where the couplings have them."""
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


@pytest.mark.slow
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
