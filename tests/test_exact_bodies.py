"""Robots whose collision bodies are the primitives of their files: distances and verdicts are C MuJoCo's, derivatives are exact."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import diffopt
from diffopt.constraints import SceneCollision, SelfCollision
from diffopt.constraints.wrist import at_home
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose, shapes
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.scenes import Part, objects, tabletop

EXACT = 1e-4  # MuJoCo's own distances iterate [m]
OBSTACLES = {  # type, size and place [m]
    "sphere": ((0.1,), (0.5, 0.3, 0.4)),
    "capsule": ((0.05, 0.1), (-0.4, 0.4, 0.5)),
    "cylinder": ((0.08, 0.15), (0.1, -0.6, 0.3)),
    "box": ((0.1, 0.2, 0.05), (-0.5, -0.3, 0.7)),
}
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])


def random_arm(seed):
    """Five links of random geoms of all types, and a palm with a finger."""
    rng = np.random.default_rng(seed)

    def geom():
        kind = rng.choice(["box", "capsule", "cylinder", "ellipsoid", "sphere"])
        size, place, turn = rng.uniform(0.02, 0.06, 3), rng.uniform(-0.03, 0.03, 3), rng.uniform(-180, 180, 3)
        sizes = " ".join(f"{v:.4f}" for v in size)
        return (
            f'<geom type="{kind}" size="{sizes}" pos="{" ".join(map(str, place))}" euler="{" ".join(map(str, turn))}"/>'
        )

    inner = f'<body name="palm" pos="0 0 0.15">{geom()}<body name="finger" pos="0 0 0.1">' + (
        f'<joint name="f" axis="1 0 0" range="-0.5 0.5"/>{geom()}</body></body>'
    )
    for i in reversed(range(5)):
        axis = " ".join(f"{v:.3f}" for v in rng.normal(size=3))
        inner = (
            f'<body name="link{i}" pos="0 0 0.2"><joint name="j{i}" axis="{axis}" range="-2 2"/>{geom()}{geom()}'
            f"{inner}</body>"
        )
    return Embodiment.from_mjcf(
        f'<mujoco model="random{seed}"><compiler angle="degree"/><worldbody>{inner}</worldbody></mujoco>',
        tool="palm",
        bodies="primitives",
    )


def with_obstacles(robot):
    """The obstacles as shapes, and MuJoCo's model and data of the robot among them."""
    spec, scene = robot.model_spec(), shapes.Shapes.none()
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, TURN.ravel())
    for kind, (size, place) in OBSTACLES.items():
        sizes = (jnp.array(size),) if kind == "box" else size
        scene = scene | getattr(shapes, kind)(*sizes, place, *([] if kind == "sphere" else [TURN]))
        spec.worldbody.add_geom(
            name=kind,
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}"),
            size=[*size, 0, 0][:3],
            pos=place,
            quat=quaternion,
        )
    model = spec.compile()
    return scene, model, mujoco.MjData(model)


