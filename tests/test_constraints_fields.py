"""Fields of meshes, terrains and point clouds: exact at the nodes, never above the distance, and close to it as stated."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from diffopt.constraints import FieldCollision
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose, kept, shapes
from diffopt.geometry.field import Field, grid
from diffopt.geometry.obstacles import clearance
from diffopt.geometry.surroundings import cloud_field, depth_points, heightfield, mesh_field, terrain_mesh
from diffopt.geometry.triangles import closed, signed_distances
from diffopt.plans import Grasp
from diffopt.robots import embodiments
from diffopt.scenes import tabletop
from diffopt.scenes.surroundings import Surrounding

DIAGONAL = np.sqrt(3)
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path))
    return tmp_path


def bumpy():
    """A closed mesh that is not convex, turned."""
    ball = trimesh.creation.icosphere(2)
    v = np.asarray(ball.vertices)
    return 0.1 * (1 + 0.35 * np.sin(4 * v[:, :1]) * np.cos(3 * v[:, 1:2])) * v @ TURN.T, np.asarray(ball.faces)


def enclosed(point, triangles):
    """The winding number of a closed surface about a point: the sum of the solid angles of its faces (van Oosterom and Strackee 1983)."""
    a, b, c = np.moveaxis(triangles - point, 1, 0)
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))

    def dot(x, y):
        return np.einsum("fi,fi->f", x, y)

    below = la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb
    return np.sum(2 * np.arctan2(dot(a, np.cross(b, c)), below)) / (4 * np.pi)


def test_distances_to_a_mesh_are_those_of_trimesh_and_signs_those_of_the_winding_number():
    triangles = closed(*bumpy())
    _, axes = grid([-0.16] * 3, [0.16] * 3, 0.015)
    d = signed_distances(triangles, axes, 0.015)
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    for i in rng.integers(0, len(nodes), 150):
        nearest = trimesh.triangles.closest_point(triangles, np.repeat(nodes[i][None], len(triangles), 0))
        expected = np.linalg.norm(nearest - nodes[i], axis=1).min()
        np.testing.assert_allclose(abs(d.reshape(-1)[i]), expected, atol=1e-12)
        assert (d.reshape(-1)[i] < 0) == (enclosed(nodes[i], triangles) > 0.5)


def test_a_field_is_never_above_the_distance_and_below_it_by_no_more_than_stated():
    """Of a box, whose distance has a closed form: within, outside, and beyond the grid."""
    box = trimesh.creation.box((0.2, 0.12, 0.3))
    h = 0.01
    field = mesh_field((box.vertices, box.faces), h, pad=0.1)
    points = np.random.default_rng(1).uniform(-0.3, 0.3, (3, 20000))
    q = np.abs(points) - np.array([[0.1], [0.06], [0.15]])
    true = np.linalg.norm(np.maximum(q, 0), axis=0) + np.minimum(q.max(axis=0), 0)
    found = np.asarray(jax.jit(Field.distance)(field, jnp.asarray(points, jnp.float32)), float)
    below = true - found
    top = np.asarray(field.origin) + h * (np.array(field.values.shape) - 1)
    within = np.all((points >= np.asarray(field.origin)[:, None]) & (points <= top[:, None]), axis=0)
    assert within.mean() > 0.1 and (true < 0).mean() > 0.02
    assert below.min() > -1e-6 and below[within].max() <= DIAGONAL * h == pytest.approx(float(field.most_below))
    away = within & (true > 6 * h)  # the box is convex: there a look-up is lower by what was subtracted, and no more
    assert below[away].max() < 3 * h**2 / (8 * (6 * h - 1.5 * DIAGONAL * h)) + 1e-6 < 0.12 * h
    assert found[~within & (true > 0)].min() > 0


def test_a_cloud_is_as_far_as_its_nearest_ball():
    points, radius, h = np.random.default_rng(2).normal(size=(300, 3)) * 0.1, 0.015, 0.02
    field = cloud_field(points, radius, h)
    asked = np.random.default_rng(3).uniform(-0.4, 0.4, (3, 5000))
    true = cKDTree(points).query(asked.T)[0] - radius
    below = true - np.asarray(jax.jit(Field.distance)(field, jnp.asarray(asked, jnp.float32)))
    assert below.min() > -1e-6
    low = np.asarray(field.origin)
    high = low + h * (np.array(field.values.shape) - 1)
    within = np.all((low <= asked.T) & (high >= asked.T), axis=1)
    assert below[within].max() <= DIAGONAL * h


def test_gradients_of_a_field_are_those_of_what_is_looked_up_wherever_it_stands():
    field = mesh_field(bumpy(), 0.02).at(
        Pose(position=jnp.array([0.3, -0.1, 0.2]), rotation=jnp.asarray(TURN, jnp.float32))
    )
    points = jax.random.uniform(jax.random.key(0), (3, 400), minval=-0.3, maxval=0.6)
    d, gradient = jax.jit(Field.distance_and_gradient)(field, points)
    by_jax = jax.jit(jax.grad(lambda p: jnp.sum(field.distance(p))))(points)
    np.testing.assert_allclose(gradient, by_jax, atol=1e-4)
    assert np.isfinite(by_jax).all() and np.linalg.norm(gradient, axis=0).max() < 1.75
    local = TURN.T @ (np.asarray(points) - np.array([[0.3], [-0.1], [0.2]]))
    np.testing.assert_allclose(d, mesh_field(bumpy(), 0.02).distance(jnp.asarray(local, jnp.float32)), atol=1e-5)


def test_a_slope_is_a_plane_above_its_middle():
    slope, h = 0.3, 0.02
    x = np.linspace(-0.5, 0.5, 11)
    field = heightfield(np.repeat(slope * x[:, None], 9, 1), (0.5, 0.4), h)
    points = np.random.default_rng(4).uniform((-0.15, -0.15, -0.05), (0.15, 0.15, 0.15), (500, 3)).T
    true = (points[2] - slope * points[0]) / np.hypot(1, slope)
    below = true - np.asarray(jax.jit(Field.distance)(field, jnp.asarray(points, jnp.float32)))
    assert below.min() > -1e-6 and below.max() < 0.87 * h + 1e-5
    with pytest.raises(ValueError, match="at least 2 x 2 finite samples"):
        terrain_mesh(np.zeros((1, 5)), (1, 1), 0.1)


def test_a_depth_image_shows_the_ball_that_it_was_made_of():
    """By the intersection of each pixel's ray with a ball."""
    K = np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]])
    camera = Pose(position=np.array([0.2, 0.1, 0.5]), rotation=TURN)
    centre, radius = np.array([0.05, -0.02, 0.6]), 0.15  # in the camera's frame
    v, u = np.mgrid[:48, :64]
    ray = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(u.shape)], -1)
    a, b, c = (ray**2).sum(-1), ray @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.nan)
    points = depth_points(depth, K, camera)
    assert len(points) == np.isfinite(depth).sum() > 300
    middle = TURN @ centre + camera.position
    np.testing.assert_allclose(np.linalg.norm(points - middle, axis=1), radius, atol=1e-9)
    assert len(depth_points(depth, K, camera, farthest=0.5)) < len(points)
    seen = cloud_field(points, 0.01, 0.02, lower=middle - 0.3, upper=middle + 0.3)
    empty = cloud_field(np.zeros((0, 3)), 0.01, 0.02, lower=middle - 0.3, upper=middle + 0.3)
    assert jax.tree.map(jnp.shape, seen) == jax.tree.map(jnp.shape, empty)  # so that a new image does not retrace
    front = middle - (radius + 0.01) * TURN @ (centre / np.linalg.norm(centre))
    assert float(seen.distance(jnp.asarray(front, jnp.float32)[:, None])[0]) < 0.02
    assert float(empty.distance(jnp.asarray(front, jnp.float32)[:, None])[0]) > 1


