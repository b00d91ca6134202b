"""Constraints of where the arm holds the tool, and of what the hand does there: closed forms and independent oracles."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import trimesh

import diffopt
from diffopt.constraints import (
    BasePlacement,
    ContactForces,
    HandPenetration,
    JointsRealised,
    Manipulability,
    OrientationCone,
    Reach,
    TolerantReach,
    WorkspaceBox,
    from_residual,
)
from diffopt.constraints.contact_forces import grasp_map, unbalanced
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose, shapes
from diffopt.plans import Grasp, GraspSpec
from diffopt.policies import gaussian_mixture
from diffopt.robots import embodiments
from diffopt.robots.embodiment import Embodiment
from diffopt.samplers.nearest import Nearest
from diffopt.scenes import Surrounding, objects, random_base, tabletop

PLATFORM = """
<mujoco><worldbody><body name="platform" pos="0 0 0.2">
  <joint name="x" type="slide" axis="1 0 0" range="-3 3"/><joint name="y" type="slide" axis="0 1 0" range="-3 3"/>
  <joint name="yaw" axis="0 0 1" range="-3 3"/><geom type="box" size=".2 .2 .1"/>
  <body name="upper" pos="0 0 .2"><joint name="lift" axis="0 1 0" range="-2 2"/><geom type="capsule" fromto="0 0 0 0 0 .4" size=".04"/>
    <body name="palm" pos="0 0 .5"><joint name="tilt" axis="0 1 0" range="-2 2"/><geom type="box" size=".03 .03 .03"/></body>
  </body></body></worldbody></mujoco>
