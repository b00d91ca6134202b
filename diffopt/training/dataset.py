"""Training set of a grasp prior: grasps of all shards, features of their objects, and the objects' symmetries.

If S maps an object to itself and (R, x) is a good wrist pose for it, so is (S R, S x), with the same joints. Every time a grasp is
drawn, it is turned by a random symmetry of its object; bodies of revolution also by a random angle about their axis.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.geometry import rotation_to_6d
from diffopt.plans import Grasp
from diffopt.policies.networks import basis_point_distances
from diffopt.policies.view import Foot
from diffopt.scenes.solids import GraspObject
from diffopt.training.data import shard_objects

POINTS = 1024  # surface points of an object, as scenes give them
VIEWS = 3  # independent samplings of each object's surface
_MOST_SYMMETRIES = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GraspData:
    """N grasps of M objects, in the objects' frames.

    Attributes:
      position, rotation: wrist [m].
      joints, squeeze: [rad].
      which: object of each grasp.
      features: basis-point distances [m] of each object, for each view.
      foot: the objects' feet, their cells one after the other.
      symmetries: rotation matrices, padded by repetition.
      revolution: whether the object is a body of revolution about z.
      first, count: rows of each object's grasps (those of one object stand together); objects without grasps are left out.
      sampled: what a prior had sampled, where the grasps are repairs of such samples.
    """

    position: Float[Array, "N 3"]
    rotation: Float[Array, "N 3 3"]
    joints: Float[Array, "N J"]
    squeeze: Float[Array, "N J"]
    which: Int[Array, "N"]
    features: Float[Array, "M V B"]
    foot: Foot
    symmetries: Float[Array, "M 4 3 3"]
    revolution: Bool[Array, "M"]
    first: Int[Array, "K"]
    count: Int[Array, "K"]
    sampled: Grasp | None = None

    def __len__(self) -> int:
        return self.which.shape[0]

    def draw(self, key, n: int) -> Drawn:
        """`n` random grasps, randomly turned.

        Half are drawn uniformly from all grasps; the others from an object drawn first, so that objects with few grasps count too.
        """
        k_row, k_object, k_half, k_view, k_symmetry, k_angle = jax.random.split(key, 6)
        owner = jax.random.randint(k_object, (n,), 0, self.first.shape[0])
        share = jax.random.uniform(k_row, (n,))
        within = self.first[owner] + (share * self.count[owner]).astype(jnp.int32)
        any_row = jnp.minimum((share * len(self)).astype(jnp.int32), len(self) - 1)
        row = jnp.where(jax.random.bernoulli(k_half, shape=(n,)), any_row, within)
        which = self.which[row]
        S = self.symmetries[which, jax.random.randint(k_symmetry, (n,), 0, _MOST_SYMMETRIES)]
        angle = jnp.where(self.revolution[which], jax.random.uniform(k_angle, (n,), maxval=2 * jnp.pi), 0.0)
        c, s, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros(n), jnp.ones(n)
        turn = (
            jnp.stack([jnp.stack([c, -s, zero], -1), jnp.stack([s, c, zero], -1), jnp.stack([zero, zero, one], -1)], -2)
            @ S
        )

        def vectors(grasp) -> Float[Array, "n dim"]:
            position = jnp.einsum("nij,nj->ni", turn, grasp.position[row])
            rotation = rotation_to_6d(turn @ grasp.rotation[row])
            return jnp.concatenate([position, rotation, grasp.joints[row], grasp.squeeze[row]], axis=-1)

        view = jax.random.randint(k_view, (n,), 0, self.features.shape[1])
        foot = Foot(
            cells=self.foot.cells,
            first=self.foot.first[which],
            lower=self.foot.lower[which],
            step=self.foot.step[which],
        )
        sampled = None if self.sampled is None else vectors(self.sampled)
        return Drawn(vector=vectors(self), sampled=sampled, features=self.features[which, view], foot=foot)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A batch of grasps, as vectors laid out as in `diffopt.plans.GraspSpec`, and what is known of their objects.

    Attributes:
      vector: the grasps.
      sampled: the samples that they repair, if they do.
      features: basis-point distances [m].
      foot: the objects' feet; all but the cells have a leading axis.
    """

    vector: Float[Array, "n dim"]
    sampled: Float[Array, "n dim"] | None
    features: Float[Array, "n B"]
    foot: Foot


