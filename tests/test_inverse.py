"""Inverse kinematics: its parts against NumPy and the other kinematics, its answers against C MuJoCo."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxlie
import mujoco
import numpy as np
import pytest

import diffopt
from benchmarks import ik as benchmark
from diffopt.constraints import SceneCollision, from_residual
from diffopt.geometry import Pose, shapes
from diffopt.plans import Point
from diffopt.robots.chain import moving, sine_cosine
from diffopt.robots.descent import descend, solve, turn_to
from diffopt.robots.embodiments.parts import ARMS

# A slide, a hinge off the axes, a joint that follows another between them, and a hinge: nothing in it is special.
ODD = """<mujoco><compiler angle="radian"/><worldbody><body name="a" pos=".1 0 .2">
  <joint name="slide" type="slide" axis="0 .6 .8" range="-.3 .4"/><geom size=".02"/>
  <body name="b" pos="0 .1 .2" euler=".3 .2 -.4"><joint name="lead" axis="1 2 3" pos=".01 0 0" range="-2 2"/><geom size=".02"/>
    <body name="c" pos=".2 0 .1"><joint name="follow" axis="0 1 0" range="-2 2"/><geom size=".02"/>
      <body name="tool" pos="0 0 .2"><joint name="last" axis="0 0 1" range="-3 3"/><geom size=".02"/></body>
    </body></body></body></worldbody>
  <equality><joint joint1="follow" joint2="lead" polycoef="0 -.5 .1 0 0"/></equality></mujoco>"""


@pytest.fixture(scope="module")
def panda():
    return diffopt.embodiments.load("panda").at(
        jnp.array([0.2, -0.3, 0.1]), jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    )


@pytest.fixture(scope="module")
def balls():
    return [(0.12, (0.5, 0.1, 0.6)), (0.1, (-0.2, -0.5, 0.7)), (0.08, (0.1, 0.3, 0.3))]


def random_joints(robot, n, seed=0):
    return robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(seed), (n, len(robot.arm)))


@pytest.mark.parametrize("name", [*sorted(ARMS), "odd"])
def test_the_chain_agrees_with_the_tree_and_its_derivative(name):
    robot = diffopt.Embodiment.from_mjcf(ODD, tool="tool") if name == "odd" else diffopt.embodiments.load(name)
    q = random_joints(robot, 5)

    @jax.jit
    def both(q):
        return moving(robot, q.T), jax.vmap(robot.tool_pose)(q), jax.vmap(jax.jacfwd(robot.tool_pose))(q)

    found, pose, rate = both(q)
    np.testing.assert_allclose(found.position.T, pose.position, atol=2e-6)
    for i in range(3):
        np.testing.assert_allclose(found.columns[i].T, pose.rotation[:, :, i], atol=2e-6)
    np.testing.assert_allclose(found.linear, jnp.moveaxis(rate.position, 0, -1).swapaxes(0, 1), atol=1e-5)
    skew = jnp.einsum("lijq,lkj->lqik", rate.rotation, pose.rotation)
    turning = jnp.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1)
    np.testing.assert_allclose(found.angular, jnp.moveaxis(turning, 0, -1), atol=1e-5)


def test_a_ball_joint_in_the_arm_is_named():
    robot = diffopt.Embodiment.from_mjcf(ODD, tool="tool")
    k = robot.kinematics
    ball = dataclasses.replace(k.bodies[2], joints=(dataclasses.replace(k.bodies[2].joints[0], type="ball"),))
    robot = dataclasses.replace(robot, kinematics=dataclasses.replace(k, bodies=(*k.bodies[:2], ball, *k.bodies[3:])))
    with pytest.raises(NotImplementedError, match=r"joint 'lead'.* is a ball joint"):
        moving(robot, jnp.zeros((3, 1)))


def test_sine_and_cosine_to_float32():
    x = np.linspace(-20, 20, 20001, dtype=np.float32)
    sine, cosine = sine_cosine(x)
    np.testing.assert_allclose(sine, np.sin(x.astype(float)), atol=2e-7)
    np.testing.assert_allclose(cosine, np.cos(x.astype(float)), atol=2e-7)


def test_the_solve_is_that_of_every_lane():
    rng = np.random.default_rng(0)
    half, g = rng.normal(size=(6, 7, 7)), rng.normal(size=(6, 7))
    H = half @ half.swapaxes(1, 2) + np.eye(7)
    x = solve(jnp.asarray(H.transpose(1, 2, 0)), jnp.asarray(g.T))
    np.testing.assert_allclose(x.T, np.linalg.solve(H, g[..., None])[..., 0], rtol=1e-3, atol=1e-4)


def test_the_turn_is_the_rotation_vector():
    v = np.array([[0.3, -1.2, 2.0], [0.0, 0.0, 0.0], [1e-4, 0, 2e-4], [0, 3.0, 0]])
    start = jaxlie.SO3.exp(jnp.array([0.4, 0.5, -0.6])).as_matrix()
    end = jax.vmap(lambda w: jaxlie.SO3.exp(w).as_matrix() @ start)(jnp.asarray(v))
    columns = tuple(jnp.repeat(start[:, i : i + 1], 4, axis=1) for i in range(3))
    target = jnp.concatenate([jnp.zeros((3, 4)), *(end[:, :, i].T for i in range(3))])
    np.testing.assert_allclose(turn_to(columns, target).T, v, atol=2e-5)


def test_a_descent_keeps_the_limits_and_ends_where_it_should():
    robot = diffopt.embodiments.load("panda")
    narrow = dataclasses.replace(robot, upper=robot.upper.at[3].set(-1.5))  # the home posture has -1.57 there
    q = robot.home[:, None] + 0.2 * jax.random.normal(jax.random.key(0), (7, 8))
    q = jnp.clip(q, narrow.lower[:, None], narrow.upper[:, None])

    @jax.jit
    def run(q, start):
        pose = jax.vmap(robot.tool_pose)(q.T)
        target = jnp.concatenate([pose.position.T, *(pose.rotation[:, :, i].T for i in range(3))])
        found = descend(narrow, start, target, 12)
        return found, jax.vmap(robot.tool_pose)(found.T).position - pose.position

    for away in (2.0, 0.0):
        found, miss = run(q, jnp.repeat(robot.home[:, None] + away, 8, axis=1))
        assert np.all(found <= narrow.upper[:, None]) and np.all(found >= narrow.lower[:, None])
    np.testing.assert_allclose(miss, 0.0, atol=1e-4)


@pytest.mark.slow
def test_postures_are_what_is_said_of_them(panda, balls):
    """C MuJoCo finds the tool where it was asked for and nothing in the obstacles; what cannot be reached is not called solved."""
    obstacles = None
    for radius, place in balls:
        ball = shapes.sphere(radius, place)
        obstacles = ball if obstacles is None else obstacles | ball
    constraints = panda.constraints | SceneCollision(shapes=obstacles, robot=panda)
    q = random_joints(panda, 600)
    checks = constraints.remove("reach")

    def holds(q):
        plan = diffopt.plans.Grasp(
            position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.zeros(0), squeeze=jnp.zeros(0)
        )
        return checks.report(plan, {"joints": q}, None).satisfied

    q = q[np.asarray(jax.jit(jax.vmap(holds))(q))][:200]
    poses = jax.jit(jax.vmap(panda.tool_pose))(q)
    far = Pose(position=jnp.array([[3.0, 0, 0]]), rotation=jnp.eye(3)[None])
    poses = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), poses, far)
    found = diffopt.ik(panda, poses, constraints)
    solved = np.asarray(found.solved)
    assert solved[:-1].mean() >= 0.99
    assert not solved[-1] and 1.0 < found.position_error[-1] < 3.5 and found.attempts[-1] >= 64
    again = diffopt.ik(panda, poses, constraints)
    np.testing.assert_array_equal(found.joints, again.joints)

    spec = panda.model_spec()
    for i, (radius, place) in enumerate(balls):
        spec.worldbody.add_geom(name=f"ball{i}", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[radius, 0, 0], pos=place)
    model = spec.compile()
    data = mujoco.MjData(model)
    mine = [g for g in range(model.ngeom) if model.geom_bodyid[g] in panda.spheres.body and model.geom_contype[g]]
    assert mine
    for k in np.flatnonzero(solved):
        data.qpos[:7] = found.joints[k]
        mujoco.mj_kinematics(model, data)
        assert np.linalg.norm(data.body("flange").xpos - poses.position[k]) < 1e-3
        cosine = (np.trace(np.asarray(poses.rotation[k]).T @ data.body("flange").xmat.reshape(3, 3)) - 1) / 2
        assert np.arccos(np.clip(cosine, -1, 1)) < np.deg2rad(0.5) + 1e-3
        for i in range(len(balls)):
            assert min(mujoco.mj_geomDistance(model, data, g, model.geom(f"ball{i}").id, 1.0, None) for g in mine) > 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 16])
@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_shipped_arm_solves_what_it_can_reach(name, count):
    """At least 99 % of poses by forward kinematics of collision-free joints, to 1 mm and 0.5 degrees, as C MuJoCo sees it; and none is
    called solved that C MuJoCo refuses."""
    robot, things = diffopt.embodiments.load(name), benchmark.obstacles(count)
    constraints, judge = benchmark.constraints_of(robot, things), benchmark.Judge(robot, things)
    poses = jax.jit(jax.vmap(robot.tool_pose))(benchmark.reachable(robot, constraints, 600, jax.random.key(5)))
    found = diffopt.ik(robot, poses, constraints)
    places = zip(found.joints, np.asarray(poses.position), np.asarray(poses.rotation), strict=True)
    solved = np.array([judge.solved(np.asarray(q), p, R) for q, p, R in places])
    assert solved.mean() >= 0.99 and not np.any(np.asarray(found.solved) & ~solved)


def test_it_can_be_traced_and_the_number_of_poses_is_free(panda):
    """The blocks have one size, whatever n: tracing tells the shapes without a compilation."""
    for n in (1, 700):
        poses = Pose(
            position=jax.ShapeDtypeStruct((n, 3), jnp.float32), rotation=jax.ShapeDtypeStruct((n, 3, 3), jnp.float32)
        )
        found = jax.eval_shape(lambda poses: diffopt.ik(panda, poses), poses)
        assert found.joints.shape == (n, 7) and found.solved.shape == (n,)
        assert set(found.violation) == {"joint_limits", "self_collision"}


def test_wrong_arguments_are_named(panda):
    eye = jnp.eye(3)[None]
    one = Pose(position=jnp.zeros((1, 3)), rotation=eye)
    ik = diffopt.ik
    with pytest.raises(TypeError, match="poses is a ndarray; expected a diffopt"):
        ik(panda, np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"position \(3,\) and rotation \(3, 3\); expected \(n, 3\)"):
        ik(panda, Pose.identity())
    with pytest.raises(ValueError, match="pose 1 is not finite"):
        ik(panda, Pose(position=jnp.array([[0.0, 0, 0], [np.nan, 0, 0]]), rotation=jnp.repeat(eye, 2, axis=0)))
    with pytest.raises(ValueError, match="rotation of pose 0 is no rotation matrix"):
        ik(panda, Pose(position=jnp.zeros((1, 3)), rotation=-eye))
    with pytest.raises(ValueError, match="attempts=0: has to be positive"):
        ik(panda, one, attempts=0)
    with pytest.raises(ValueError, match=r"hand has shape \(3,\); expected \(0,\) or \(1, 0\)"):
        ik(panda, one, hand=jnp.zeros(3))
    with pytest.raises(ValueError, match="'allegro' has no arm"):
        ik(diffopt.embodiments.load("allegro"), one)
    with pytest.raises(ValueError, match="is about the robot 'ur5e', not 'panda'"):
        ik(panda, one, diffopt.embodiments.load("ur5e").constraints)
    mine = from_residual(lambda plan: plan.values, name="mine", plan_type=Point)
    with pytest.raises(TypeError, match="constraint 'mine' speaks about Point"):
        ik(panda, one, panda.constraints | mine)
