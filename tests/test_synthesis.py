"""Grasp synthesis: its quadratic program against cvxpy, its geometry against the shapes, its grasps against physics."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.scenes import objects
from diffopt.training import synthesis, wrench
from diffopt.training.hand import allegro


def random_contacts(seed, n=5):
    k_place, k_tilt = jax.random.split(jax.random.key(seed))
    place = jax.random.normal(k_place, (n, 3))
    place = place / jnp.linalg.norm(place, axis=1, keepdims=True)
    normal = -place + 0.3 * jax.random.normal(k_tilt, (n, 3))
    return 0.04 * place, normal / jnp.linalg.norm(normal, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_balance_agrees_with_cvxpy(seed):
    cp = pytest.importorskip("cvxpy")
    G = np.asarray(wrench.grasp_map(*random_contacts(seed), jnp.zeros(3), jnp.asarray(0.05), 0.3), float)
    t = synthesis.wrenches(0.2)
    active = jnp.array([1.0, 1.0, 1.0, float(seed % 2), 1.0])
    p = wrench.balance(jnp.asarray(G, jnp.float32), jnp.asarray(t), active, jnp.full((7, 5, 8), 0.1), 4000)
    for j in range(7):
        q = cp.Variable((5, 8))
        flat = cp.reshape(q, (40,), order="C")
        objective = cp.sum_squares(G @ flat + t[j]) + wrench.REGULARISATION * cp.sum_squares(flat)
        limits = [q >= 0, q <= np.asarray(active)[:, None], cp.sum(q[-1]) >= 0.5, cp.sum(q[:-1]) >= 0.4]
        cp.Problem(cp.Minimize(objective), limits).solve(solver=cp.CLARABEL)
        mine = float(jnp.sum((G @ p[j].ravel() + t[j]) ** 2) + wrench.REGULARISATION * jnp.sum(p[j] ** 2))
        assert mine == pytest.approx(objective.value, abs=1e-4)


def test_projection_is_feasible_idempotent_and_no_farther_than_any_feasible_point():
    p = jax.random.normal(jax.random.key(0), (200, 5, 8))
    active = jnp.ones(5)
    onto = jax.vmap(lambda q: wrench.project(q, active))
    q = onto(p)
    assert q.min() >= 0 and q.max() <= 1
    assert jnp.sum(q[:, -1], -1).min() > 0.5 - 1e-4 and jnp.sum(q[:, :-1], (1, 2)).min() > 0.4 - 1e-4
    np.testing.assert_allclose(onto(q), q, atol=1e-5)
    other = onto(jax.random.normal(jax.random.key(1), p.shape))
    gain = jnp.sum((p - q) * (other - q), axis=(1, 2))  # the variational inequality of a projection
    assert gain.max() < 1e-4


@pytest.mark.parametrize(
    "family", ["box", *(pytest.param(f, marks=pytest.mark.slow) for f in ("cylinder", "hammer")), "mug"]
)
def test_union_distance_is_that_of_the_shapes(family):
    solid = objects.training(1, seed=2, families=(family,))[0].solid
    points = jax.random.uniform(jax.random.key(0), (300, 3), minval=-0.15, maxval=0.15)
    np.testing.assert_allclose(
        synthesis.union_distance(solid.parts, points), jax.vmap(solid.distance)(points), atol=1e-5
    )


def test_spheres_cover_the_hand_and_lie_inside_it():
    """Every sphere is inscribed in its capsule, and consecutive ones overlap."""
    hand = allegro()
    for _, local, radius in hand.spheres:
        gaps = np.linalg.norm(np.diff(np.asarray(local), axis=0), axis=1)
        assert np.all(gaps < 1.5 * radius)
    assert len(hand.tips) == 4 and hand.lower.shape == (16,)


def test_squeeze_presses_with_balanced_forces():
    """J^T f is the gradient of the work of f: against finite differences."""
    hand = allegro()
    q = jnp.asarray(synthesis.OPEN)
    frames = hand.kinematics.fk(q)
    points = jnp.stack([frames.position[tip[0]] + frames.rotation[tip[0]] @ jnp.asarray(tip[2]) for tip in hand.tips])
    forces = jax.random.normal(jax.random.key(0), (4, 3))
    torque = synthesis._torques(hand, q, points, forces)
    with jax.enable_x64(False):
        for j in (1, 6, 15):
            step = jnp.zeros(16).at[j].set(1e-3)
            moved = [hand.kinematics.fk(q + s * step) for s in (1, -1)]
            work = [
                sum(
                    forces[f] @ (m.position[t[0]] + m.rotation[t[0]] @ jnp.asarray(t[2]))
                    for f, t in enumerate(hand.tips)
                )
                for m in moved
            ]
            assert float(torque[j]) == pytest.approx(float(work[0] - work[1]) / 2e-3, abs=2e-3)


@pytest.mark.slow
def test_shard_holds_grasps_that_pass_and_is_resumed(tmp_path):
    from diffopt.training.data import ShardConfig, make_shards
    from diffopt.training.dataset import basis_points, load_data

    config = ShardConfig(targets=3, starts=8)
    made = []
    make_shards(tmp_path, 1, 0, config, dict(test="1"), made.append, threads=2)
    assert made[0]["starts"] == 24 and made[0]["passed"] >= 4
    make_shards(tmp_path, 1, 0, config, dict(test="1"), made.append, threads=2)
    assert len(made) == 1
    about = json.loads(str(np.load(tmp_path / "shard_0_00000.npz")["about"]))
    assert about["config"]["synthesis"] == dataclasses.asdict(config.synthesis)
    data, card = load_data(tmp_path, basis_points(16))
    assert len(data) == made[0]["passed"] == card["grasps"]


@pytest.mark.slow
def test_repairs_touch_where_samples_did_not(tmp_path):
    """Grasps moved by some millimetres come back into contact, near where they were."""
    hand, config = allegro(), synthesis.SynthesisConfig(iterations=100)
    (box,) = objects.training(1, seed=0, families=("box",))
    points, normals = (jnp.asarray(a, jnp.float32) for a in box.surface(256, seed=1))
    keys = jax.random.split(jax.random.key(0), 24)
    make = jax.jit(jax.vmap(lambda k: synthesis.synthesise(hand, box.solid, points, normals, k, config, False)))
    mend = jax.jit(jax.vmap(lambda g: synthesis.refine(hand, box.solid, g, config, False, 40)))
    made = make(keys)
    good = np.flatnonzero((made.contact < 0.003) & (made.penetration < 0.003))[:8]
    assert len(good) >= 4
    grasp = jax.tree.map(lambda a: a[good], made.grasp)
    moved = dataclasses.replace(grasp, position=grasp.position + 0.004, joints=grasp.joints + 0.05)
    before, after = jax.vmap(lambda g: synthesis.refine(hand, box.solid, g, config, False, 1))(moved), mend(moved)
    assert np.median(after.contact) < 0.5 * np.median(before.contact)
    assert np.max(np.linalg.norm(after.grasp.position - moved.position, axis=-1)) < 0.03


def test_no_shards_says_how_to_make_them(tmp_path):
    from diffopt.training.dataset import basis_points, load_data

    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.synthesize"):
        load_data(tmp_path, basis_points(4))
