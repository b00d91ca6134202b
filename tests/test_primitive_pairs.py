"""Distances between all pairs of primitive types, against C MuJoCo: what the robot's spheres say is never more than the distance of the
geoms, and less by no more than how far the spheres are said to reach outside."""

from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.constraints import SceneCollision
from diffopt.constraints.collision import looked_at
from diffopt.constraints.wrist import at_home
from diffopt.geometry import shapes
from diffopt.robots import embodiments
from diffopt.robots.bodies import Spheres
from diffopt.robots.embodiments import parts

SIZES = {
    "sphere": "0.06",
    "capsule": "0.03 0.08",
    "cylinder": "0.05 0.07",
    "box": "0.04 0.05 0.09",
    "ellipsoid": "0.03 0.05 0.08",
}
OBSTACLES = {"sphere": shapes.sphere, "capsule": shapes.capsule, "cylinder": shapes.cylinder, "box": shapes.box}
POSES = 12
EXACT = 2e-4  # of MuJoCo's distances of cylinders and ellipsoids, which iterate [m]


def geom(kind: str, name: str) -> str:
    return f'<body name="{name}"><freejoint/><geom name="{name}" type="{kind}" size="{SIZES[kind]}" mass="1"/></body>'


@pytest.fixture(scope="module")
def setting():
    """One of each type twice over, floating, and their covers."""
    bodies = "".join(geom(kind, f"{kind}{i}") for kind in SIZES for i in (0, 1))
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    cover = Spheres.from_model(model, tolerance=0.005, most=200)
    return model, mujoco.MjData(model), cover


def placed(model, data, seed):
    """All bodies at random, near each other."""
    rng = np.random.default_rng(seed)
    for b in range(model.nbody - 1):
        q = rng.normal(size=4)
        data.qpos[7 * b : 7 * b + 7] = [*rng.uniform(-0.2, 0.2, 3), *(q / np.linalg.norm(q))]
    mujoco.mj_kinematics(model, data)


def spheres_of(cover, data, model, name):
    """Centres (S, 3) and radii (S,) in the world, and the largest overshoot [m]."""
    body = model.body(name).id
    own = [i for i, b in enumerate(cover.body) if b == body]
    local = np.array(cover.center).reshape(-1, 3)[own]
    centers = local @ data.body(name).xmat.reshape(3, 3).T + data.body(name).xpos
    return centers, np.array(cover.radius)[own], max(np.array(cover.overshoot)[own])


@pytest.mark.parametrize("kind", OBSTACLES)
def test_every_type_against_every_obstacle(setting, kind):
    model, data, cover = setting
    make, size = OBSTACLES[kind], [float(v) for v in SIZES[kind].split()]

    @jax.jit
    def distances(position, rotation, points):
        made = (
            shapes.box(jnp.array(size), position, rotation)
            if kind == "box"
            else make(*size, position, *([] if kind == "sphere" else [rotation]))
        )
        return jax.vmap(lambda p: made.distance(p)[0])(points)

    seen = dict.fromkeys(SIZES, 0)
    for seed in range(POSES):
        placed(model, data, seed)
        other = data.body(f"{kind}1")
        for mine in SIZES:
            expected = mujoco.mj_geomDistance(
                model, data, model.geom(f"{mine}0").id, model.geom(f"{kind}1").id, 10.0, None
            )
            if expected <= 0.002:
                continue
            centers, radii, overshoot = spheres_of(cover, data, model, f"{mine}0")
            padded = np.concatenate([centers, np.tile(centers[:1], (250 - len(centers), 1))])
            rotation = other.xmat.reshape(3, 3)
            found = distances(*(jnp.asarray(v, jnp.float32) for v in (other.xpos, rotation, padded)))
            ours = np.min(np.asarray(found)[: len(radii)] - radii)
            assert ours <= expected + EXACT, (mine, kind, seed)
            assert ours >= expected - overshoot - EXACT, (mine, kind, seed)
            seen[mine] += 1
    assert min(seen.values()) >= 3


