"""The prior's network: the hand sees what is there, the second stage begins as nothing and turns with the hand, derivatives are finite."""

from dataclasses import replace
from functools import cache
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffopt.geometry import Pose, Target, rotation_from_6d
from diffopt.policies.view import Foot
from diffopt.scenes import objects
from diffopt.training.dataset import basis_points
from diffopt.training.eyes import view_of
from diffopt.training.hand import allegro
from diffopt.training.trainer import TrainConfig, untrained

SMALL = TrainConfig(width=32, blocks=1, embedding=16, second_width=24, second_blocks=1)
QUARTER = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
GRASP = jnp.concatenate(
    [jnp.array([-0.09, 0.01, 0.02]), jnp.eye(3)[0], jnp.eye(3)[1], jnp.full(16, 0.4), jnp.full(16, 0.05)]
)


@cache
def view():
    return view_of(allegro())


@cache
def policy():
    """An untrained one whose second stage says something."""
    basis = basis_points(16)
    plain = untrained(basis, jnp.full(41, 0.01), jnp.linspace(0.5, 1.5, 41), jnp.zeros(16), jnp.ones(16), SMALL)
    weights = jax.tree.map(lambda a: a, plain.denoiser.weights)
    for stage, key in (("first", 0), ("second", 1)):
        kernel = weights[stage]["outlet"]["kernel"]
        kernel[...] = 0.1 * jax.random.normal(jax.random.key(key), kernel.shape)
    denoiser = replace(plain.denoiser, weights=weights)
    return replace(plain, denoiser=denoiser, encoder=replace(plain.encoder, denoiser=denoiser))


def target(radius=0.04, seed=0) -> Target:
    points = objects.ball(radius, 0.1).surface(1024, seed=seed)[0]
    return Target(points=jnp.asarray(points, jnp.float32), pose=Pose.identity())


def test_foot_is_the_nearest_place_on_the_surface():
    """About a ball, whose answer is known: near, far, and beyond the grid."""
    foot = Foot.of(target().points)
    away = jax.random.normal(jax.random.key(0), (200, 3))
    away = away / jnp.linalg.norm(away, axis=-1, keepdims=True)
    for gap, error in ((0.012, 1.5e-3), (0.025, 1.5e-3), (0.2, 1e-2)):
        seen = away * (0.04 + gap)
        distance = jnp.linalg.norm(foot(seen) - seen, axis=-1)
        np.testing.assert_allclose(distance, gap, atol=error)


def test_points_of_the_hand_are_where_mujoco_has_them():
    import mujoco

    xml = (resources.files("diffopt.robots") / "models" / "allegro.xml").read_text(encoding="utf-8")
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    for seed in range(3):
        q = np.random.default_rng(seed).uniform(-0.2, 1.3, 16)
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        tips = view().points(jnp.asarray(q, jnp.float32)).reshape(4, -1, 3)[:, -1]
        palm = data.xpos[model.body("palm").id]
        for finger, tip in zip(("ff", "mf", "rf", "th"), tips, strict=True):
            np.testing.assert_allclose(tip, data.site(f"{finger}_tip").xpos - palm, atol=1e-5)


def test_what_the_hand_sees_turns_with_it():
    """Object and hand turned together by a quarter, under which the grid about the object is the same, look as before."""
    points = jnp.asarray(objects.training(1, seed=4, families=("hammer",))[0].surface(1024)[0], jnp.float32)

    def look(turn, foot):
        return view().look(turn @ GRASP[:3], turn, GRASP[9:25], GRASP[25:], foot)

    before, after = Foot.of(points), Foot.of(points @ QUARTER.T)
    np.testing.assert_allclose(look(jnp.eye(3), before), look(QUARTER, after), atol=2e-4)
    assert jnp.abs(look(jnp.eye(3), before) - look(jnp.eye(3), after)).max() > 0.1


def test_untrained_second_stage_changes_nothing():
    plain = policy()
    weights = jax.tree.map(lambda a: a, plain.denoiser.weights)
    weights["second"]["outlet"]["kernel"][...] = jnp.zeros_like(weights["second"]["outlet"]["kernel"][...])
    condition = plain.given(target()).context.condition
    x = jax.random.normal(jax.random.key(1), (41,))
    estimates = jax.jit(lambda denoiser: denoiser.estimates(x, jnp.asarray(0.3), condition))
    coarse, fine = estimates(replace(plain.denoiser, weights=weights))
    np.testing.assert_allclose(coarse, fine, atol=1e-6)
    assert jnp.abs(estimates(plain.denoiser)[1] - coarse).max() > 1e-2


def test_corrections_turn_with_the_wrist():
    """From and to the wrist's frame are inverse, and a displacement along the palm's normal is one along it in the object's frame."""
    denoiser = policy().denoiser
    R = rotation_from_6d(jax.random.normal(jax.random.key(0), (6,)))
    z = jax.random.normal(jax.random.key(1), (41,))
    np.testing.assert_allclose(denoiser._to_wrist(R, denoiser._from_wrist(R, z)), z, atol=1e-5)
    moved = denoiser._from_wrist(R, jnp.zeros(41).at[0].set(1.0)) * denoiser.normalizer.scale
    np.testing.assert_allclose(moved[:3] / jnp.linalg.norm(moved[:3]), R[:, 0], atol=1e-5)


@pytest.mark.slow
def test_derivatives_are_finite_and_agree():
    bound = policy().given(target())
    x, direction = jax.random.normal(jax.random.key(2), (2, 5, 41))
    clean = jax.jit(jax.vmap(lambda z: bound.clean(z, jnp.asarray(0.1))))
    forward = jax.jvp(clean, (x,), (direction,))[1]
    backward = jax.vjp(clean, x)[1](direction)[0]
    assert jnp.isfinite(forward).all() and jnp.isfinite(backward).all()
    np.testing.assert_allclose(jnp.sum(direction * forward), jnp.sum(direction * backward), rtol=1e-3)


def test_a_new_object_does_not_retrace():
    traces = []

    @jax.jit
    def clean(bound, x):
        traces.append(1)
        return bound.clean(x, jnp.asarray(0.5))

    x = jnp.ones(41)
    first, second = (clean(policy().given(target(radius)).bound(), x) for radius in (0.03, 0.05))
    assert len(traces) == 1 and not np.allclose(first, second)


def test_weights_are_split_by_stage():
    """Training one stage alone relies on it."""
    weights = policy().denoiser.weights
    assert set(weights) == {"first", "second"} and isinstance(weights, nnx.State)
