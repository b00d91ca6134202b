"""Plans that are motions: specs, constraints along them, their Jacobians, and sampling them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import diffopt
from diffopt.constraints import (
    ConstraintSet,
    Overlap,
    SceneCollision,
    acceleration_limits,
    fit,
    from_residual,
    jerk_limits,
    velocity_limits,
)
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose, shapes
from diffopt.paths import JointPath, JointPathSpec, ToolPath, ToolPathSpec
from diffopt.plans import Grasp
from diffopt.policies import gaussian_mixture
from diffopt.policies.base import Normalizer
from diffopt.robots import embodiments
from diffopt.robots.motion import follow
from diffopt.samplers.correction import Correction
from diffopt.samplers.guidance import Guide
from diffopt.solvers import Dense, Knots, RealTimeIteration, Window

H = 6


class Ball:
    """A scene for the judge: a ball that stands fast, and nothing to grasp."""

    object = None

    def __init__(self, position, radius):
        self.position, self.radius = position, radius

    def add_to(self, spec):
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[self.radius, 0, 0], pos=self.position)


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-gripper")


def spec(horizon=H):
    return ToolPathSpec(hand="gripper", joint_names=("gripper_left",), horizon=horizon)


def swing(robot, horizon=H, rate=0.4):
    """Joints of a slow motion from home, and the tool path that they make."""
    time = 0.1 * jnp.arange(1, horizon + 1)[:, None]
    joints = robot.home + rate * time * jnp.linspace(1.0, -1.0, len(robot.arm))
    tool = jax.vmap(robot.tool_pose)(joints)
    return joints, ToolPath(position=tool.position, rotation=tool.rotation, joints=jnp.full((horizon, 1), 0.04), dt=0.1)


def policy_around(path_spec, vector, scale=0.1, modes=3):
    """A mixture of tool paths or joint paths about one, each displaced as a whole; little varies from knot to knot."""
    shift = jnp.tile(
        jax.random.normal(jax.random.key(0), (modes, path_spec.dim // path_spec.horizon)), path_spec.horizon
    )
    policy = gaussian_mixture(0.5 * np.asarray(shift), 0.02, spec=path_spec)
    return replace(policy, normalizer=Normalizer(mean=vector, scale=jnp.full(path_spec.dim, scale)))


@pytest.mark.parametrize("path_spec", [spec(), JointPathSpec(arm_names=("a", "b"), joint_names=("f",), horizon=H)])
def test_encoding_inverts_decoding(path_spec):
    frame = Pose(position=jnp.array([0.3, -0.2, 0.1]), rotation=jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))
    vector = jax.random.normal(jax.random.key(1), (path_spec.dim,))
    plan = path_spec.decode(vector, frame)
    again = path_spec.decode(path_spec.encode(plan, frame), frame)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plan, again)
    assert isinstance(plan, path_spec.plan_type)


def test_a_tool_path_is_as_far_from_another_as_what_it_holds_is_moved_and_turned():
    """About the grip, a turn of the hand moves nothing; the origin of the tool goes as far as it likes."""
    about = replace(spec(), grip=(0.0, 0.02, 0.1), hold=0.05, turn=0.3)
    rng = np.random.default_rng(2)
    plan = ToolPath(
        position=rng.normal(size=(H, 3)).astype(np.float32),
        rotation=Rotation.random(H, rng=3).as_matrix().astype(np.float32),
        joints=np.full((H, 1), 0.03, np.float32),
        dt=0.1,
    )
    turned = Rotation.from_rotvec(0.2 * rng.normal(size=(H, 3))).as_matrix().astype(np.float32) @ plan.rotation
    grip = np.asarray(about.grip, np.float32)
    shift = 0.1 * rng.normal(size=(H, 3)).astype(np.float32)
    there = replace(plan, position=plan.position + (plan.rotation - turned) @ grip + shift, rotation=turned)
    opened = replace(there, joints=there.joints + 0.01)
    vector, reference = (about.encode(p, Pose.identity()) for p in (opened, plan))
    rows = np.asarray(about.difference(vector, reference, jnp.full(about.dim, 0.02))).reshape(H, 10)
    np.testing.assert_allclose(rows[:, :3], shift / 0.05, atol=1e-4)
    np.testing.assert_allclose(
        rows[:, 3:9], (turned - plan.rotation)[..., :2].transpose(0, 2, 1).reshape(H, 6) / 0.3, atol=1e-4
    )
    np.testing.assert_allclose(rows[:, 9], 0.5, atol=1e-4)


@pytest.mark.parametrize(
    "path_spec",
    [replace(spec(3), grip=(0.01, 0.02, 0.1)), JointPathSpec(arm_names=("a", "b"), joint_names=("f",), horizon=3)],
)
def test_a_difference_depends_on_a_field_where_its_rows_say_so(path_spec):
    vector, reference = (jax.random.normal(jax.random.key(k), (path_spec.dim,)) for k in range(2))
    plan = path_spec.decode(vector, Pose.identity())

    def difference(plan):
        return path_spec.difference(path_spec.encode(plan, Pose.identity()), reference, jnp.ones(path_spec.dim))

    rates = jax.jacobian(difference)(plan)
    fields = ("arm", "joints") if isinstance(plan, JointPath) else ("position", "rotation", "joints")
    for name in fields:
        rate = np.asarray(getattr(rates, name)).reshape(path_spec.dim, -1)
        np.testing.assert_array_equal(np.flatnonzero(np.abs(rate).max(axis=1) > 0), path_spec.rows(name))


def test_limits_are_those_of_finite_differences(robot):
    """Residuals against NumPy's differences, with the past in front."""
    rng = np.random.default_rng(0)
    joints, past = rng.normal(size=(H, 7)).astype(np.float32), rng.normal(size=(3, 7)).astype(np.float32)
    plan = swing(robot)[1]
    for n, limits in enumerate([velocity_limits, acceleration_limits, jerk_limits], 1):
        given = limits(robot, limit=2.0, past=past)
        rates = np.diff(np.concatenate([past[-n:], joints]), n, axis=0) / 0.1**n
        expected = np.concatenate([rates, -rates], 1) - 2.0 * 0.97
        np.testing.assert_allclose(given.residual(plan, {"joints": joints}, None), expected, rtol=1e-4, atol=1e-2)
    free = velocity_limits(robot).residual(plan, {"joints": joints}, None)
    assert free.shape == (H - 1, 14)


