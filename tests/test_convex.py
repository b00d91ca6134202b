"""Distances between convex primitives, against C MuJoCo: of all pairs of types, near contact, parallel, overlapping, thin and long.

MuJoCo's own distances iterate for most pairs, up to its tolerance, which is set to 1e-7 here. Of a capsule whose axis goes through a thin
box it gives a wrong one (3.17.0): there bounded least squares in double precision decide.
"""

import itertools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from diffopt.geometry import shapes
from diffopt.geometry.convex import BOX, CYLINDER, ELLIPSOID, SMOOTH, Convex, distance, separation

KINDS = ("sphere", "capsule", "box", "cylinder", "ellipsoid")
GAPS = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.09, -0.005, -0.02)  # [m]
EACH = 24  # poses of each pair of types and style
ROUNDING = 1e-6  # single precision at a metre, and MuJoCo's tolerance [m]


def core(kind, size):
    """Half extents, radius and kind of a geom."""
    return {
        "sphere": ((0.0, 0.0, 0.0), size[0], BOX),
        "capsule": ((0.0, 0.0, size[1]), size[0], BOX),
        "box": (tuple(size), 0.0, BOX),
        "cylinder": ((size[0], size[0], size[1]), 0.0, CYLINDER),
        "ellipsoid": (tuple(size), 0.0, ELLIPSOID),
    }[kind]


def turned(rng):
    q, R = rng.normal(size=4), np.zeros(9)
    mujoco.mju_quat2Mat(R, q / np.linalg.norm(q))
    return R.reshape(3, 3)


class Oracle:
    """C MuJoCo, with two geoms of any type, size and pose."""

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(
            '<mujoco><option ccd_tolerance="1e-7" ccd_iterations="200"/><worldbody><geom type="box" size="1 1 1"/>'
            '<body><freejoint/><geom type="box" size="1 1 1"/></body></worldbody></mujoco>'
        )
        self.model.geom_rbound[:] = 10
        self.data = mujoco.MjData(self.model)

    def set(self, kinds, sizes, rotations):
        self.model.geom_type[:] = [getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}") for kind in kinds]
        self.model.geom_size[:] = sizes
        self.data.geom_xmat[:] = [R.ravel() for R in rotations]

    def __call__(self, position):
        self.data.geom_xpos[:] = [position, np.zeros(3)]
        return mujoco.mj_geomDistance(self.model, self.data, 0, 1, 10.0, None)


def gathered(seed, thin):
    """Pairs of all types at wanted gaps: bodies A and B, MuJoCo's distances, and what they are."""
    rng, oracle, rows = np.random.default_rng(seed), Oracle(), []
    for one, two in itertools.product(KINDS, KINDS):
        for i in range(EACH):
            sizes = np.exp(rng.uniform(np.log(2e-3), np.log(0.5), (2, 3))) if thin else rng.uniform(0.02, 0.15, (2, 3))
            R = [turned(rng), turned(rng)]
            way = rng.normal(size=3)
            if i % 3 == 0:  # parallel, face to face
                R[1], way = R[0], R[0][:, rng.integers(3)]
            oracle.set((one, two), sizes, R)
            way, aside = way / np.linalg.norm(way), 0.02 * rng.normal(size=3)
            low, high = 0.0, 3.0
            for _ in range(26):
                middle = (low + high) / 2
                low, high = (low, middle) if oracle(way * middle + aside) > GAPS[i % len(GAPS)] else (middle, high)
            position, R = (way * high + aside).astype(np.float32), [r.astype(np.float32) for r in R]
            oracle.set((one, two), sizes, R)
            rows.append(((one, two), sizes, R, position, oracle(position.astype(float))))

    def side(k):
        half, radius, kind = zip(*(core(row[0][k], row[1][k]) for row in rows), strict=True)
        place = [row[3] if k == 0 else np.zeros(3) for row in rows]
        return Convex(
            half=jnp.asarray(half, jnp.float32).T,
            radius=jnp.asarray(radius, jnp.float32),
            kind=jnp.asarray(kind),
            position=jnp.asarray(place, jnp.float32).T,
            rotation=jnp.moveaxis(jnp.asarray([row[2][k] for row in rows]), 0, -1),
        )

    return side(0), side(1), np.array([row[4] for row in rows]), rows


def straight_gap(row):
    """Distance of two boxes or segments by least squares with bounds in double precision, and their radii."""
    (one, two), sizes, R, position, _ = row
    (half_a, radius_a, _), (half_b, radius_b, _) = core(one, sizes[0]), core(two, sizes[1])
    generators = np.concatenate([R[0] * np.array(half_a), R[1] * np.array(half_b)], axis=1).astype(float)
    found = lsq_linear(generators, position.astype(float), (-1.0 - 1e-12, 1.0 + 1e-12), tol=1e-14)
    return np.linalg.norm(found.fun) - radius_a - radius_b


look = jax.jit(lambda a, b: separation(a, b, SMOOTH))