def test_a_field_is_kept_by_content_and_found_again(folder, monkeypatch):
    first = mesh_field(bumpy(), 0.03)
    (file,) = folder.rglob("*.npz")
    assert kept.read(file)["distance"].shape == first.values.shape
    with monkeypatch.context() as patch:
        patch.setattr("diffopt.geometry.surroundings.signed_distances", lambda *_: pytest.fail("computed again"))
        np.testing.assert_array_equal(mesh_field(bumpy(), 0.03).values, first.values)
    file.write_bytes(b"broken")
    np.testing.assert_array_equal(mesh_field(bumpy(), 0.03).values, first.values)


def test_meshes_that_have_no_inside_are_refused(tmp_path):
    vertices, faces = bumpy()
    with pytest.raises(ValueError, match=r"not closed: 3 edges .* as a point cloud"):
        mesh_field((vertices, faces[1:]))
    with pytest.raises(ValueError, match=r"at most 20000000 are kept: take spacing="):
        mesh_field((vertices * 1e3, faces), 0.01)
    with pytest.raises(FileNotFoundError, match=r"no mesh file .*rock\.stl"):
        mesh_field(tmp_path / "rock.stl")
    trimesh.Trimesh(vertices, faces).export(tmp_path / "rock.stl")
    flipped = mesh_field((vertices, faces[:, ::-1]), 0.03)
    np.testing.assert_allclose(mesh_field(tmp_path / "rock.stl", 0.03).values, flipped.values, atol=1e-5)


