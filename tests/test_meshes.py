"""Sphere covers of meshes: nothing of the hull is left out, nothing reaches further than stated, and they are found again."""

import mujoco
import numpy as np
import pytest
from scipy.spatial import ConvexHull

from diffopt.geometry import kept
from diffopt.robots import bodies, meshes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path))
    return tmp_path


def inside(vertices, n, rng):
    """Points of the hull of `vertices`, many of them on its surface, edges and corners."""
    weights = rng.dirichlet(np.ones(len(vertices)) * 0.3, n)
    hull = ConvexHull(vertices)
    flat = (
        rng.dirichlet(np.ones(3) * 0.5, n)[:, :, None]
        * vertices[hull.simplices[rng.integers(len(hull.simplices), size=n)]]
    )
    return np.concatenate([weights @ vertices, flat.sum(axis=1), vertices])


SHAPES = {
    "wedge": np.array([[0, 0, 0], [0.2, 0, 0], [0, 0.1, 0], [0, 0, 0.05], [0.2, 0, 0.01]]),
    "pebble": np.random.default_rng(1).normal(size=(40, 3)) * [0.05, 0.03, 0.02],
    "box": np.array(np.meshgrid([-0.1, 0.1], [-0.05, 0.05], [-0.04, 0.04])).reshape(3, -1).T,
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_hull_is_covered_and_the_overshoot_is_as_stated(name):
    vertices, rng = SHAPES[name], np.random.default_rng(0)
    overshoots = []
    for most in (200, 8, 1):
        centres, radii, overshoot = meshes.cover_mesh(vertices, 0.01, most)
        assert len(radii) <= most
        apart = np.linalg.norm(inside(vertices, 2000, rng)[:, None] - centres, axis=-1) - radii
        assert apart.min(axis=1).max() <= 1e-7
        planes = ConvexHull(vertices).equations
        depth = -np.max(centres @ planes[:, :3].T + planes[:, 3], axis=1)
        assert np.all(depth >= -1e-9) and np.all(radii - depth <= overshoot + 1e-5)
        overshoots.append(overshoot)
    assert overshoots[0] <= 0.0101 and overshoots == sorted(overshoots)


def test_a_cover_is_kept_by_content_and_found_again(folder, monkeypatch):
    first = meshes.cover_mesh(SHAPES["pebble"], 0.01, 30)
    assert len(list(folder.rglob("*.npz"))) == 1 and not list(folder.rglob("*.tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(meshes, "_cover", lambda *_: pytest.fail("computed again"))
        again = meshes.cover_mesh(SHAPES["pebble"].copy(), 0.01, 30)
        with pytest.raises(pytest.fail.Exception):
            meshes.cover_mesh(SHAPES["pebble"] + 1e-6, 0.01, 30)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    next(folder.rglob("*.npz")).write_bytes(b"broken")
    np.testing.assert_array_equal(meshes.cover_mesh(SHAPES["pebble"], 0.01, 30)[0], first[0])


def test_a_folder_that_cannot_be_written_to_does_no_harm(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("DIFFOPT_CACHE", str(folder / "file" / "below"))
    assert meshes.cover_mesh(SHAPES["box"], 0.02, 30) is not None


def test_where_covers_are_kept(monkeypatch):
    monkeypatch.delenv("DIFFOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(kept.cache_folder()) == "/xdg/diffopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kept.cache_folder().name == "diffopt"


def test_a_mesh_in_a_model_is_covered_where_mujoco_collides_it():
    rng = np.random.default_rng(0)
    numbers = " ".join(f"{v:.6f}" for v in (SHAPES["wedge"] + [1, 2, 3]).ravel())
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><asset><mesh name="m" vertex="{numbers}"/></asset><worldbody>'
        '<body name="b" pos=".1 .2 .3"><geom type="mesh" mesh="m" pos="1 0 0" euler="10 20 30"/></body></worldbody></mujoco>'
    )
    spheres = bodies.Spheres.from_model(model, tolerance=0.01)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    world = inside(model.mesh_vert, 1000, rng) @ data.geom_xmat[0].reshape(3, 3).T + data.geom_xpos[0]
    placed = np.array(spheres.center) @ data.body("b").xmat.reshape(3, 3).T + data.body("b").xpos
    assert (np.linalg.norm(world[:, None] - placed, axis=-1) - spheres.radii).min(axis=1).max() < 1e-6
    assert len(set(spheres.radius)) > 1


def test_a_flat_mesh_has_no_cover_of_its_own():
    assert meshes.cover_mesh(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.0]]), 0.01, 10) is None