"""


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-allegro")


def grasp(wrist, joints=0):
    return Grasp(position=wrist.position, rotation=wrist.rotation, joints=jnp.zeros(joints), squeeze=jnp.zeros(joints))


def turn(axis, angle):
    """Rotation matrix about a unit axis (Rodrigues)."""
    x, y, z = axis
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def test_angles_and_boxes_of_a_wrist_without_an_arm():
    wrist = Pose(position=jnp.array([0.1, 0.2, 0.3]), rotation=jnp.asarray(turn((1, 0, 0), 0.7), jnp.float32))
    up, ahead = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    for axis, direction, angle in ((up, up, 0.7), (ahead, ahead, 0.0), (up, (0.0, 0.0, -1.0), np.pi - 0.7)):
        cone = OrientationCone(axis=axis, direction=direction, bound=0.5, margin=0.1)
        np.testing.assert_allclose(cone.residual(grasp(wrist), {}, None), [angle - 0.4], atol=1e-4)
    gradient = jax.jacobian(
        lambda R: OrientationCone(bound=0.5).residual(grasp(dataclasses.replace(wrist, rotation=R)), {}, None)
    )
    assert np.isfinite(gradient(jnp.eye(3))).all() and np.isfinite(gradient(jnp.diag(jnp.array([1.0, -1, -1])))).all()
    box = WorkspaceBox.between((-0.1, -0.1, 0.0), (0.3, 0.1, 0.1), point=jnp.array([0.0, 0.0, 0.1]), margin=0.01)
    expected = np.array([0.0, 0.1 + 0.01 - 0.1 * np.sin(0.7), 0.2 + 0.01 + 0.1 * np.cos(0.7)]) - [0.19, 0, 0]
    np.testing.assert_allclose(box.residual(grasp(wrist), {}, None), expected, atol=1e-6)


def test_manipulability_is_that_of_mujocos_jacobian(robot):
    model = robot.model_spec().compile()
    data = mujoco.MjData(model)
    dofs = [model.joint(name).dofadr[0] for name in robot.arm]
    measures = [Manipulability(robot=robot, bound=0.0, measure=m, length=0.4) for m in ("smallest", "volume")]
    values = jax.jit(lambda q: [m.value(q) for m in measures])
    for seed in range(5):
        q = robot.home + 0.6 * jax.random.normal(jax.random.key(seed), (7,))
        data.qpos[:] = robot.qpos(q)
        mujoco.mj_forward(model, data)
        J = np.zeros((6, model.nv))
        mujoco.mj_jacBody(model, data, J[:3], J[3:], model.body(robot.tool).id)
        J = J[:, dofs] / np.repeat([0.4, 1.0], 3)[:, None]
        singular = np.linalg.svd(J, compute_uv=False)
        np.testing.assert_allclose(values(q), [singular[-1], np.prod(singular)], rtol=2e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"has 5 joints; with less than 6"):
        Manipulability(robot=Embodiment.from_mjcf(PLATFORM, tool="palm"), bound=0.1).value(jnp.zeros(5))
    with pytest.raises(ValueError, match="measure='big'; there are: smallest, volume"):
        Manipulability(bound=0.1, measure="big")


@pytest.mark.slow
def test_a_base_is_where_it_stands_whether_bolted_down_or_driving():
    """At the same place, a robot's base and a platform that has driven there have the same residual."""
    robot = Embodiment.from_mjcf(PLATFORM, tool="palm")
    region = Pose(position=jnp.array([1.0, 0.0, 0.0]), rotation=jnp.asarray(turn((0, 0, 1), 0.3), jnp.float32))
    place = BasePlacement(
        region=region, half=(0.5, 0.4), turn=0.2, target=jnp.array([2.0, 0.0, 0.5]), near=0.5, far=0.9
    )
    driven = place.on(robot)
    joints = jnp.array([1.2, 0.4, 0.9, 0.1, 0.2])
    stood = place.on(robot.at(jnp.array([1.2, 0.4, 0.0]), jnp.asarray(turn((0, 0, 1), 0.9), jnp.float32)))
    by_body = dataclasses.replace(driven, body="platform").residual(None, {"joints": joints}, None)
    np.testing.assert_allclose(stood.residual(None, {"joints": 0 * joints}, None), by_body, atol=1e-6)
    x, y = turn((0, 0, 1), -0.3)[:2, :2] @ [0.2, 0.4]
    r = np.hypot(0.8, 0.4)
    np.testing.assert_allclose(by_body, [abs(x) - 0.5, abs(y) - 0.4, 0.6 - 0.2, 0.5 - r, r - 0.9], atol=1e-5)
    _, J = stood.jacobian(None, {"joints": joints}, None)
    assert J.shape == (5, 5) and not np.any(J)
    driven = dataclasses.replace(driven, body="platform")
    by_jax = jax.jacobian(lambda q: driven.residual(None, {"joints": q}, None))(joints)
    np.testing.assert_allclose(driven.jacobian(None, {"joints": joints}, None)[1], by_jax, atol=1e-5)


