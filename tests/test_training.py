"""Training: data keeps its meaning under symmetries, the loss falls, an interrupted training goes on as if it had not been."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffopt.geometry import Pose, Target
from diffopt.plans import Grasp, GraspSpec
from diffopt.policies import checkpoint
from diffopt.scenes import objects
from diffopt.training.dataset import GraspData, basis_points, object_features, object_feet
from diffopt.training.trainer import JOINTS, TrainConfig, train

OBJECTS = [objects.training(1, seed=4, families=(f,))[0] for f in ("box", "cylinder", "hammer", "mug")]
BASIS = basis_points(32)
FEET = object_feet(OBJECTS)


def made_up(n=64) -> GraspData:
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(n, 3, 3)))
    q[:, :, 2] *= np.linalg.det(q)[:, None]
    return GraspData(
        position=jnp.asarray(rng.normal(size=(n, 3)) * 0.1, jnp.float32),
        rotation=jnp.asarray(q, jnp.float32),
        joints=jnp.asarray(rng.uniform(0, 1, (n, 16)), jnp.float32),
        squeeze=jnp.asarray(rng.normal(size=(n, 16)) * 0.1, jnp.float32),
        which=jnp.asarray(rng.integers(0, 4, n)),
        features=jnp.asarray(object_features(OBJECTS, BASIS, views=2)),
        foot=FEET,
        symmetries=jnp.asarray(np.stack([np.resize(np.stack(o.symmetries), (4, 3, 3)) for o in OBJECTS]), jnp.float32),
        revolution=jnp.asarray([o.axis_symmetric for o in OBJECTS]),
        first=jnp.zeros(1, jnp.int32),
        count=jnp.full(1, n, jnp.int32),
    )


def test_drawn_grasps_are_as_far_from_the_object_as_the_stored_ones():
    data = made_up(1)
    draw = jax.jit(lambda data, key: data.draw(key, 50))
    decode = jax.vmap(lambda v: GraspSpec(hand="allegro", joint_names=JOINTS).decode(v, Pose.identity()))
    local = jnp.array([0.06, 0.01, 0.02])
    for i, obj in enumerate(OBJECTS):
        drawn = draw(GraspData(**{**vars(data), "which": jnp.array([i])}), jax.random.key(i))
        vectors, features = drawn.vector, drawn.features
        grasp = decode(vectors)
        distance = jax.jit(jax.vmap(obj.solid.distance))
        expected = distance(data.position + data.rotation @ local)
        np.testing.assert_allclose(distance(grasp.position + grasp.rotation @ local), np.tile(expected, 50), atol=2e-5)
        np.testing.assert_allclose(grasp.joints, jnp.broadcast_to(data.joints[0], (50, 16)))
        assert features.shape == (50, 32)


SIZES = dict(width=32, blocks=1, embedding=16, second_width=24, second_blocks=1)
SMALL = TrainConfig(steps=60, batch=64, learning_rate=1e-2, warmup=5, block=10, **SIZES)


def test_loss_falls_and_the_policy_samples_and_survives_the_disk(tmp_path):
    losses = []
    policy, steps = train(made_up(), BASIS, replace(SMALL, steps=300), report=lambda s, loss, t: losses.append(loss))
    assert steps == 300 and np.mean(losses[-5:]) < 0.9 * losses[0]
    checkpoint.save(policy, tmp_path / "p", dict(note="test"))
    again = checkpoint.load(tmp_path / "p.json")
    target = Target(points=jnp.asarray(OBJECTS[0].surface(64)[0], jnp.float32), pose=Pose.identity())
    x = jax.random.normal(jax.random.key(0), (policy.spec.dim,))
    kept, back = (p.given(target).clean(x, jnp.asarray(0.5)) for p in (policy, again))
    np.testing.assert_allclose(back, kept, atol=1e-2)  # weights are stored in half precision
    checkpoint.save(again, tmp_path / "q", dict(note="test"))
    twice = checkpoint.load(tmp_path / "q.json").given(target).clean(x, jnp.asarray(0.5))
    np.testing.assert_allclose(twice, back, atol=1e-6)
    assert isinstance(again.given(target).decode(x), Grasp)


def test_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    data = made_up()
    whole, _ = train(data, BASIS, SMALL)

    def stop(step, loss, seconds):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, BASIS, SMALL, tmp_path, stop, checkpoint_every=10)
    seen = []
    parts, steps = train(data, BASIS, SMALL, tmp_path, lambda step, loss, seconds: seen.append(step))
    assert steps == 60 and seen[0] == 30
    for a, b in zip(jax.tree.leaves(whole.denoiser.weights), jax.tree.leaves(parts.denoiser.weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_repairs_are_learnt_by_the_second_stage_alone():
    """Samples that are all off by the same joints, in the wrist's frame: the second stage learns it, the first stays as it is."""
    data = made_up()
    off = Grasp(position=data.position, rotation=data.rotation, joints=data.joints - 0.3, squeeze=data.squeeze)
    start, _ = train(data, BASIS, replace(SMALL, steps=10))
    losses = []
    config = replace(SMALL, steps=300, second_only=True, repair=10.0, repair_batch=64, touch=0.0)
    policy, _ = train(
        data,
        BASIS,
        config,
        start=start,
        repairs=replace(data, sampled=off),
        report=lambda s, loss, t: losses.append(loss),
    )
    for a, b in zip(
        jax.tree.leaves(start.denoiser.weights["first"]), jax.tree.leaves(policy.denoiser.weights["first"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_drawn_samples_are_turned_with_their_repairs():
    data = made_up()
    drawn = replace(data, sampled=Grasp(**{k: getattr(data, k) for k in ("position", "rotation", "joints", "squeeze")}))
    drawn = drawn.draw(jax.random.key(3), 40)
    np.testing.assert_array_equal(drawn.vector, drawn.sampled)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    train(made_up(), BASIS, SMALL, tmp_path, deadline=0.0)
    with pytest.raises(ValueError, match="does not fit this network"):
        train(made_up(), BASIS, replace(SMALL, width=48), tmp_path)