@pytest.mark.slow
def test_the_joints_of_a_guide_take_a_step_on_the_dense_jacobian_by_blocks(robot):
    """Scaled rows of reach, limits, collisions, velocity and a cost at random joints: values and Jacobian by automatic differentiation."""
    rng = np.random.default_rng(3)
    joints, plan = swing(robot, 4)
    policy = policy_around(spec(4), spec(4).encode(plan, Pose.identity()))
    ball = SceneCollision(shapes=shapes.sphere(0.15, plan.position[1]))
    past, last = jnp.asarray(joints[:1]), jnp.asarray(joints)
    given = robot.constraints | velocity_limits(robot, past=past) | ball | Overlap(joints=last, weight=jnp.full(4, 0.5))
    guide = Guide(policy=policy, constraints=fit(given, policy.spec))
    x = jnp.asarray(rng.normal(size=policy.spec.dim), jnp.float32)
    q = {"joints": jnp.asarray(joints + rng.normal(0, 0.3, joints.shape), jnp.float32)}
    terms, jacobian = jax.jit(guide._by_knots)(q, x)

    @jax.jit
    def dense(joints):
        values, push = jax.linearize(lambda j: guide._residuals(x, {"joints": j}), joints)
        return values, jax.vmap(push)(jnp.eye(joints.size).reshape(-1, *joints.shape))

    expected, columns = dense(q["joints"])
    assert (expected > 0.1).sum() > 20 and isinstance(jacobian, Knots)
    np.testing.assert_allclose(terms.cost, expected, atol=1e-4)
    np.testing.assert_allclose(jacobian.dense(), columns, atol=1e-4)


def test_bad_limits_are_refused(robot):
    with pytest.raises(ValueError, match="positive"):
        acceleration_limits(robot, 0.0)
    with pytest.raises(ValueError, match="panda_joint1"):
        velocity_limits(robot, past=np.zeros(6))


