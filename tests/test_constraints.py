"""Constraints: exact distances, exact gradients, realisation, the algebra of sets."""

import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.constraints import (
    ConstraintSet,
    JointLimits,
    JointsLinear,
    JointsRealised,
    Reach,
    Realisable,
    SceneCollision,
    SelfCollision,
)
from diffopt.geometry import Pose, Shapes, nearest, shapes
from diffopt.plans import Grasp
from diffopt.robots import embodiments

VARIANTS = [
    (JointLimits, {}),
    (Reach, {}),
    (SceneCollision, dict(rows="sphere")),
    (SceneCollision, dict(rows="body")),
    (SceneCollision, dict(rows="pair")),
    (SelfCollision, dict(rows="sphere")),
    (SelfCollision, dict(rows="body")),
]


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-allegro")


def example(kind, options=None, seed=0):
    constraint, feasible, infeasible = kind.example(jax.random.key(seed))
    return dataclasses.replace(constraint, **(options or {})), feasible, infeasible


def grasp(robot, **changes):
    fields = dict(
        position=jnp.zeros(3), rotation=jnp.eye(3), joints=robot.hand_home, squeeze=jnp.zeros(len(robot.hand))
    )
    return Grasp(**(fields | changes))


def random_joints(robot, seed):
    return robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(seed), robot.lower.shape)


def _rotation(rng):
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def _text(values):
    return " ".join(f"{v:.9f}" for v in values)


def clutter(n=5, seed=0):
    """All four kinds of shapes, turned and scattered."""
    rng = np.random.default_rng(seed)
    out = shapes.box((0.6, 0.6, 0.05), (0.0, 0.0, -0.05))
    for i in range(n):
        R, position, size = _rotation(rng), rng.uniform((-0.6, -0.6, -0.1), (0.6, 0.6, 1.1)), rng.uniform(0.03, 0.15, 3)
        kinds = (
            lambda R, p, s: shapes.box(s, p, R),
            lambda R, p, s: shapes.cylinder(s[0], s[1], p, R),
            lambda R, p, s: shapes.capsule(s[0], s[1], p, R),
            lambda R, p, s: shapes.sphere(s[0], p),
        )
        out |= kinds[i % 4](R, position, size)
    return out


SCENE = clutter()
STEP = 1e-3


@jax.jit
def worst(constraint, plan, aux):
    return constraint.residual(plan, aux, None).max()


@pytest.mark.parametrize("kind,options", VARIANTS)
def test_labels_name_every_row(kind, options):
    constraint, (plan, aux), _ = example(kind, options)
    assert len(constraint.labels()) == jax.eval_shape(constraint.residual, plan, aux, None).shape[0]


@pytest.mark.parametrize("kind,options", VARIANTS)
def test_gradients_agree_with_differences(kind, options):
    """Autodiff and the Jacobian that a constraint states for itself against central differences."""
    constraint, (plan, _), _ = example(kind, options)
    robot = constraint.robot
    if kind is SceneCollision:
        constraint = dataclasses.replace(constraint, shapes=SCENE, robot=robot.at(jnp.array([0.1, 0.2, 0.05])))

    def residual(q):
        return constraint.residual(plan, {"joints": q}, None)

    @jax.jit
    def everything(q):
        moved = jnp.concatenate([q[None], q + STEP * jnp.eye(7), q - STEP * jnp.eye(7)])
        stated = constraint.jacobian(plan, {"joints": q}, None) if isinstance(constraint, JointsLinear) else None
        return jax.vmap(residual)(moved), jax.jacfwd(residual)(q), stated

    for seed in range(4):
        values, J, stated = jax.tree.map(np.asarray, everything(random_joints(robot, seed) * 0.9))
        differences = (values[1:8].astype(float) - values[8:]).T / (2 * STEP)
        assert np.isfinite(J).all()
        off = np.abs(J - differences).max(axis=1) > 5e-3
        assert off.mean() < 0.1  # rows at a kink, where the nearest obstacle changes within the step
        if stated is not None:
            np.testing.assert_allclose(stated[0], values[0], atol=1e-6)
            np.testing.assert_allclose(stated[1], J, atol=1e-5)


