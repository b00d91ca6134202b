"""Tabletop scenes: what stands where, for samplers and for physics alike; random clutter and base poses keep their promises."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt import scenes
from diffopt.geometry import Pose
from diffopt.robots import embodiments
from diffopt.scenes import Part
from diffopt.scenes.solids import part_distance

OBJECTS = scenes.objects.held_out(4) + scenes.objects.benchmark()[:4]


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-allegro")


@pytest.fixture(scope="module")
def turned():
    """A scene with one obstacle of each kind, turned, and a mug."""
    c, s = np.cos(0.5), np.sin(0.5)
    R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    parts = [
        Part(kind="box", size=(0.03, 0.05, 0.1), position=(0.2, 0.0, 0.2), rotation=R),
        Part(kind="cylinder", size=(0.04, 0.1), position=(-0.2, 0.1, 0.2), rotation=R),
        Part(kind="capsule", size=(0.03, 0.1), position=(0.0, 0.3, 0.2), rotation=R),
        Part(kind="sphere", size=(0.06,), position=(0.0, -0.3, 0.1)),
    ]
    return scenes.tabletop(scenes.objects.benchmark()[-1], obstacles=parts)


def test_samplers_and_physics_see_the_same_scene(turned):
    """Distances of small balls to the shapes and to MuJoCo's geoms."""
    spec = mujoco.MjSpec()
    turned.add_to(spec)
    rng = np.random.default_rng(0)
    points = rng.uniform((-0.5, -0.5, 0.02), (0.5, 0.5, 0.5), (40, 3))
    for i, point in enumerate(points):
        spec.worldbody.add_geom(name=f"ball{i}", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.01, 0, 0], pos=point)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    names = ["table", "obstacle_0", "obstacle_1", "obstacle_2", "obstacle_3"]
    ours = np.asarray(jax.vmap(turned.shapes.distance)(jnp.asarray(points, jnp.float32)))
    for i in range(len(points)):
        for j, name in enumerate(names):
            ball = model.geom(f"ball{i}").id
            theirs = mujoco.mj_geomDistance(model, data, model.geom(name).id, ball, 10.0, None) + 0.01
            if theirs > 0.012:
                np.testing.assert_allclose(ours[i, j], theirs, atol=2e-5)


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda o: o.name)
def test_an_object_stands_on_the_table_within_its_bound(thing):
    for scene in (scenes.tabletop(thing), scenes.random_tabletop(0, thing)):
        points = scene.target.pose.apply(scene.target.points)
        assert points.shape == (1024, 3)
        stand = 2 * scene.obstacles[0].size[2] if scene.obstacles else 0.0
        assert float(points[:, 2].min()) == pytest.approx(stand, abs=6e-3)  # sampled points need not hit the lowest one
        assert float(jax.vmap(scene.bound.distance)(points).max()) < 2e-3


@pytest.mark.parametrize("name", scenes.PRESETS)
def test_random_clutter_is_clear_of_the_object_and_of_itself(name):
    preset = scenes.PRESETS[name]
    for seed, thing in enumerate(OBJECTS):
        scene = scenes.random_tabletop(seed, thing, name)
        stands = int(max(preset.stand) > 0)
        assert len(scene.obstacles) == preset.obstacles + stands
        assert all(preset.stand[0] <= 2 * part.size[2] <= preset.stand[1] for part in scene.obstacles[:stands])
        surface = np.asarray(scene.target.pose.apply(scene.target.points), float)
        for i, part in enumerate(scene.obstacles[stands:], start=stands):
            assert part_distance(part, surface).min() > preset.gap - 0.01
            assert part.position[2] == pytest.approx(part.size[-1])  # stands on the table
            lower, upper = preset.height
            assert lower <= 2 * part.size[-1] <= upper
            for other in scene.obstacles[:i]:
                points = other.sample(300, np.random.default_rng(0))
                assert part_distance(part, points).min() > 0


def test_objects_stay_on_their_stands():
    """Half a second of physics; the stand is the thinnest that should hold."""
    things = scenes.objects.held_out(12, seed=9)
    moved = []
    for seed, thing in enumerate(things):
        scene = scenes.random_tabletop(seed, thing, "easy")
        spec = mujoco.MjSpec()
        spec.option.timestep = 0.004
        scene.add_to(spec)
        thing.add_to(spec)
        model = spec.compile()
        data = mujoco.MjData(model)
        data.qpos[:3] = scene.placement.position
        mujoco.mju_mat2Quat(data.qpos[3:7], np.asarray(scene.placement.rotation, float).ravel())
        for _ in range(125):
            mujoco.mj_step(model, data)
        moved.append(np.linalg.norm(data.qpos[:3] - np.asarray(scene.placement.position)))
    assert np.quantile(moved, 0.9) < 0.005


