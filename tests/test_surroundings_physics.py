"""Surroundings that are no primitives, in both engines: what MJX can simulate it simulates as C MuJoCo does, and the rest is refused."""

import jax
import mujoco
import numpy as np
import pytest
import trimesh

from diffopt.geometry import Pose
from diffopt.physics.mjx_scene import MOST_PAIRS, pairs, translate, unsupported
from diffopt.scenes import Surrounding

RADIUS = 0.03
PLACES = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]])  # of a rock, a slope and a cloud, a ball above each


def surroundings():
    """A convex mesh with a flat top, a valley of two slopes (not convex), and a bowl of points."""
    rock = trimesh.creation.cylinder(0.08, 0.1, sections=7)
    at = [Pose(position=np.array([*p, 0.0]), rotation=np.eye(3)) for p in PLACES]
    heights = np.array([[0.06, 0.06], [0.0, 0.0], [0.06, 0.06]])
    x, y = np.meshgrid(np.linspace(-0.08, 0.08, 9), np.linspace(-0.08, 0.08, 9), indexing="ij")
    bowl = np.stack([x + PLACES[2, 0], y + PLACES[2, 1], 1.5 * (x**2 + y**2)], axis=-1).reshape(-1, 3)
    return [
        Surrounding.mesh((rock.vertices, rock.faces), at[0], spacing=0.02),
        Surrounding.terrain(heights, (0.1, 0.08), at[1], spacing=0.02, depth=0.02),
        Surrounding.cloud(bowl, 0.015, spacing=0.02),
    ]


def scene(kind="sphere"):
    spec = mujoco.MjSpec()
    spec.option.timestep, spec.option.cone = 0.004, mujoco.mjtCone.mjCONE_ELLIPTIC
    for i, thing in enumerate(surroundings()):
        thing.add_to(spec, f"thing{i}")
    for i, (x, y) in enumerate(PLACES):
        body = spec.worldbody.add_body(name=f"ball{i}", pos=[x + 0.01, y + 0.01, 0.12])
        body.add_freejoint()
        geom = body.add_geom(mass=0.1, size=[RADIUS, RADIUS, RADIUS])
        geom.type = getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}")
    return spec


def test_what_a_cloud_costs_in_mjx_is_said_before_it_is_paid():
    spec = scene()
    model = spec.compile()
    static = model.ngeom - 3
    assert pairs(model) == 3 * static + 3 and not unsupported(model) and translate(spec, model) is model
    rng = np.random.default_rng(0)
    Surrounding.cloud(rng.uniform(-0.5, 0.5, (MOST_PAIRS // 3, 3)), 0.01, spacing=0.05).add_to(spec, "seen")
    with pytest.raises(ValueError, match=r"pairs of geoms may meet, .*thin out point clouds .*, or run engine=c"):
        translate(spec, spec.compile())


def test_what_mjx_cannot_collide_with_surroundings_is_named():
    spec = scene("ellipsoid")
    with pytest.raises(ValueError, match=r"MJX cannot collide mesh 'thing0_0' of body 'world' with ellipsoid .*ball0"):
        translate(spec, spec.compile())


@pytest.mark.slow
def test_balls_come_to_rest_on_surroundings_in_both_engines():
    """Free fall is the same to a micrometre; at rest they lie where geometry puts them, within a millimetre."""
    from mujoco import mjx

    model = scene().compile()
    data = mujoco.MjData(model)
    own = mjx.put_model(model, impl="jax")
    step = jax.jit(lambda d: jax.lax.fori_loop(0, 10, lambda _, d: mjx.step(own, d), d))
    other = mjx.put_data(model, data, impl="jax")
    for tenth in range(60):
        for _ in range(10):
            mujoco.mj_step(model, data)
        other = step(other)
        if tenth == 0:
            np.testing.assert_allclose(other.qpos, data.qpos, atol=1e-6)
    c, x = (np.asarray(q).reshape(3, 7)[:, :3] for q in (data.qpos, other.qpos))
    np.testing.assert_allclose(x, c, atol=2e-3)
    slope = np.arctan2(0.06, 0.1)
    np.testing.assert_allclose(x[0, 2], 0.05 + RADIUS, atol=1e-3)  # on the rock's top
    np.testing.assert_allclose(x[1], [PLACES[1, 0], 0.01, RADIUS / np.cos(slope)], atol=2e-3)  # in the valley
    pocket = np.sqrt((RADIUS + 0.015) ** 2 - 2 * 0.01**2)  # above four points, 2 cm apart
    np.testing.assert_allclose(x[2], [*(PLACES[2] + 0.01), pocket], atol=3e-3)