ROOMS = {
    "none": {},
    "position only": dict(tilt=np.pi, turn=np.pi),
    "free axis": dict(turn=np.pi, axis=(0.6, 0.0, 0.8)),
    "box": dict(position=(0.01, 0.02, 0.03), tilt=0.1, turn=0.2),
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_realised_plan_is_within_the_room_and_moved_no_further_than_needed(robot, room):
    reach = TolerantReach(robot=robot, **ROOMS[room])
    assert isinstance(reach, JointsRealised)
    q = robot.home + 0.1
    tool = robot.tool_pose(q)

    @jax.jit
    def look(reach, plan, q):
        aux = {"joints": q}
        moved = reach.realise(plan, aux, None)
        again = reach.realise(moved, aux, None)
        by_jax = jax.jacfwd(lambda q: reach.realise(plan, {"joints": q}, None))(q)
        return (
            moved,
            again,
            reach.residual(plan, aux, None),
            reach.residual(moved, aux, None),
            reach.realised(plan, aux, None),
            by_jax,
        )

    for offset, tilt, spin in (((0.005, -0.01, 0.02), 0.05, 0.1), ((0.05, -0.03, 0.01), 0.4, -1.5)):
        a = np.asarray(reach.axis)
        k = np.cross(a, [0.0, 1.0, 0.0])
        E = turn(k / np.linalg.norm(k), tilt) @ turn(a, spin)
        R = np.asarray(tool.rotation) @ E.T
        wrist = Pose(position=tool.position - R @ np.asarray(offset), rotation=jnp.asarray(R, jnp.float32))
        moved, again, before, after, (plan, rate), by_jax = look(reach, grasp(wrist, 16), q)
        np.testing.assert_allclose(after, np.zeros(6), atol=2e-5)
        np.testing.assert_allclose(again.position, moved.position, atol=1e-5)  # idempotent
        half, most, spare = (np.asarray(v) for v in (reach.position, reach.tilt, reach.turn))
        expected = np.abs(offset) - half
        np.testing.assert_allclose(np.abs(before[:3]), np.maximum(expected, 0), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(before[3:5]), max(tilt - most, 0), atol=1e-4)
        np.testing.assert_allclose(abs(before[5]), max(abs(spin) - spare, 0), atol=1e-4)
        if room == "none":
            np.testing.assert_allclose(moved.position, tool.position, atol=1e-5)
            np.testing.assert_allclose(moved.rotation, tool.rotation, atol=1e-5)
        if not np.any(np.abs(before) > 1e-4):
            np.testing.assert_allclose(moved.position, wrist.position, atol=1e-5)
            np.testing.assert_allclose(moved.rotation, wrist.rotation, atol=1e-5)
        np.testing.assert_allclose(plan.position, moved.position, atol=1e-6)
        for field in ("position", "rotation"):
            np.testing.assert_allclose(getattr(rate, field), np.moveaxis(getattr(by_jax, field), -1, 0), atol=1e-4)


def test_a_reach_without_room_is_reach(robot):
    tool = robot.tool_pose(robot.home)
    plan = grasp(dataclasses.replace(tool, position=tool.position + jnp.array([0.01, 0.0, 0.02])), 16)
    aux = {"joints": robot.home}
    ours, plain = TolerantReach(robot=robot), Reach(robot=robot)
    np.testing.assert_allclose(
        np.linalg.norm(ours.residual(plan, aux, None)[:3]),
        np.linalg.norm(plain.residual(plan, aux, None)[:3]),
        atol=1e-5,
    )
    replaced = robot.constraints.replace("reach", TolerantReach.position_only(robot))
    assert replaced.realised == ("reach",)


def test_a_floating_hand_penetrates_by_what_it_is_pushed_in():
    """A hand that moves towards a far plane by a centimetre penetrates it by a centimetre more."""
    hand = embodiments.load("allegro")
    wall = shapes.box((1.0, 1.0, 0.5), (0.0, 0.0, -0.5))
    inside = HandPenetration(shapes=wall, depth=0.002).on(hand)
    look = jax.jit(
        lambda z: inside.residual(grasp(Pose(position=jnp.array([0.0, 0.0, z]), rotation=jnp.eye(3)), 16), {}, None)
    )
    high, low = look(0.5), look(0.03)
    assert high.max() < 0 < low.max() and len(inside.labels()) == len(low)
    np.testing.assert_allclose(look(0.49) - high, 0.01, atol=1e-5)


def test_contact_forces_are_the_best_there_are():
    """The norm that is left of a wrench against cvxpy, for random contacts, limits and coefficients of friction."""
    cp = pytest.importorskip("cvxpy")
    rng, count = np.random.default_rng(0), 12
    points = rng.normal(size=(count, 4, 3)) * 0.04
    normals = -points / np.linalg.norm(points, axis=-1, keepdims=True) + 0.3 * rng.normal(size=points.shape)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    limits, friction, wrenches = (
        rng.uniform(0, 10, (count, 4)),
        rng.uniform(0.2, 1, count),
        3 * rng.normal(size=(count, 6)),
    )

    @jax.jit
    @jax.vmap
    def ours(p, n, limit, mu, w):
        return unbalanced(grasp_map(p, n, jnp.zeros(3), 0.05), limit, mu, w)

    found = np.asarray(ours(points, normals, limits, friction, wrenches))
    for k in range(count):
        G = np.asarray(grasp_map(jnp.asarray(points[k]), jnp.asarray(normals[k]), jnp.zeros(3), 0.05), float)
        f = cp.Variable((4, 3))
        cone = [cp.norm(f[i, :2]) <= friction[k] * f[i, 2] for i in range(4)] + [f[:, 2] <= limits[k]]
        best = cp.Problem(cp.Minimize(cp.norm(sum(G[:, i] @ f[i] for i in range(4)) + wrenches[k])), cone).solve()
        assert -1e-3 < found[k] - best < 5e-3


def test_the_weight_of_a_ball_that_nobody_touches_is_left(robot):
    held, (plan, aux), (_, away) = ContactForces.example(jax.random.key(0))
    look = jax.jit(lambda c, q: c.residual(plan, {"joints": q}, None))
    np.testing.assert_allclose(look(held, away["joints"]), 9.81 * 0.05, atol=1e-4)
    heavy = dataclasses.replace(held, wrenches=ContactForces.weight(50.0))
    assert look(held, aux["joints"]) < 0.05 < 100 < look(heavy, aux["joints"])
    with pytest.raises(KeyError, match="no body 'thumb'"):
        dataclasses.replace(held, tips=("thumb",)).residual(plan, aux, None)


def test_solvers_linearise_all_of_them_by_the_joints_alone(robot):
    """What keeps OGD fast: no row is differentiated through the plan's vector."""
    balls = shapes.sphere(0.05, (0.5, 0.0, 0.3))
    constraints = (
        robot.constraints
        | OrientationCone(bound=0.5)
        | WorkspaceBox.between((-1, -1, 0), (1, 1, 1))
        | Manipulability(bound=0.05)
        | BasePlacement()
        | HandPenetration(shapes=balls)
    ).soften("workspace_box", weight=10.0)
    spec = GraspSpec(hand="hand", joint_names=robot.hand)
    policy = gaussian_mixture(jnp.eye(spec.dim)[3:4] + jnp.eye(spec.dim)[7:8], 1.0, spec=spec).bound()
    own = from_residual(lambda plan: plan.position[2:], name="low", plan_type=Grasp)
    for reach in (constraints["reach"], TolerantReach.free_axis(robot)):
        assert Nearest(policy=policy, constraints=constraints.replace("reach", reach) | own)._joints_only
    assert not Nearest(policy=policy, constraints=constraints.remove("reach"))._joints_only


@pytest.mark.slow
def test_the_default_sampler_satisfies_them_and_the_judge_agrees(robot):
    """The shipped policy between a mesh and a cloud, with the wrist in a box: what is reported as feasible the judge accepts, all of it."""
    policy, cup = diffopt.policies.load("grasp-allegro"), objects.held_out(1)[0]
    block = trimesh.creation.icosphere(2, radius=0.08)
    rng = np.random.default_rng(0)
    scene = tabletop(
        cup,
        surroundings=[
            Surrounding.mesh(
                (block.vertices, block.faces), Pose(position=jnp.array([0.0, 0.22, 0.08]), rotation=jnp.eye(3))
            ),
            Surrounding.cloud(rng.uniform((-0.1, -0.3, 0.0), (0.1, -0.2, 0.1), (200, 3)), 0.015),
        ],
    )
    robot = robot.at(random_base(1, scene, "easy"))
    constraints = robot.constraints | scene.constraints | WorkspaceBox.between((-0.6, -0.6, 0.0), (0.6, 0.6, 0.5))
    result = diffopt.sample(policy.given(scene.target), constraints, n=16, key=0)
    judge = Judge.of(robot, scene)
    plans, joints = jax.tree.map(np.asarray, (result.plans, result.joints))
    feasible = np.asarray(result.feasible)
    assert feasible.mean() > 0.6
    for i in np.flatnonzero(feasible):
        assert judge(jax.tree.map(lambda leaf, i=i: leaf[i], plans), joints[i]).feasible
        assert plans.position[i, 2] < 0.501