def test_every_pair_of_types_against_itself(setting):
    """Spheres against spheres, as in self-collision: less by both overshoots at most."""
    model, data, cover = setting
    seen = dict.fromkeys(combinations_with_replacement(SIZES, 2), 0)
    for seed in range(POSES):
        placed(model, data, 100 + seed)
        for one, two in seen:
            expected = mujoco.mj_geomDistance(
                model, data, model.geom(f"{one}0").id, model.geom(f"{two}1").id, 10.0, None
            )
            if expected <= 0.002:
                continue
            a, r, more = spheres_of(cover, data, model, f"{one}0")
            b, s, other = spheres_of(cover, data, model, f"{two}1")
            ours = np.min(np.linalg.norm(a[:, None] - b[None], axis=-1) - r[:, None] - s[None])
            assert expected - more - other - EXACT <= ours <= expected + EXACT, (one, two, seed)
            seen[one, two] += 1
    assert min(seen.values()) >= 2


AMONG = {  # obstacles in the reach of an arm: sizes and places [m]
    "sphere": ((0.1,), (0.5, 0.3, 0.4)),
    "capsule": ((0.05, 0.1), (-0.4, 0.4, 0.5)),
    "cylinder": ((0.08, 0.15), (0.1, -0.6, 0.3)),
    "box": ((0.1, 0.2, 0.05), (-0.5, -0.3, 0.7)),
}
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])
WITH_ARM = [n for n in embodiments.names() if n.split("-")[0] in parts.ARMS]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "ur5e" else pytest.mark.slow) for n in WITH_ARM])
def test_distances_of_shipped_robots_are_mujocos(name):
    """Of every moving sphere to obstacles of all types, to single precision; and of every body, by its geoms: never more, and less by no
    more than its spheres are said to reach outside."""
    robot = embodiments.load(name)
    obstacles = shapes.Shapes.none()
    spec = robot.model_spec()
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, TURN.ravel())
    for kind, (size, place) in AMONG.items():
        made = (
            shapes.box(jnp.array(size), place, TURN)
            if kind == "box"
            else OBSTACLES[kind](*size, place, *([] if kind == "sphere" else [TURN]))
        )
        obstacles = obstacles | made
        spec.worldbody.add_geom(
            name=kind,
            type=getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}"),
            size=[*size, 0, 0][:3],
            pos=place,
            quat=quaternion,
        )
    constraint = SceneCollision(shapes=obstacles, robot=robot, rows="pair", margin=0.0)
    _, cover, _ = looked_at(constraint, ("pair",), len(AMONG), 0)
    bodies = spec.bodies
    for i, (b, center, radius) in enumerate(
        zip(cover.body, np.array(cover.center).reshape(-1, 3), cover.radius, strict=True)
    ):
        bodies[b].add_geom(
            name=f"cover{i}",
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[radius, 0, 0],
            pos=center,
            mass=0,
            contype=0,
            conaffinity=0,
        )
    model = spec.compile()
    data = mujoco.MjData(model)
    plan = at_home(robot, jax.random.key(0))[0]
    ours = jax.jit(lambda q: constraint.residual(plan, {"joints": q}, None))
    own = [g for g in range(model.ngeom) if model.geom_contype[g] | model.geom_conaffinity[g] and model.geom_bodyid[g]]
    rng = np.random.default_rng(0)
    lower, upper = np.maximum(robot.lower, -np.pi), np.minimum(robot.upper, np.pi)
    for _ in range(3):
        q = rng.uniform(lower, upper)
        data.qpos[:] = robot.qpos(jnp.asarray(q, jnp.float32))
        mujoco.mj_kinematics(model, data)
        found = -np.asarray(ours(jnp.asarray(q, jnp.float32))).reshape(len(cover), len(AMONG))
        for o, kind in enumerate(AMONG):
            other = model.geom(kind).id

            def to(geom, other=other):
                return mujoco.mj_geomDistance(model, data, geom, other, 10.0, None)

            for i in range(len(cover)):
                expected = to(model.geom(f"cover{i}").id)
                if expected > 0.002:
                    np.testing.assert_allclose(found[i, o], expected, atol=2e-5)
            for b in set(cover.body):
                mine = [i for i, body in enumerate(cover.body) if body == b]
                expected = min(to(g) for g in own if model.geom_bodyid[g] == b)
                if expected > 0.002:
                    reach = max(cover.overshoot[i] for i in mine)
                    assert expected - reach - EXACT <= found[mine, o].min() <= expected + EXACT, (b, kind)