def basis_points(n: int = 512, radius: float = 0.12, far: int = 96, distance: float = 0.5) -> Float[np.ndarray, "n 3"]:
    """Basis points about the object's origin [m]; the same in every run.

    `far` of them lie on a sphere of radius `distance`: the distance of such a point to the surface is, to first order, `distance`
    minus the object's support function in its direction, so these features are the object's extents. The others are uniform in a
    ball of radius `radius` and tell the shape.
    """
    far = min(far, n // 2)
    rng = np.random.default_rng(0)
    v = rng.normal(size=(n - far, 3))
    v *= radius * rng.uniform(size=(n - far, 1)) ** (1 / 3) / np.linalg.norm(v, axis=1, keepdims=True)
    axes = np.concatenate([np.eye(3), -np.eye(3)])[:far]
    i = np.arange(far - len(axes)) + 0.5
    z = 1 - 2 * i / max(len(i), 1)
    angle = np.pi * (1 + 5**0.5) * i
    spiral = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    return np.concatenate([distance * axes, distance * spiral, v]).astype(np.float32)


def object_features(
    objects: list[GraspObject], basis: Float[np.ndarray, "B 3"], views: int = VIEWS
) -> Float[np.ndarray, "M V B"]:
    """Basis-point distances [m] of objects, for `views` samplings of their surfaces."""
    measure = jax.jit(basis_point_distances)
    return np.stack(
        [
            np.stack(
                [
                    np.asarray(measure(basis, jnp.asarray(o.surface(POINTS, seed=v)[0], jnp.float32)))
                    for v in range(views)
                ]
            )
            for o in objects
        ]
    )


def object_feet(objects: list[GraspObject]) -> Foot:
    """The feet of objects, of one sampling of their surfaces; `first`, `lower` and `step` have a leading axis."""
    feet = [Foot.of(jnp.asarray(o.surface(POINTS)[0], jnp.float32)) for o in objects]
    cells = np.concatenate([np.asarray(f.cells, np.float16) for f in feet])
    rows = len(feet[0].cells)
    return Foot(
        cells=jnp.asarray(cells),
        first=jnp.arange(len(feet), dtype=jnp.int32) * rows,
        lower=jnp.stack([f.lower for f in feet]),
        step=jnp.stack([f.step for f in feet]),
    )


def load_data(folder: str | Path, basis: Float[np.ndarray, "B 3"], sample_weight: int = 1) -> tuple[GraspData, dict]:
    """All shards of a folder, all of repairs or none, and what to write on a card about them.

    Args:
      sample_weight: how many times a grasp counts that a prior has proposed (see `make_shards`), against one synthesised.
    """
    paths = sorted(Path(folder).glob("shard_*.npz"))
    if not paths:
        raise FileNotFoundError(f"no shards in {folder}; make some: python -m experiments.synthesize folder={folder}")
    parts = ("position", "rotation", "joints", "squeeze")
    columns: dict[str, list] = {name: [] for name in (*parts, "which")}
    objects: list[GraspObject] = []
    protocols, versions, tried, sources = set(), {}, 0, {}
    for path in paths:
        shard = np.load(path)
        about = json.loads(str(shard["about"]))
        source = about.get("source", "synthesis")
        if "sampled_joints" in shard:
            columns |= {name: columns.get(name, []) for name in (f"sampled_{part}" for part in parts)}
        for name in columns:
            rows = shard[name] + (len(objects) if name == "which" else 0)
            columns[name].append(rows if source == "synthesis" else np.repeat(rows, sample_weight, axis=0))
        objects += shard_objects(about["index"], about["seed"], about["objects"])[0]
        protocols.add(about["config"]["protocol"])
        versions = about["versions"]
        tried += about["starts"]
        sources[source] = sources.get(source, 0) + len(shard["which"])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.argsort(arrays["which"], kind="stable")
    arrays = {name: a[order] for name, a in arrays.items()}
    _, first, count = np.unique(arrays["which"], return_index=True, return_counts=True)
    identity = [np.eye(3)]
    symmetries = np.stack(
        [np.resize(np.stack(list(o.symmetries) or identity), (_MOST_SYMMETRIES, 3, 3)) for o in objects]
    )
    sampled = {part: jnp.asarray(arrays.pop(f"sampled_{part}")) for part in parts if f"sampled_{part}" in arrays}
    data = GraspData(
        **{name: jnp.asarray(a, jnp.int32 if name == "which" else jnp.float32) for name, a in arrays.items()},
        sampled=Grasp(**sampled) if sampled else None,
        features=jnp.asarray(object_features(objects, basis)),
        foot=object_feet(objects),
        symmetries=jnp.asarray(symmetries, jnp.float32),
        revolution=jnp.asarray([o.axis_symmetric for o in objects]),
        first=jnp.asarray(first, jnp.int32),
        count=jnp.asarray(count, jnp.int32),
    )
    about = dict(
        grasps=sum(sources.values()),
        objects=len(first),
        sources=sources,
        sample_weight=sample_weight,
        starts=tried,
        shards=len(paths),
        protocols=sorted(protocols),
        versions=versions,
    )
    return data, about