def test_jacobian_pieces_are_products_of_the_dense_jacobian():
    rng = np.random.default_rng(1)
    pieces = [
        Window(blocks=jnp.asarray(rng.normal(size=(5, 4, 1, 3)))),
        Window(blocks=jnp.asarray(rng.normal(size=(3, 2, 3, 3)))),
        Window(blocks=jnp.asarray(rng.normal(size=(1, 3, 2, 3)))),
        jnp.asarray(rng.normal(size=(15, 4))),
        Window(blocks=jnp.asarray(rng.normal(size=(2, 2, 2, 3))), first=2),
    ]
    J = Knots(pieces=tuple(pieces), horizon=5, width=3)
    dense = np.zeros((15, 0))
    for piece in pieces:
        if not isinstance(piece, Window):
            dense = np.concatenate([dense, piece], 1)
            continue
        R, m, w, A = piece.blocks.shape
        columns = np.zeros((5, A, R, m))
        for r in range(R):
            for i in range(w):
                columns[piece.first + r + i, :, r] = piece.blocks[r, :, i].T
        dense = np.concatenate([dense, columns.reshape(15, R * m)], 1)
    weight, step = rng.normal(size=dense.shape[1]), rng.normal(size=15)
    chosen = rng.random(dense.shape[1]) > 0.5
    np.testing.assert_allclose(J.dense(), dense, atol=1e-6)
    np.testing.assert_allclose(J.gram(weight), (dense * weight) @ (dense * weight).T, atol=1e-4)
    ridge = rng.uniform(0.5, 1.0, 15)
    right = np.linalg.solve((dense * weight) @ (dense * weight).T + np.diag(ridge), step)
    np.testing.assert_allclose(J.solve(weight, ridge, step), right, atol=1e-3)
    single = Knots(pieces=tuple(pieces[:1]), horizon=5, width=3)
    alone = dense[:, :20] * weight[:20]
    np.testing.assert_allclose(
        single.solve(weight[:20], ridge, step), np.linalg.solve(alone @ alone.T + np.diag(ridge), step), atol=1e-3
    )
    np.testing.assert_allclose(J.pull(weight), dense @ weight, atol=1e-5)
    np.testing.assert_allclose(J.push(step), step @ dense, atol=1e-5)
    np.testing.assert_allclose(J.squares(chosen), (dense[:, chosen] ** 2).sum(1), atol=1e-5)