ROBOTS = {
    "panda-gripper": lambda: diffopt.embodiments.load("panda-gripper", bodies="primitives"),
    "xarm7-leap": lambda: diffopt.embodiments.load("xarm7-leap", bodies="primitives"),
    "ur5e-shadow": lambda: diffopt.embodiments.load("ur5e-shadow", bodies="primitives"),
    "random 0": lambda: random_arm(0),
    "random 1": lambda: random_arm(1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROBOTS)
def test_distances_are_mujocos(name):
    """Of every body to obstacles and to the rest of the robot, as MuJoCo has them between the geoms; and their derivatives."""
    robot = ROBOTS[name]()
    scene, model, data = with_obstacles(robot)
    plan = at_home(robot, jax.random.key(0))[0]
    both = [SceneCollision(shapes=scene, robot=robot, margin=0.0)]
    both += [SelfCollision(robot=robot, margin=0.0)] if robot.contacts.pairs else []

    @jax.jit
    def look(postures):
        def one(q):
            out = []
            for k in both:
                residual = lambda q, k=k: k.residual(plan, {"joints": q}, None)  # noqa: E731
                out.append((residual(q), *k.jacobian(plan, {"joints": q}, None), jax.jacfwd(residual)(q)))
            return out

        return jax.vmap(one)(postures)

    postures = np.concatenate([np.asarray(robot.seeds[:12]), np.asarray(random_postures(robot, 12))])
    found = jax.tree.map(np.asarray, look(jnp.asarray(postures)))
    for rows, stated, jacobian, forward in found:
        np.testing.assert_allclose(stated, rows, atol=1e-6)
        np.testing.assert_allclose(jacobian, forward, atol=2e-5)
    geoms = [g for g in range(model.ngeom) if model.geom_contype[g] | model.geom_conaffinity[g]]
    of_body = {b: [g for g in geoms if model.geom_bodyid[g] == b] for b in range(1, model.nbody)}
    others = [model.geom(kind).id for kind in OBSTACLES]
    index = robot.kinematics.body
    apart = 0
    for k, q in enumerate(postures):
        data.qpos[:] = robot.qpos(jnp.asarray(q), plan.joints)
        mujoco.mj_kinematics(model, data)

        def least(one, two):
            return min(mujoco.mj_geomDistance(model, data, a, b, 10.0, None) for a in one for b in two)

        for row, body in enumerate(both[0].labels()):
            expected = least(of_body[index(body)], others)
            if expected > 1e-4:
                np.testing.assert_allclose(-found[0][0][k, row], expected, atol=EXACT)
            elif expected < -1e-4:
                assert found[0][0][k, row] > 0
            apart += expected > 1e-4
        for row, body in enumerate(both[1].labels() if len(both) > 1 else ()):
            inner = [g for a, b in robot.contacts.pairs if b == index(body) for g in of_body[a]]
            expected = least(of_body[index(body)], inner)
            if expected > 1e-4:
                np.testing.assert_allclose(-found[1][0][k, row], expected, atol=EXACT)
            elif expected < -1e-4:
                assert found[1][0][k, row] > 0
            apart += expected > 1e-4
    assert apart > 50


def random_postures(robot, n):
    low, high = jnp.maximum(robot.lower, -jnp.pi), jnp.minimum(robot.upper, jnp.pi)
    return low + (high - low) * jax.random.uniform(jax.random.key(1), (n, len(robot.arm)))


@pytest.mark.slow
def test_other_rows_are_the_same_distances():
    """The least over the geoms of a body is that of the body; pairs likewise; where the hand may touch, only the arm counts."""
    robot = diffopt.embodiments.load("panda-gripper", bodies="primitives")
    scene, *_ = with_obstacles(robot)
    plan = at_home(robot, jax.random.key(0))[0]
    more = shapes.box(jnp.array([0.05, 0.05, 0.05]), robot.tool_pose(robot.home).position)
    constraints = [
        SceneCollision(shapes=scene, arm_shapes=more, robot=robot, rows=rows) for rows in ("body", "geom", "pair")
    ]
    body, geom, pair = jax.jit(lambda q: [k.residual(plan, {"joints": q}, None) for k in constraints])(robot.home)
    names = [np.array(k.labels()) for k in constraints]
    np.testing.assert_allclose(np.max(np.reshape(pair, (len(geom), -1)), axis=1), geom, atol=1e-6)
    for row, name in zip(body, names[0], strict=True):
        np.testing.assert_allclose(row, np.max(geom[names[1] == name]), atol=1e-6)
    assert float(body[names[0] == "gripper"][0]) < 0 < float(body.max())
    with pytest.raises(ValueError, match="there are: geom, body, pair"):
        replace(constraints[0], rows="sphere").labels()


@pytest.fixture(scope="module")
def gap():
    """A Panda in its home posture, and a scene with a box 2 mm above its elbow; and one with the box in it."""
    robot = diffopt.embodiments.load("panda-gripper").at(np.array([-0.6, 0.0, 0.0], np.float32))
    exact = diffopt.embodiments.load("panda-gripper", bodies="primitives").at(np.array([-0.6, 0.0, 0.0], np.float32))
    tool = robot.tool_pose(robot.home)
    plan = Grasp(position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=0 * robot.hand_home)
    elbow = np.asarray(robot.base.apply(robot.frames(robot.home).position[robot.kinematics.body("link4")]))
    size = (0.05, 0.05, 0.05)
    far = Pose(position=np.array([0.6, 0.0, 0.03], np.float32), rotation=np.eye(3, dtype=np.float32))

    def at(height):
        base = tabletop(objects.box((0.03, 0.03, 0.03), 0.1), placement=far)
        spot = elbow + np.array([0.0, 0.0, height])
        return replace(base, obstacles=(Part(kind="box", size=size, position=tuple(map(float, spot))),))

    look = jax.jit(lambda scene: SceneCollision(shapes=scene, robot=exact).residual(plan, {"joints": exact.home}, None))

    def clearance(height):
        part = at(height).obstacles[0]
        return 1e-3 - float(np.max(look(shapes.box(jnp.array(size), jnp.array(part.position)))))

    low, high = 0.0, 0.3
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if clearance(middle) < 2e-3 else (low, middle)
    return robot, exact, plan, at(high), at(high - 6e-3), clearance(high)


def test_a_gap_of_two_millimetres_is_let_pass_by_exact_bodies_only(gap):
    """Covers refuse it, exact bodies and the judge do not; both refuse what overlaps."""
    robot, exact, plan, scene, blocked, clearance = gap
    assert 1.9e-3 < clearance < 2.2e-3
    joints = {"joints": robot.home}

    def feasible(robot, scene):
        constraints = robot.constraints | scene.constraints
        return bool(jax.jit(lambda k: k.report(plan, joints, None).satisfied)(constraints))

    assert feasible(exact, scene) and not feasible(robot, scene)
    loose = (exact.constraints | scene.constraints).covered()  # by which guesses are ranked: that of spheres
    assert not bool(jax.jit(lambda k: k.report(plan, joints, None).satisfied)(loose))
    assert not feasible(exact, blocked)
    as_arrays = jax.tree.map(np.asarray, plan)
    assert Judge.of(exact, scene)(as_arrays, np.asarray(robot.home)).scene == 0.0
    assert not Judge.of(exact, blocked)(as_arrays, np.asarray(robot.home)).feasible


@pytest.mark.slow
def test_inverse_kinematics_with_exact_bodies(gap):
    """Beside the box: what is called solved is clear by C MuJoCo, and more of it is found than with covers."""
    robot, exact, plan, scene, _, _ = gap
    judge = Judge.of(exact, scene)
    poses = jax.vmap(exact.tool_pose)(
        jnp.tile(exact.home, (32, 1)) + 0.02 * jax.random.normal(jax.random.key(0), (32, 7))
    )
    found, covered = (diffopt.ik(r, poses, r.constraints | scene.constraints, attempts=4) for r in (exact, robot))
    for i in np.flatnonzero(found.solved):
        grasp = replace(plan, position=poses.position[i], rotation=poses.rotation[i])
        assert judge(jax.tree.map(np.asarray, grasp), np.asarray(found.joints[i])).feasible
    assert np.asarray(found.solved).sum() >= np.asarray(covered.solved).sum() > 0


def test_postures_that_are_no_numbers_are_no_clearances():
    robot = diffopt.embodiments.load("panda-gripper", bodies="primitives")
    plan = at_home(robot, jax.random.key(0))[0]
    residual = SelfCollision(robot=robot).residual(plan, {"joints": robot.home.at[1].set(jnp.nan)}, None)
    assert np.isnan(np.asarray(residual)).any() and not np.any(np.asarray(residual) == -np.inf)


def test_robots_say_what_is_exact(tmp_path):
    exact, covered = (diffopt.embodiments.load("panda-gripper", bodies=b) for b in ("primitives", "spheres"))
    assert covered.primitives is None and "collision spheres: 54 (" in covered.describe()
    assert "collision bodies: exact: " in exact.describe() and "collision spheres: " not in exact.describe()
    with pytest.raises(ValueError, match="there are: spheres, primitives"):
        diffopt.embodiments.load("panda", bodies="meshes")
    mesh = '<mesh name="m" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/>'
    robot = Embodiment.from_mjcf(
        f'<mujoco model="mixed"><asset>{mesh}</asset><worldbody><body name="a"><joint name="j" axis="0 1 0" range="-1 1"/>'
        '<geom type="mesh" mesh="m"/><geom type="box" size=".1 .1 .1"/></body></worldbody></mujoco>',
        tool="a",
        bodies="primitives",
    )
    text = robot.describe()
    assert "exact: 1 (a 1)" in text and "spheres that cover meshes" in text
    assert max(robot.primitives.overshoot) > 0 and robot.primitives.overshoot.count(0.0) == 1