@pytest.mark.parametrize("thin", [False, True], ids=["plain", "thin"])
def test_distances_are_mujocos(thin):
    """Apart: the distance. Overlapping: never less deep, and the depth itself where both are boxes, capsules or balls."""
    a, b, expected, rows = gathered(0, thin)
    found = np.asarray(look(a, b).distance)
    pierced = [set(row[0]) == {"box", "capsule"} and straight_gap(row) < -1e-4 for row in rows]
    for i in np.flatnonzero((np.abs(found - expected) > 1e-5) & pierced):
        assert found[i] <= straight_gap(rows[i]) + ROUNDING
    error = np.where(pierced, 0.0, found - expected)
    assert error.max() < 10 * ROUNDING
    apart = (expected > 0) & (expected < 0.11)
    assert apart.sum() > 0.6 * len(rows)
    assert error[apart].min() > (-3e-5 if thin else -1e-5), rows[np.argmin(np.where(apart, error, 0))]
    sure = (np.abs(expected) > 1e-5) & ~np.array(pierced)
    np.testing.assert_array_equal(np.sign(found[sure]), np.sign(expected[sure]))
    round_free = np.array([not {"cylinder", "ellipsoid"} & set(row[0]) for row in rows])
    assert np.abs(error[round_free & (expected < 0)]).max() < 1e-4


def test_bounds_are_projections_in_double_precision():
    """Boxes, capsules and balls apart, against bounded least squares."""
    a, b, _, rows = gathered(1, False)
    found = np.asarray(look(a, b).distance)
    straight = [i for i, row in enumerate(rows) if not {"cylinder", "ellipsoid"} & set(row[0])][::2]
    truth = np.array([straight_gap(rows[i]) for i in straight])
    cores = truth + np.array([a.radius[i] + b.radius[i] for i in straight])
    apart = cores > 1e-5
    assert apart.sum() > 30
    np.testing.assert_allclose(found[straight][apart], truth[apart], atol=1e-6)


def test_touching_points_are_on_the_bodies_and_as_far_apart_as_is_said():
    a, b, _, _ = gathered(2, False)
    found = look(a, b)
    gap = np.asarray(jnp.sum((found.on_a - found.on_b) * found.normal, axis=0) - a.radius - b.radius)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(found.normal), axis=0), 1, atol=1e-5)
    apart = np.asarray(found.distance + a.radius + b.radius) > 1e-3
    np.testing.assert_allclose(gap[apart], np.asarray(found.distance)[apart], atol=2e-6)
    for body, point in ((a, found.on_a), (b, found.on_b)):
        local = np.einsum("ijp,ip->jp", np.asarray(body.rotation), np.asarray(point - body.position))
        assert (np.abs(local) - np.asarray(body.half)).max() < 2e-5


def test_derivatives_are_those_of_differences():
    a, b, expected, _ = gathered(3, False)
    keep = np.flatnonzero((expected > 5e-3) & (expected < 0.1))[::5]
    a, b = a.take(keep), b.take(keep)

    def moved(move):
        angle, shift = move[:3], move[3:]
        K = jnp.array([[0, -angle[2], angle[1]], [angle[2], 0, -angle[0]], [-angle[1], angle[0], 0]])
        R = jax.scipy.linalg.expm(K)
        turned = jnp.einsum("ij,jkp->ikp", R, a.rotation)
        return distance(
            Convex(half=a.half, radius=a.radius, kind=a.kind, position=a.position + shift[:, None], rotation=turned),
            b,
            SMOOTH,
        )

    steps = 1e-3 * jnp.eye(6)
    values = jax.jit(jax.vmap(moved))(jnp.concatenate([steps, -steps]))
    differences = np.asarray((values[:6] - values[6:]) / 2e-3)
    forward = np.asarray(jax.jit(jax.jacfwd(moved))(jnp.zeros(6))).T
    off = np.abs(forward - differences).max(axis=0) > 5e-3
    assert off.mean() < 0.1  # where a face is parallel to another, or an edge, there are only one-sided derivatives
    reverse = np.asarray(jax.jit(jax.grad(lambda m: jnp.sum(moved(m))))(jnp.zeros(6)))
    np.testing.assert_allclose(reverse, forward.sum(axis=1), rtol=1e-4, atol=1e-3)


def test_shapes_of_scenes_are_bodies():
    """Balls near shapes: as `Shapes.distance` says."""
    R = np.asarray(turned(np.random.default_rng(0)), np.float32)
    scene = (
        shapes.box(jnp.array([0.1, 0.2, 0.05]), (0.3, 0.0, 0.1), R)
        | shapes.cylinder(0.1, 0.2, (-0.3, 0.1, 0.0), R)
        | shapes.capsule(0.05, 0.1, (0.0, 0.4, 0.0), R)
        | shapes.sphere(0.1, (0.0, 0.0, 0.5))
    )
    points = jax.random.uniform(jax.random.key(0), (50, 3), minval=-0.8, maxval=0.8)
    others = Convex.of(scene)

    def to(point):
        ones = jnp.ones(4)
        ball = Convex(
            half=jnp.zeros((3, 4)),
            radius=0.03 * ones,
            kind=jnp.zeros(4, jnp.int32),
            position=point[:, None] * ones,
            rotation=jnp.eye(3)[:, :, None] * ones,
        )
        return distance(ball, others)

    found, wanted = jax.jit(jax.vmap(to))(points), jax.vmap(scene.distance)(points) - 0.03
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_what_is_no_number_stays_none():
    a, b, _, _ = gathered(4, False)
    a, b = a.take(np.arange(4)), b.take(np.arange(4))
    bad = jax.tree.map(lambda leaf: leaf, a)
    bad = Convex(
        half=a.half, radius=a.radius, kind=a.kind, position=a.position.at[0, 1].set(jnp.nan), rotation=a.rotation
    )
    assert list(np.isnan(np.asarray(distance(bad, b)))) == [False, True, False, False]
