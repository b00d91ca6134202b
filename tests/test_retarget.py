"""Objects on a way, whatever arm carries them: the transform against matrices, times against geodesics, and a sampled path that obeys."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxlie
import numpy as np
import pytest

import diffopt
from diffopt.constraints import Later, at_times, later, retarget, tool_way, velocity_limits
from diffopt.constraints.base import Windowed
from diffopt.geometry import Pose
from diffopt.paths import ToolPath, ToolPathSpec
from diffopt.policies import gaussian_mixture
from diffopt.policies.base import Normalizer
from diffopt.samplers import OGD
from diffopt.solvers import Knots, Window

H = 5


def poses(seed, count=None):
    key = jax.random.key(seed)
    SE3 = jaxlie.SE3.sample_uniform(key, () if count is None else (count,))
    return SE3, Pose(position=SE3.translation(), rotation=SE3.rotation().as_matrix())


def test_the_tool_follows_from_the_object():
    """T_world_tool = T_world_object T_object_tool as products in SE(3); and back."""
    (objects, way), (grip, T_object_tool) = poses(0, H), poses(1)
    tool = tool_way(way, T_object_tool)
    for h in range(H):
        wanted = jaxlie.SE3(objects.wxyz_xyz[h]) @ grip
        np.testing.assert_allclose(tool.position[h], wanted.translation(), atol=1e-5)
        np.testing.assert_allclose(tool.rotation[h], wanted.rotation().as_matrix(), atol=1e-5)
    back = tool_way(tool, T_object_tool.inverse())
    np.testing.assert_allclose(back.position, way.position, atol=1e-5)


def test_between_times_lie_geodesics():
    (SE3, way), times = poses(2, 3), jnp.array([0.0, 1.0, 3.0])
    seen = at_times(way, times, jnp.array([-1.0, 0.0, 0.25, 1.0, 2.5, 3.0, 9.0]))
    for index, (i, share) in enumerate(((0, 0.0), (0, 0.0), (0, 0.25), (1, 0.0), (1, 0.75), (2, 0.0), (2, 0.0))):
        first = SE3.rotation().wxyz[i]
        step = jaxlie.SO3(first).inverse() @ jaxlie.SO3(SE3.rotation().wxyz[min(i + 1, 2)])
        R = (jaxlie.SO3(first) @ jaxlie.SO3.exp(share * step.log())).as_matrix()
        np.testing.assert_allclose(seen.rotation[index], R, atol=1e-5)
        p = (1 - share) * way.position[i] + share * way.position[min(i + 1, 2)]
        np.testing.assert_allclose(seen.position[index], p, atol=1e-5)


@pytest.fixture(scope="module")
def carried():
    """A Panda, joints of a path, the way of an object that it holds by some grip, and the path."""
    robot = diffopt.embodiments.load("panda-gripper")
    joints = robot.home + 0.03 * jnp.arange(1, H + 1)[:, None] * jnp.array([1.0, 0.5, -1.0, 0.3, 0.2, -0.4, 0.6])
    tool = jax.vmap(robot.tool_pose)(joints)
    grip = Pose(
        position=jnp.array([0.01, -0.02, 0.09]), rotation=jaxlie.SO3.exp(jnp.array([0.2, -0.5, 1.0])).as_matrix()
    )
    plan = ToolPath(position=tool.position, rotation=tool.rotation, joints=jnp.full((H, 1), 0.01), dt=0.1)
    return robot, joints, tool_way(tool, grip.inverse()), grip, plan


def test_residuals_are_gaps_in_the_objects_axes(carried):
    robot, joints, way, grip, plan = carried

    @jax.jit
    def rows(way, position, turn):
        (constraint,) = retarget(way, grip, position=position, turn=turn, robot=robot)
        return constraint.residual(plan, {"joints": joints}, None)

    np.testing.assert_allclose(rows(way, 0.0, 0.0), 0, atol=1e-5)
    shift, turn = jnp.array([0.01, -0.02, 0.03]), jnp.array([0.1, 0.0, -0.2])
    R = way.rotation @ jaxlie.SO3.exp(-turn).as_matrix()
    moved = Pose(position=way.position - jnp.einsum("hij,j->hi", R, shift), rotation=R)
    np.testing.assert_allclose(rows(moved, 0.0, 0.0), np.tile([*shift, *turn], (H, 1)), atol=1e-4)
    np.testing.assert_allclose(
        rows(moved, jnp.array([0.02, 0.005, 0.03]), 0.15), np.tile([0, -0.015, 0, 0, 0, -0.05], (H, 1)), atol=1e-4
    )


def test_what_does_not_fit_is_named(carried):
    robot, joints, way, grip, plan = carried
    short = jax.tree.map(lambda leaf: leaf[:3], way)
    (constraint,) = retarget(short, grip, robot=robot)
    with pytest.raises(ValueError, match=r"expected one pose for each of 5 knots"):
        constraint.residual(plan, {"joints": joints}, None)
    with pytest.raises(ValueError, match="knows of no robot"):
        retarget(way, grip)["carried_object"].residual(plan, {"joints": joints}, None)
    with pytest.raises(ValueError, match=r"position=.*cannot be negative"):
        retarget(way, grip, position=-0.1)
    assert (robot.constraints | retarget(way, grip))["carried_object"].robot is robot


@pytest.mark.slow
def test_sampled_paths_carry_the_object(carried):
    """A policy that knows nothing of the object: its hand stays its own, the tool goes where the object has to."""
    robot, _, way, grip, plan = carried
    spec = ToolPathSpec(hand="gripper", joint_names=robot.hand, horizon=H)
    mean = spec.encode(replace(plan, position=plan.position + 0.05), Pose.identity())
    policy = gaussian_mixture(np.zeros((1, spec.dim)), 0.3, spec=spec)
    policy = replace(policy, normalizer=Normalizer(mean=mean, scale=jnp.full(spec.dim, 0.05)))
    constraints = robot.constraints | velocity_limits(robot, past=robot.home) | retarget(way, grip, past=robot.home)
    result = diffopt.sample(policy, constraints, n=4, key=0, levels=8, sampler=OGD(every=2)).check()
    held = tool_way(Pose(position=result.plans.position, rotation=result.plans.rotation), grip.inverse())
    assert np.abs(held.position - way.position).max() < 1e-3
    turns = jaxlie.SO3.from_matrix(jnp.swapaxes(way.rotation, -1, -2) @ held.rotation).log()
    assert np.abs(turns).max() < 0.01
    assert np.asarray(result.plans.joints).std() > 1e-3


def test_later_asks_of_the_last_knots_alone(carried):
    """Limits that begin behind the first two knots: the rows of the trimmed path, and their derivatives at the right knots."""
    robot, joints, _, _, plan = carried
    base = velocity_limits(robot, past=robot.home)
    (constraint,) = later(diffopt.ConstraintSet.of(base), 2)
    assert isinstance(constraint, Later) and isinstance(constraint, Windowed) and constraint.name == base.name
    trimmed = jax.tree.map(lambda leaf: leaf[2:], plan)

    @jax.jit
    def look(joints):
        rows, pieces = constraint.windows(plan, {"joints": joints}, None)
        windows = tuple(Window(blocks=blocks, first=first) for first, blocks in pieces)
        stated = Knots(pieces=windows, horizon=H, width=joints.shape[1]).dense()
        own = jax.jacfwd(lambda q: jnp.ravel(constraint.residual(plan, {"joints": q}, None)))(joints)
        return rows, stated, own.reshape(own.shape[0], -1)

    rows, stated, own = look(joints)
    np.testing.assert_allclose(rows, base.residual(trimmed, {"joints": joints[2:]}, None), atol=1e-6)
    np.testing.assert_allclose(stated.T, own, atol=1e-4)
    assert np.abs(own[:, : 2 * joints.shape[1]]).max() == 0
    guesses = jax.eval_shape(lambda plan: constraint.auxiliary(plan, None)["joints"], plan)
    everything = robot.constraints | base
    assert guesses.shape[1:] == joints.shape and later(everything, 0) is everything
    assert [type(c) is Later for c in later(everything, 2)] == [False] * len(robot.constraints) + [True]