def test_shapes_and_fields_together_are_as_far_as_the_nearer():
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    field = mesh_field((box.vertices, box.faces), 0.02)
    ball = shapes.sphere(0.05, (0.3, 0.0, 0.0))
    points = jnp.array([[0.1, 0.22], [0.0, 0.0], [0.0, 0.0]])
    d, gradient = clearance(ball, (field,), points)
    np.testing.assert_allclose(d[1], 0.03, atol=1e-6)
    assert 0.05 - float(field.most_below) <= d[0] <= 0.05
    np.testing.assert_allclose(gradient[:, 1], [-1.0, 0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(gradient[1:, 0], [0.0, 0.0], atol=1e-5)
    assert gradient[0, 0] > 0.5


@pytest.mark.slow
def test_a_robot_clear_of_surroundings_does_not_touch_them_in_mujoco():
    """Residual <= 0 implies no contact with the mesh, the terrain or the cloud, whatever the posture; the judge sees them."""
    robot = embodiments.load("panda-allegro")
    rng = np.random.default_rng(5)
    vertices, faces = bumpy()
    ground = 0.05 * np.sin(np.linspace(0, 6, 9))[:, None] * np.ones((1, 9))
    low = Pose(position=jnp.array([0.0, 0.4, -0.1]), rotation=jnp.eye(3))
    scene = tabletop(
        surroundings=[
            Surrounding.mesh(
                (1.5 * vertices, faces), Pose(position=jnp.array([0.45, 0.0, 0.45]), rotation=jnp.eye(3)), spacing=0.02
            ),
            Surrounding.terrain(ground, (0.6, 0.4), low, spacing=0.03),
            Surrounding.cloud(rng.normal(size=(60, 3)) * 0.1 + [-0.4, -0.2, 0.6], 0.02, spacing=0.02),
        ]
    )
    assert scene.constraints.names == ("scene_collision", "field_collision")
    constraint = (robot.constraints | scene.constraints)["field_collision"]
    assert isinstance(constraint, FieldCollision) and constraint.robot is robot
    hand = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=robot.hand_home, squeeze=jnp.zeros(16))
    worst = jax.jit(lambda q: constraint.residual(hand, {"joints": q}, None).max())
    judge = Judge.of(robot, scene)
    own = {g for g in range(judge.model.ngeom) if judge.model.geom(g).name.startswith("surrounding")}
    assert sum("filling" in judge.model.geom(g).name for g in own) > 20
    counts = np.zeros((2, 2), int)
    for seed in range(80):
        q = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(seed), robot.lower.shape)
        judge.data.qpos[:] = robot.qpos(q)
        mujoco.mj_forward(judge.model, judge.data)
        touches = any(own & set(pair) for pair in judge.data.contact.geom.tolist())
        clear = float(worst(q)) <= 1e-3
        assert not (touches and clear)
        counts[0, int(touches)] += 1
        counts[1, int(clear)] += 1
        if touches and counts[0, 1] == 1:
            tool = robot.tool_pose(q)
            held = Grasp(position=tool.position, rotation=tool.rotation, joints=robot.hand_home, squeeze=np.zeros(16))
            assert judge(jax.tree.map(np.asarray, held), np.asarray(q)).scene > 0
    assert counts.min() > 5  # the test saw both