def test_realise_makes_the_reach_residual_zero(robot):
    moved = robot.at(
        Pose(position=jnp.array([0.3, -0.4, 0.1]), rotation=jnp.asarray(_rotation(np.random.default_rng(0))))
    )
    reach = Reach(robot=moved)
    assert isinstance(reach, Realisable)
    for seed in range(3):
        aux = {"joints": random_joints(robot, seed)}
        plan = reach.realise(grasp(robot, position=jnp.ones(3)), aux, None)
        np.testing.assert_allclose(reach.residual(plan, aux, None), np.zeros(6), atol=1e-5)
        again = reach.realise(plan, aux, None)
        np.testing.assert_allclose(again.position, plan.position)


def test_the_realised_plan_moves_with_the_joints_as_differentiation_says(robot):
    moved = robot.at(
        Pose(position=jnp.array([0.3, -0.4, 0.1]), rotation=jnp.asarray(_rotation(np.random.default_rng(0))))
    )
    reach, aux = Reach(robot=moved), {"joints": random_joints(robot, 4)}
    assert isinstance(reach, JointsRealised)
    plan, rate = reach.realised(grasp(robot), aux, None)
    expected = jax.jacfwd(lambda joints: reach.realise(grasp(robot), {"joints": joints}, None))(aux["joints"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.moveaxis(b, -1, 0), atol=1e-5), rate, expected)
    np.testing.assert_allclose(plan.position, reach.realise(grasp(robot), aux, None).position)


def test_tightening_adds_to_every_margin_and_to_nothing_else(robot):
    constraints = robot.constraints | SceneCollision(shapes=SCENE, robot=robot)
    tight = constraints.tightened(0.05)
    assert tight.names == constraints.names
    plan, aux = grasp(robot), {"joints": robot.home}
    for before, after in zip(constraints, tight, strict=True):
        more = 0.05 if before.name != "reach" else 0.0
        np.testing.assert_allclose(after.residual(plan, aux, None), before.residual(plan, aux, None) + more, atol=1e-6)


def test_reach_measures_metres_and_radians(robot):
    reach, joints = Reach(robot=robot), robot.home
    tool = robot.tool_pose(joints)
    angle = 0.3
    turn = jnp.array([[1, 0, 0], [0, jnp.cos(angle), -jnp.sin(angle)], [0, jnp.sin(angle), jnp.cos(angle)]])
    plan = grasp(robot, position=tool.position - jnp.array([0.1, 0.2, 0.3]), rotation=tool.rotation @ turn.T)
    np.testing.assert_allclose(reach.residual(plan, {"joints": joints}, None), [0.1, 0.2, 0.3, angle, 0, 0], atol=1e-5)


def test_reach_starts_from_postures_near_the_wrist(robot):
    reach = Reach(robot=robot, seeds=4)
    aux = reach.auxiliary(reach.realise(grasp(robot), {"joints": robot.seeds[30]}, None), None)
    assert aux["joints"].shape == (4, 7)
    np.testing.assert_allclose(aux["joints"][0], robot.seeds[30])  # the nearest first


def test_limits_are_bounds(robot):
    limits = JointLimits(robot=robot, margin=0.1)
    lower, upper = limits.bounds()["joints"]
    q = jnp.clip(random_joints(robot, 0) * 3, lower, upper)
    assert jnp.all(limits.residual(grasp(robot), {"joints": q}, None) <= 1e-6)
    np.testing.assert_allclose(limits.residual(grasp(robot), {"joints": upper + 0.2}, None), np.full(7, 0.2), atol=1e-6)


