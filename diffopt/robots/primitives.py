"""Collision bodies of a robot as they are in its file: balls, capsules, boxes, cylinders and ellipsoids, exactly.

Meshes stand here as the spheres that cover them (see `bodies`), each of which is a ball with a stated overshoot. The spheres that cover a
primitive stay known: their distances are cheap lower bounds of its own, by which most pairs are ruled out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffopt.geometry.convex import BOX, CYLINDER, ELLIPSOID, SMOOTH, STEPS, Convex, separation
from diffopt.robots.bodies import Spheres, rotation_of
from diffopt.robots.kinematics import Frames

if TYPE_CHECKING:
    import mujoco

Triple = tuple[float, float, float]
_LANES = 8192  # pairs that `overlapping` looks at in one call


@dataclass(frozen=True, kw_only=True)
class Primitives:
    """Convex bodies fixed to bodies of a kinematic tree; hashable, without arrays, so it is static under `jit`.

    Attributes:
      half, radius, kind: as in `Convex` [m].
      center, rotation: of each in the frame of its body [m].
      body: index of the body of each, in the order of the kinematics.
      overshoot: per primitive, how far it may reach outside of the geom; zero except for the spheres that cover meshes [m].
      cover: indices of the spheres of `Spheres.from_model` that cover each, which follow each other.
    """

    half: tuple[Triple, ...]
    radius: tuple[float, ...]
    kind: tuple[int, ...]
    center: tuple[Triple, ...]
    rotation: tuple[tuple[Triple, Triple, Triple], ...]
    body: tuple[int, ...]
    overshoot: tuple[float, ...]
    cover: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.radius)

    @cached_property
    def _hash(self) -> int:
        return hash((self.half, self.radius, self.center, self.rotation, self.body))

    def __hash__(self) -> int:
        return self._hash

    def take(self, keep) -> Primitives:
        """The primitives at the indices `keep`."""
        fields = {f.name: tuple(getattr(self, f.name)[int(i)] for i in keep) for f in dataclasses.fields(self)}
        return Primitives(**fields)

    @property
    def steps(self) -> int:
        """How many steps `separation` needs."""
        return SMOOTH if ELLIPSOID in self.kind else STEPS

    def place(self, frames: Frames) -> Convex:
        """The bodies in the frame in which `frames` are given."""
        body = np.asarray(self.body, np.int32)
        return self.at(frames.position[body], frames.rotation[body])

    def at(self, position: Float[Array, "P 3"], rotation: Float[Array, "P 3 3"]) -> Convex:
        """The bodies where the frames of their own bodies are given."""
        center, turn = np.asarray(self.center, np.float32), np.asarray(self.rotation, np.float32)
        place = position + sum(rotation[:, :, k] * center[:, k, None] for k in range(3))
        turned = sum(rotation[:, :, k, None] * turn[:, None, k] for k in range(3))
        return Convex(
            half=jnp.asarray(np.asarray(self.half, np.float32).T),
            radius=jnp.asarray(self.radius, jnp.float32),
            kind=jnp.asarray(self.kind, jnp.int32),
            position=place.T,
            rotation=jnp.moveaxis(turned, 0, -1),
        )

    def moved(self, position: Float[np.ndarray, "N B 3"], rotation: Float[np.ndarray, "N B 3 3"]) -> tuple[int, ...]:
        """Indices of those that are not the same in all of N sets of poses of all bodies (one that turns about its own axis is)."""
        out = []
        for i, b in enumerate(self.body):
            half, turn = np.array(self.half[i]), np.array(self.rotation[i])
            turning = half > 0
            if self.kind[i] == CYLINDER:
                turning[:2] = False
            marks = np.array(self.center[i]) + np.stack([0 * half, *(turn * half * turning).T])
            placed = np.einsum("nij,kj->nki", rotation[:, b], marks) + position[:, b, None]
            if np.ptp(placed, axis=0).max() > 1e-6:
                out.append(i)
        return tuple(out)

    def overlapping(
        self, pairs: list[tuple[int, int]], position: Float[np.ndarray, "N B 3"], rotation: Float[np.ndarray, "N B 3 3"]
    ) -> Bool[np.ndarray, "N"]:
        """Whether any of some pairs of primitives overlap, in each of N sets of poses of all bodies."""
        one, two = (np.array([pair[i] for pair in pairs]) for i in range(2))
        count = len(position) * len(pairs)
        rows, columns = np.divmod(np.arange(-(-count // _LANES) * _LANES) % max(count, 1), len(pairs))
        depth = []
        for start in range(0, count, _LANES):
            n, k = rows[start : start + _LANES], columns[start : start + _LANES]
            bodies = [self._lanes(side[k], position[n], rotation[n]) for side in (one, two)]
            depth.append(np.asarray(_distances(*bodies, self.steps)))
        flat = np.concatenate([*depth, np.zeros(0)])[:count]
        return np.any(flat.reshape(len(position), len(pairs)) < 0, axis=1)

    def _lanes(self, which: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> Convex:
        """Some primitives, each at its own set of poses."""
        body, lane = np.array(self.body)[which], np.arange(len(which))
        R, p = rotation[lane, body], position[lane, body]
        place = p + np.einsum("nij,nj->ni", R, np.array(self.center)[which])
        turned = np.einsum("nij,njk->nik", R, np.array(self.rotation)[which])
        rows = np.array(self.half)[which].T, np.array(self.radius)[which], place.T, np.moveaxis(turned, 0, -1)
        half, radius, position, rotation = (row.astype(np.float32) for row in rows)
        kind = np.array(self.kind, np.int32)[which]
        return Convex(half=half, radius=radius, kind=kind, position=position, rotation=rotation)

    @staticmethod
    def from_model(model: mujoco.MjModel, spheres: Spheres) -> Primitives:
        """The geoms that `spheres` cover.

        Args:
          spheres: of the same model.
        """
        found: list[tuple] = []
        for g in dict.fromkeys(spheres.geom):
            cover = tuple(i for i, geom in enumerate(spheres.geom) if geom == g)
            core = _core(model, g)
            if core is None:
                points: list[tuple[Any, ...]] = [
                    (*_ball(spheres.radius[i]), spheres.center[i], np.eye(3), (i,)) for i in cover
                ]
            else:
                points = [(*core, model.geom_pos[g], rotation_of(model.geom_quat[g]), cover)]
            for half, radius, kind, center, rotation, spheres_of in points:
                over = spheres.overshoot[spheres_of[0]] if core is None else 0.0
                place = _floats(center), tuple(_floats(row) for row in rotation)
                body = spheres.body[spheres_of[0]]
                found.append((_floats(half), float(radius), kind, *place, body, over, spheres_of))
        columns: list[Any] = [tuple(column) for column in zip(*found, strict=True)] if found else [()] * 8
        names = [f.name for f in dataclasses.fields(Primitives)]
        return Primitives(**dict(zip(names, columns, strict=True)))


def _core(model: mujoco.MjModel, geom: int) -> tuple[Triple, float, int] | None:
    """Half extents, radius and kind of a geom; None if it is no primitive."""
    import mujoco

    size, kinds = model.geom_size[geom], mujoco.mjtGeom
    match model.geom_type[geom]:
        case kinds.mjGEOM_SPHERE:
            return _ball(size[0])
        case kinds.mjGEOM_CAPSULE:
            return (0.0, 0.0, size[1]), size[0], BOX
        case kinds.mjGEOM_BOX:
            return tuple(size), 0.0, BOX
        case kinds.mjGEOM_CYLINDER:
            return (size[0], size[0], size[1]), 0.0, CYLINDER
        case kinds.mjGEOM_ELLIPSOID:
            return tuple(size), 0.0, ELLIPSOID
    return None


def _ball(radius: float) -> tuple[Triple, float, int]:
    return (0.0, 0.0, 0.0), radius, BOX


def _floats(values) -> tuple:
    return tuple(float(np.float32(v)) for v in values)


@partial(jax.jit, static_argnums=2)
def _distances(a: Convex, b: Convex, steps: int) -> Float[Array, "P"]:
    return separation(a, b, steps).distance