def test_a_seed_names_a_scene():
    thing = OBJECTS[0]
    again = [scenes.random_tabletop(7, thing, "hard") for _ in range(2)] + [
        scenes.random_tabletop(jax.random.key(7), thing, "hard")
    ]
    for scene in again[1:]:
        assert [p.position for p in scene.obstacles] == [p.position for p in again[0].obstacles]
        np.testing.assert_array_equal(scene.placement.position, again[0].placement.position)
    assert scenes.random_tabletop(8, thing, "hard").obstacles[0].position != again[0].obstacles[0].position


@pytest.mark.parametrize("name", scenes.PRESETS)
def test_random_bases_stand_around_the_object_and_face_it(name):
    preset = scenes.PRESETS[name]
    scene = scenes.random_tabletop(0, OBJECTS[0], name)
    around = []
    for seed in range(40):
        base = scenes.random_base(seed, scene, name)
        to = np.asarray(scene.placement.position - base.position)[:2]
        distance = np.linalg.norm(to)
        assert preset.base[0] - 1e-5 <= distance <= preset.base[1] + 1e-5
        assert abs(float(base.position[2])) <= preset.level + 1e-6
        assert np.dot(np.asarray(base.rotation)[:2, 0], to / distance) >= np.cos(preset.facing) - 1e-5
        np.testing.assert_allclose(base.rotation @ base.rotation.T, np.eye(3), atol=1e-6)
        foot = np.array([[*np.asarray(base.position)[:2], z] for z in (0.1, 0.2, 0.3)])
        assert all(part_distance(part, foot).min() > 0.1 for part in scene.obstacles)
        around.append(np.sign(to))
    assert len({tuple(a) for a in around}) == 4  # all quadrants


def test_scenes_stack_and_do_not_retrace(robot):
    """Scenes with as many obstacles, whatever the objects, have constraints of one structure."""
    made = [scenes.random_tabletop(seed, thing) for seed, thing in enumerate(OBJECTS)]
    sets = [robot.at(scenes.random_base(0, scene)).constraints | scene.constraints for scene in made]
    assert len({jax.tree.structure(s) for s in sets}) == 1
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *sets)
    assert stacked["scene_collision"].shapes.radius.shape == (len(OBJECTS), 6)  # table, stand, four obstacles
    targets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[scene.target for scene in made])
    assert targets.points.shape == (len(OBJECTS), 1024, 3)


def test_the_robot_stands_in_a_random_scene_in_physics(robot):
    """At its home posture nothing touches, in the constraints and in MuJoCo."""
    for seed, thing in enumerate(OBJECTS[:3]):
        scene = scenes.random_tabletop(seed, thing, "hard")
        there = robot.at(scenes.random_base(seed, scene, "hard"))
        model = there.model_spec(scene).compile()
        data = mujoco.MjData(model)
        data.qpos[:] = there.qpos(there.home)
        mujoco.mj_forward(model, data)
        named = [{model.geom(g).name for g in pair} for pair in data.contact.geom]
        assert not any("table" in pair for pair in named)


def test_other_objects_are_obstacles():
    mug, can = scenes.objects.benchmark()[-1], scenes.objects.benchmark()[2]
    beside = Pose(position=jnp.array([0.3, 0.0, 0.0505]), rotation=jnp.eye(3))
    scene = scenes.tabletop(objects=[mug, (can, beside)])
    assert scene.object is mug and len(scene.obstacles) == len(can.parts)
    np.testing.assert_allclose(scene.obstacles[0].position, [0.3, 0.0, 0.0505], atol=1e-6)


def test_errors_name_what_there_is():
    with pytest.raises(KeyError, match=r"no difficulty 'harder'; there are: easy, medium, hard"):
        scenes.random_tabletop(0, OBJECTS[0], "harder")
    with pytest.raises(ValueError, match=r"an obstacle is a superquadric; it may be: box, cylinder, capsule, sphere"):
        scenes.tabletop(obstacles=[Part(kind="superquadric", size=(0.1, 0.1, 0.1))])
    with pytest.raises(ValueError, match=r"no object to grasp: give tabletop\(...\) a target"):
        scenes.tabletop().target  # noqa: B018
    assert scenes.tabletop().constraints.names == ("scene_collision",)