def test_distances_agree_with_mujoco():
    """Of a small ball to each kind of shape, at random poses, outside."""
    rng = np.random.default_rng(1)
    kinds = dict(sphere="0.1", capsule="0.05 0.1", cylinder="0.06 0.1", box="0.05 0.1 0.15")
    for kind, size in kinds.items():
        numbers = [float(v) for v in size.split()]
        for _ in range(20):
            R, position, point = _rotation(rng), rng.normal(size=3) * 0.3, rng.normal(size=3) * 0.4
            quaternion = np.zeros(4)
            mujoco.mju_mat2Quat(quaternion, R.ravel())
            pose = f"pos='{_text(position)}' quat='{_text(quaternion)}'"
            model = mujoco.MjModel.from_xml_string(
                f"<mujoco><worldbody><geom type='{kind}' size='{size}' {pose}/><geom size='.01' pos='{_text(point)}'/></worldbody></mujoco>"
            )
            data = mujoco.MjData(model)
            mujoco.mj_kinematics(model, data)
            expected = mujoco.mj_geomDistance(model, data, 0, 1, 10.0, None) + 0.01
            make = dict(sphere=shapes.sphere, capsule=shapes.capsule, cylinder=shapes.cylinder)
            made = (
                shapes.box(numbers, position, R)
                if kind == "box"
                else make[kind](*numbers, position, *([] if kind == "sphere" else [R]))
            )
            if expected > 0.012:  # MuJoCo's depth of penetration is another notion
                points = jnp.asarray(point, jnp.float32)[:, None]
                np.testing.assert_allclose(made.distance(points[:, 0])[0], expected, atol=2e-5)
                np.testing.assert_allclose(nearest.distances(made, points)[0, 0], expected, atol=2e-5)


def test_fast_distances_and_normals_agree_with_the_plain_ones():
    """Inside and outside, for all shapes; normals are unit gradients."""
    scene = clutter(7)
    points = jax.random.uniform(jax.random.key(0), (3, 300), minval=-0.7, maxval=1.2)
    plain = jax.jit(jax.vmap(scene.distance, in_axes=1, out_axes=1))(points)
    np.testing.assert_allclose(jax.jit(nearest.distances)(scene, points), plain, atol=1e-5)
    which, least = jax.jit(nearest.nearest)(scene, points)
    np.testing.assert_allclose(least, jnp.min(plain, axis=0), atol=1e-5)
    np.testing.assert_array_equal(which, jnp.argmin(plain, axis=0))
    d, normal = jax.jit(nearest.distance_and_normal)(scene, points, which)
    np.testing.assert_allclose(d, jnp.min(plain, axis=0), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(normal, axis=0), 1.0, atol=1e-5)
    gradient = jax.jit(jax.vmap(jax.grad(lambda p: jnp.min(scene.distance(p))), in_axes=1, out_axes=1))(points)
    np.testing.assert_allclose(normal, gradient, atol=1e-4)


def test_a_robot_clear_of_the_scene_does_not_touch_it_in_mujoco(robot):
    """The spheres cover the geoms: residual <= 0 implies no contact, whatever the posture."""
    ball = shapes.sphere(0.15, (0.45, 0.1, 0.4))
    scene = SceneCollision(shapes=ball, robot=robot)
    own = SelfCollision(robot=robot)
    spec = robot.model_spec()
    spec.worldbody.add_geom(name="ball", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.15, 0, 0], pos=[0.45, 0.1, 0.4])
    model = spec.compile()
    data = mujoco.MjData(model)
    outside, inside = jax.jit(scene.residual), jax.jit(own.residual)
    counts = np.zeros((2, 2), int)
    for seed in range(150):
        q = random_joints(robot, seed)
        data.qpos[:] = robot.qpos(q)
        mujoco.mj_forward(model, data)
        pairs = [{model.body(model.geom(g).bodyid[0]).id for g in pair} for pair in data.contact.geom]
        touches = any(0 in pair for pair in pairs)
        meets = any(0 not in pair and not pair <= robot.below_tool for pair in pairs)
        clear = [float(f(grasp(robot), {"joints": q}, None).max()) <= 1e-3 for f in (outside, inside)]
        assert not (clear[0] and touches) and not (clear[1] and meets)
        counts[0, int(touches)] += 1
        counts[1, int(clear[0])] += 1
    assert counts.min() > 5  # the test saw both


def test_the_object_is_an_obstacle_for_the_arm_only(robot):
    tool = robot.tool_pose(robot.home)
    at_hand, at_elbow = shapes.sphere(0.03, tool.position), shapes.sphere(0.03, (0.0, 0.0, 0.66))
    plan, aux = grasp(robot), {"joints": robot.home}
    free = SceneCollision(shapes=shapes.sphere(0.1, (2.0, 2.0, 2.0)), robot=robot)
    for rows in ("sphere", "body", "pair"):
        touched = [
            worst(dataclasses.replace(free, arm_shapes=held, rows=rows), plan, aux) for held in (at_hand, at_elbow)
        ]
        assert touched[0] < 0 < touched[1]