def _everything(robot, path):
    """Constraints of every structure: per knot with and without an own Jacobian, across knots, of the whole path."""
    ball = shapes.sphere(0.1, path.position[H // 2] + jnp.array([0.0, 0.1, 0.0]))
    return (
        robot.constraints
        | velocity_limits(robot, past=robot.home)
        | acceleration_limits(robot, 5.0, past=robot.home)
        | SceneCollision(shapes=ball)
        | from_residual(lambda plan: plan.wrist.position[2] - 0.9, name="low", plan_type=Grasp)
        | from_residual(lambda plan: jnp.sum(plan.position[:, 0]) - 3.0, name="sum", plan_type=ToolPath)
        | from_residual(lambda plan: plan.joints, name="open", plan_type=Grasp, kind="cost")
        | Overlap(joints=jnp.tile(robot.home, (H, 1)), weight=jnp.linspace(1.0, 0.0, H))
    )


def test_the_linearisation_is_the_derivative(robot):
    """The structured Jacobian of the correction's problem, against automatic differentiation of its rows."""
    joints, path = swing(robot)
    policy = policy_around(spec(), spec().encode(path, Pose.identity())).bound()
    correction = Correction.of(policy, fit(_everything(robot, path), spec()))
    args = (policy.encode(path), jnp.ones(()))
    problem, z = correction.nearest.problem, {"joints": joints + 0.05}
    values, J = jax.jit(problem.linearize)(z, args)
    expected = jax.jit(lambda z: jnp.concatenate(problem.terms(z, args)))
    np.testing.assert_allclose(jnp.concatenate(values), expected(z), atol=2e-4)
    auto = jax.jit(jax.jacfwd(expected))(z)["joints"]
    np.testing.assert_allclose(J.dense().T, auto.reshape(len(auto), -1), atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tool", "joints"])
def test_sampled_paths_can_be_executed(robot, kind):
    """OGD around a motion that is too fast and passes through a ball: what is called feasible is, by NumPy and C MuJoCo."""
    joints, path = swing(robot, rate=2.4)
    if kind == "tool":
        own, vector = spec(), spec().encode(path, Pose.identity())
    else:
        own = JointPathSpec(arm_names=robot.arm, joint_names=robot.hand, horizon=H)
        vector = own.encode(JointPath(arm=joints, joints=path.joints, dt=0.1), Pose.identity())
    ball = shapes.sphere(0.05, path.position[-1] + jnp.array([0.0, 0.0, 0.12]))
    limits = velocity_limits(robot, past=robot.home)
    constraints = robot.constraints | limits | SceneCollision(shapes=ball)
    plain = diffopt.sample(policy_around(own, vector), constraints, n=8, key=0, sampler="ddim")
    result = diffopt.sample(policy_around(own, vector), constraints, n=8, key=0)
    assert not np.asarray(plain.feasible).any() and np.asarray(result.feasible).mean() > 0.7
    assert "panda_joint" in plain.explain(0) and ", step " in plain.explain(0)
    found = np.asarray(result.joints)[np.asarray(result.feasible)]
    steps = np.diff(np.concatenate([np.tile(robot.home, (len(found), 1, 1)), found], 1), axis=1)
    assert (np.abs(steps) / 0.1 <= np.asarray(robot.velocity) + 1e-3).all()
    judge = Judge.of(robot, Ball(np.asarray(ball.position[0]), 0.05))
    for plan in range(len(found)):
        path = jax.tree.map(lambda leaf, plan=plan: np.asarray(leaf)[np.asarray(result.feasible)][plan], result.plans)
        for h in range(H):
            pose = robot.tool_pose(jnp.asarray(found[plan, h]))
            wrist = (pose.position, pose.rotation) if kind == "joints" else (path.position[h], path.rotation[h])
            knot = Grasp(position=wrist[0], rotation=wrist[1], joints=path.joints[h], squeeze=np.zeros(1))
            assert judge(knot, found[plan, h]).feasible
    tool = jax.vmap(jax.vmap(robot.tool_pose))(jnp.asarray(found)).position
    if kind == "tool":
        np.testing.assert_allclose(tool, result.plans.position[np.asarray(result.feasible)], atol=1e-3)
    else:
        np.testing.assert_allclose(found, result.plans.arm[np.asarray(result.feasible)], atol=1e-4)


def test_of_a_set_the_past_is_the_first_guess(robot):
    _, path = swing(robot)
    sets = fit(robot.constraints | velocity_limits(robot, past=robot.home + 0.1), spec())
    guesses = sets.auxiliary(path, None)["joints"]
    np.testing.assert_allclose(guesses[1], np.tile(robot.home + 0.1, (H, 1)), atol=1e-6)
    assert isinstance(sets, ConstraintSet) and guesses.shape == (10, H, 7)


def test_following_ends_on_the_path_where_it_can(robot):
    _, path = swing(robot)
    found = follow(robot, robot.home, path.tool, longest=robot.velocity * 0.1, steps=4)
    tool = jax.vmap(robot.tool_pose)(found)
    np.testing.assert_allclose(tool.position, path.position, atol=3e-3)
    slow = follow(robot, robot.home, path.tool, longest=0.01)
    assert (np.abs(np.diff(slow, axis=0)) <= 0.01 + 1e-6).all()


@pytest.mark.slow
def test_a_solver_uses_the_structure(robot):
    """One Gauss-Newton step with knots equals the one with the dense Jacobian."""
    joints, path = swing(robot)
    policy = policy_around(spec(), spec().encode(path, Pose.identity())).bound()
    constraints = fit(robot.constraints | velocity_limits(robot, past=robot.home), spec())
    problem = Nearest(policy=policy, constraints=constraints).problem
    args, z = (policy.encode(path), jnp.ones(())), {"joints": joints + 0.1}

    def dense(z, args):
        values, J = problem.linearize(z, args)
        return values, Dense(columns=J.dense())

    solver = RealTimeIteration()
    one, other = (jax.jit(lambda z, p=p: solver(p, z, args).z)(z) for p in (problem, replace(problem, linearize=dense)))
    np.testing.assert_allclose(one["joints"], other["joints"], atol=1e-3)
