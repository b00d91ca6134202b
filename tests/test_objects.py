"""Objects: their distances against MuJoCo's idea of the same geometry, their rests against physics, and the split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.geometry.superquadric import Superquadric
from diffopt.scenes import objects
from diffopt.scenes.solids import part_distance

ALL = [objects.training(1, seed=7, families=(family,))[0] for family in objects.FAMILIES] + objects.benchmark()
ids = [o.name for o in ALL]


@pytest.mark.parametrize("obj", ALL, ids=ids)
def test_surface_points_lie_on_the_surface_and_normals_point_out(obj):
    points, normals = obj.surface(256)
    assert points.shape == normals.shape == (256, 3)
    distance = jax.jit(jax.vmap(obj.solid.distance))
    np.testing.assert_allclose(distance(jnp.asarray(points, jnp.float32)), 0, atol=2e-5)
    out = distance(jnp.asarray(points + 2e-3 * normals, jnp.float32))
    assert np.mean(np.asarray(out) > 1e-3) > 0.97


@pytest.mark.parametrize("obj", ALL, ids=ids)
def test_distance_changes_by_at_most_the_step(obj):
    """|d(p) - d(q)| <= |p - q|, for the exact families."""
    if obj.family == "superquadric":
        pytest.skip("exact to first order only")
    p, q = jax.random.uniform(jax.random.key(0), (2, 200, 3), minval=-0.15, maxval=0.15)
    d = jax.vmap(obj.solid.distance)
    assert np.all(np.abs(d(p) - d(q)) <= np.linalg.norm(p - q, axis=1) + 1e-6)


def test_superquadric_with_unit_exponents_and_equal_axes_is_a_sphere():
    sphere = Superquadric(axes=jnp.full(3, 0.04), exponents=jnp.ones(2))
    p = jax.random.normal(jax.random.key(0), (100, 3)) * 0.1
    np.testing.assert_allclose(jax.vmap(sphere.distance)(p), np.linalg.norm(p, axis=1) - 0.04, atol=1e-5)


def test_superquadric_hull_agrees_with_its_surface():
    obj = objects.training(1, seed=3, families=("superquadric",))[0]
    hull = obj.parts[0].hull
    assert len(hull) <= 200
    assert np.abs(part_distance(obj.parts[0], hull)).max() < 2e-3


@pytest.mark.parametrize("obj", ALL, ids=ids)
def test_resting_pose_is_at_rest_in_physics(obj):
    import mujoco

    spec = mujoco.MjSpec()
    spec.option.timestep = 0.002
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1])
    obj.add_to(spec)
    model = spec.compile()
    assert model.body(obj.name).mass[0] == pytest.approx(obj.mass)
    for seed in range(3):
        pose = objects.resting_pose(obj, jax.random.key(seed))
        data = mujoco.MjData(model)
        data.qpos[:3] = pose.position
        mujoco.mju_mat2Quat(data.qpos[3:], np.asarray(pose.rotation, float).ravel())
        for _ in range(250):
            mujoco.mj_step(model, data)
        assert np.linalg.norm(data.qpos[:3] - pose.position) < 4e-3
        turned = np.asarray(pose.rotation).T @ data.xmat[1].reshape(3, 3)
        assert np.arccos(np.clip((np.trace(turned) - 1) / 2, -1, 1)) < 0.1


@pytest.mark.parametrize("obj", ALL, ids=ids)
def test_symmetries_map_the_object_to_itself(obj):
    points, _ = obj.surface(128)
    for R in obj.symmetries:
        assert np.linalg.det(R) == pytest.approx(1)
        np.testing.assert_allclose(min_distance(obj, points @ R.T), 0, atol=1e-4)
    if obj.axis_symmetric:
        c, s = np.cos(0.7), np.sin(0.7)
        np.testing.assert_allclose(
            min_distance(obj, points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])), 0, atol=1e-4
        )


def min_distance(obj, points):
    return np.min([part_distance(p, points) for p in obj.parts], axis=0)


def test_training_and_held_out_share_no_object():
    def first(o):
        return round(o.parts[0].size[0] * 1e4) % 2

    assert {first(o) for o in objects.training(200)} == {0}
    assert {first(o) for o in objects.held_out(200)} == {1}
    assert [o.name for o in objects.training(5)] == [o.name for o in objects.training(9)[:5]]


def test_unknown_family_names_those_there_are():
    with pytest.raises(ValueError, match="no object family 'teapot'; there are: box"):
        objects.training(1, families=("teapot",))