def test_rows_are_the_worst_of_each_other(robot):
    plan, aux = grasp(robot), {"joints": random_joints(robot, 3)}
    by = {
        rows: jax.jit(SceneCollision(shapes=SCENE, robot=robot, rows=rows).residual)(plan, aux, None)
        for rows in ("sphere", "body", "pair")
    }
    np.testing.assert_allclose(by["pair"].reshape(len(by["sphere"]), -1).max(1), by["sphere"], atol=1e-6)
    np.testing.assert_allclose(by["body"].max(), by["sphere"].max(), atol=1e-6)
    own = [worst(SelfCollision(robot=robot, rows=rows), plan, aux) for rows in ("sphere", "body")]
    np.testing.assert_allclose(*own, atol=1e-6)


def test_only_the_pose_relative_to_the_base_matters(robot):
    """Moving the robot and the scene together changes nothing."""
    R, p = jnp.asarray(_rotation(np.random.default_rng(5)), jnp.float32), jnp.array([0.3, -0.2, 0.6])
    plan, aux, scene = grasp(robot), {"joints": random_joints(robot, 1)}, SCENE
    residual = jax.jit(lambda constraint: constraint.residual(plan, aux, None))
    here = residual(SceneCollision(shapes=scene, robot=robot))
    there = residual(SceneCollision(shapes=scene.transform(p, R), robot=robot.at(p, R)))
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_a_scene_is_bound_to_the_robot_it_is_joined_with(robot):
    scene = SceneCollision(shapes=SCENE)
    plan, aux = grasp(robot), {"joints": robot.home}
    with pytest.raises(ValueError, match=r"'scene_collision' has no robot: join it with a robot's constraints"):
        scene.residual(plan, aux, None)
    for joined in (robot.constraints | scene, ConstraintSet.of(scene) | robot.constraints):
        assert joined["scene_collision"].robot is robot
    np.testing.assert_array_equal(
        (robot.constraints | scene)["scene_collision"].residual(plan, aux, None),
        scene.on(robot).residual(plan, aux, None),
    )


def test_what_is_printed_is_short(robot):
    assert repr(robot) == "Embodiment('panda-allegro', arm of 7 joints, hand of 16, tool 'palm')"
    assert repr(robot.constraints) == "ConstraintSet(reach: eq, joint_limits: ineq, self_collision: ineq)"


def test_set_algebra(robot):
    own = robot.constraints
    assert own.names == ("reach", "joint_limits", "self_collision")
    assert own.remove("reach").names == ("joint_limits", "self_collision") and "reach" in own
    wider = JointLimits(robot=robot, margin=0.2)
    assert own.replace("joint_limits", wider)["joint_limits"] is wider
    scene = SceneCollision(shapes=SCENE, robot=robot)
    assert ((own | scene) | JointLimits(robot=robot, name="more")).names == (
        own | (ConstraintSet.of(scene) | JointLimits(robot=robot, name="more"))
    ).names
    with pytest.raises(ValueError, match=r"both sets have a constraint named 'reach'"):
        own | Reach(robot=robot)
    with pytest.raises(
        KeyError, match=r"no constraint 'reech' in this set; it has: reach, joint_limits, self_collision"
    ):
        own["reech"]
    with pytest.raises(ValueError, match=r"no rows 'spheres' in 'scene_collision'; there are: sphere, body, pair"):
        dataclasses.replace(scene, rows="spheres").residual(grasp(robot), {"joints": robot.home}, None)


def test_new_numbers_do_not_retrace(robot):
    count = []

    @jax.jit
    def worst(constraints, plan, joints):
        count.append(1)
        return constraints.report(plan, {"joints": joints}, None).violation

    for seed in range(3):
        moved = robot.at(jnp.array([0.1 * seed, 0.0, 0.0]))
        worst(moved.constraints | SceneCollision(shapes=clutter(seed=seed)), grasp(robot), random_joints(robot, seed))
    assert len(count) == 1


def test_a_robot_without_an_arm_has_no_constraints_of_its_own():
    assert embodiments.load("allegro").constraints.names == ()
    assert Shapes.none().radius.shape == (0,)
