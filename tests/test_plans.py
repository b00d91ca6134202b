"""Plans and poses: laws of encoding and frames."""

import jax
import jax.numpy as jnp
import numpy as np

from diffopt.geometry import Pose, rotation_from_6d, rotation_to_6d, rotation_vector
from diffopt.plans import Grasp, GraspSpec, PlanSpec, PointSpec

SPEC = GraspSpec(hand="two", joint_names=("a", "b"))


def random_pose(key) -> Pose:
    a, b = jax.random.split(key)
    return Pose(position=jax.random.normal(a, (3,)), rotation=rotation_from_6d(jax.random.normal(b, (6,))))


def random_grasp(key) -> Grasp:
    a, b, c = jax.random.split(key, 3)
    wrist = random_pose(a)
    return Grasp(
        position=wrist.position,
        rotation=wrist.rotation,
        joints=jax.random.normal(b, (2,)),
        squeeze=jax.random.normal(c, (2,)),
    )


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_six_numbers_give_back_a_rotation():
    rotation = random_pose(jax.random.key(0)).rotation
    np.testing.assert_allclose(rotation_from_6d(rotation_to_6d(rotation)), rotation, atol=1e-6)


def test_any_six_numbers_give_a_rotation():
    for six in jax.random.normal(jax.random.key(1), (10, 6)):
        R = rotation_from_6d(six)
        np.testing.assert_allclose(R.T @ R, np.eye(3), atol=1e-5)
        assert jnp.linalg.det(R) > 0


def test_rotation_vector_of_a_turn_about_z():
    c, s = np.cos(0.3), np.sin(0.3)
    R = jnp.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(rotation_vector(R), [0, 0, 0.3], atol=1e-6)
    assert np.all(np.isfinite(jax.jacobian(rotation_vector)(jnp.eye(3))))


def test_a_pose_times_its_inverse_is_the_identity():
    pose = random_pose(jax.random.key(2))
    assert_close(pose @ pose.inverse(), Pose.identity())


def test_decode_undoes_encode():
    grasp, frame = random_grasp(jax.random.key(3)), random_pose(jax.random.key(4))
    assert_close(SPEC.decode(SPEC.encode(grasp, frame), frame), grasp)
    assert SPEC.encode(grasp, frame).shape == (SPEC.dim,)


def test_moving_the_frame_moves_the_wrist_and_nothing_else():
    vector, frame, move = (
        SPEC.encode(random_grasp(jax.random.key(5)), Pose.identity()),
        random_pose(jax.random.key(6)),
        random_pose(jax.random.key(7)),
    )
    before, after = SPEC.decode(vector, frame), SPEC.decode(vector, move @ frame)
    assert_close(after.wrist, move @ before.wrist, atol=1e-4)
    assert_close((after.joints, after.squeeze), (before.joints, before.squeeze))


def test_a_hand_carried_around_the_object_has_only_turned():
    """The difference of two grasps counts a translation where the object is."""
    one, scale = SPEC.encode(random_grasp(jax.random.key(9)), Pose.identity()), jnp.full(SPEC.dim, 0.5)
    np.testing.assert_allclose(SPEC.difference(one, one, scale), np.zeros(SPEC.dim), atol=1e-3)
    turn = random_pose(jax.random.key(10)).rotation
    around = SPEC.encode(SPEC.decode(one, Pose(position=jnp.zeros(3), rotation=turn)), Pose.identity())
    assert_close(SPEC.difference(around, one, scale)[:3], jnp.zeros(3), atol=1e-3)
    assert jnp.linalg.norm(SPEC.difference(around, one, scale)[3:9]) > 0.1
    shifted = one.at[0].add(0.06)
    assert_close(SPEC.difference(shifted, one, scale), jnp.zeros(SPEC.dim).at[0].set(0.06 / SPEC.hold), atol=1e-3)


def test_the_triplet_is_symmetric_about_the_grasp():
    grasp = random_grasp(jax.random.key(8))
    assert_close((grasp.pregrasp + grasp.squeezed) / 2, grasp.joints)


def test_specs_are_plan_specs_and_hashable():
    for spec in (SPEC, PointSpec(dim=3)):
        assert isinstance(spec, PlanSpec)
        hash(spec)
