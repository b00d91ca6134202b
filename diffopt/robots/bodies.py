"""Collision bodies of a robot: spheres that cover its collision geoms.

A cover is conservative: every point of the geom lies in some sphere. Its overshoot, how far a sphere reaches outside of the geom, is
at most the tolerance that was asked for, unless that took more spheres than allowed; it is always stated. For a capsule of radius r
and half length h, n spheres of radius r + e with centres at equal steps on the axis, the outer ones at -(h - e) and h - e, cover it
when

    (r + e)^2 >= r^2 + ((h - e) / (n - 1))^2.

A box is cut into equal cells, each in its circumscribed sphere; a cylinder into equal slices, and each slice's disc covered by the
best known 1, 3, 4 or 7 equal discs. A mesh is covered by spheres of several sizes (see `meshes`), an ellipsoid as a polytope around it, a
flat mesh as the box around it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Float

from diffopt.robots.kinematics import Frames
from diffopt.robots.meshes import cover_mesh

if TYPE_CHECKING:
    import mujoco

TOLERANCE = 0.005  # overshoot that is allowed unless another is given [m]
MOST = 24  # spheres per geom, likewise

# Covering the unit disc with k equal discs: their radius, and the distance of the outer centres from the middle (Kershner 1939).
_DISCS = {1: (1.0, 0.0), 3: (np.sqrt(3) / 2, 0.5), 4: (np.sqrt(0.5), np.sqrt(0.5)), 7: (0.5, np.sqrt(3) / 2)}


@dataclass(frozen=True, kw_only=True)
class Spheres:
    """Spheres fixed to bodies of a kinematic tree; hashable, without arrays, so it is static under `jit`.

    Attributes:
      center: centres in their body's frame [m].
      radius: [m].
      body: index of the body of each sphere, in the order of the kinematics.
      overshoot: per sphere, how far it may reach outside of the geom that it covers [m].
      geom: index in the model of that geom.
    """

    center: tuple[tuple[float, float, float], ...]
    radius: tuple[float, ...]
    body: tuple[int, ...]
    overshoot: tuple[float, ...]
    geom: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.radius)

    @cached_property
    def _hash(self) -> int:
        return hash((self.center, self.radius, self.body))

    def __hash__(self) -> int:
        return self._hash

    @property
    def radii(self) -> Float[np.ndarray, "S"]:
        return np.asarray(self.radius, np.float32)

    def take(self, keep) -> Spheres:
        """The spheres at the indices `keep`."""

        def pick(values):
            return tuple(values[int(i)] for i in keep)

        return Spheres(
            center=pick(self.center),
            radius=pick(self.radius),
            body=pick(self.body),
            overshoot=pick(self.overshoot),
            geom=pick(self.geom),
        )

    def place(self, frames: Frames) -> Float[Array, "3 S"]:
        """Centres in the frame in which `frames` are given [m], one row per coordinate (so that loops run over spheres)."""
        body = np.asarray(self.body, np.int32)
        local = np.asarray(self.center, np.float32).reshape(-1, 3)
        R, p = frames.rotation[body], frames.position[body]
        return (p + sum(R[:, :, k] * local[:, k, None] for k in range(3))).T

    @staticmethod
    def from_model(
        model: mujoco.MjModel, *, tolerance: float | dict[str, float] = TOLERANCE, most: int = MOST
    ) -> Spheres:
        """Cover the collision geoms (those with a contype or conaffinity) of all bodies but the world.

        Args:
          tolerance: overshoot allowed [m]; or by body name, with "" for all other bodies.
          most: at most so many spheres per geom, whatever the overshoot (flat faces need many).
        """
        centers, radii, bodies, overshoots, geoms = [], [], [], [], []
        for g in range(model.ngeom):
            b = int(model.geom_bodyid[g])
            if b == 0 or not (model.geom_contype[g] or model.geom_conaffinity[g]):
                continue
            allowed = tolerance
            if isinstance(tolerance, dict):
                allowed = tolerance.get(model.body(b).name, tolerance.get("", TOLERANCE))
            local, radius, overshoot = cover_geom(model, g, allowed, most)
            position, rotation = model.geom_pos[g], rotation_of(model.geom_quat[g])
            for c, r in zip(local @ rotation.T + position, np.broadcast_to(radius, len(local)), strict=True):
                centers.append(tuple(float(np.float32(v)) for v in c))
                radii.append(float(r))
                bodies.append(b)
                overshoots.append(float(overshoot))
                geoms.append(g)
        order = np.argsort(bodies, kind="stable")
        return Spheres(
            center=tuple(centers),
            radius=tuple(radii),
            body=tuple(bodies),
            overshoot=tuple(overshoots),
            geom=tuple(geoms),
        ).take(order)


Cover = tuple[np.ndarray, Any, float]  # centres (n, 3), radius or radii (n,), overshoot


def cover_geom(model: mujoco.MjModel, geom: int, tolerance: float, most: int = MOST) -> Cover:
    """Cover one geom of a model, in the geom's frame."""
    import mujoco

    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return np.zeros((1, 3)), float(size[0]), 0.0
    if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
        return cover_capsule(size[0], size[1], tolerance, most)
    if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
        return cover_cylinder(size[0], size[1], tolerance, most)
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        return cover_box(size, tolerance, most)
    if kind == mujoco.mjtGeom.mjGEOM_ELLIPSOID:
        return cover_ellipsoid(size, tolerance, most)
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        first, count = model.mesh_vertadr[model.geom_dataid[geom]], model.mesh_vertnum[model.geom_dataid[geom]]
        cover = cover_mesh(model.mesh_vert[first : first + count], tolerance, most)
        if cover is not None:
            return cover
    centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
    if not np.all(np.isfinite(half)) or np.any(half > 1e3):
        raise ValueError(
            f"geom {model.geom(geom).name!r} of a robot is unbounded; give its contype and conaffinity the value 0"
        )
    centers, radius, overshoot = cover_box(half, tolerance, most)
    return centers + centre, radius, overshoot


def cover_capsule(radius: float, half: float, tolerance: float, most: int = MOST) -> Cover:
    """Fewest spheres that cover a capsule along z within `tolerance` [m]; see the top of the file."""
    if half <= 1e-9:
        return np.zeros((1, 3)), radius, 0.0
    for n in itertools.count(1):
        if n == 1:
            e = half
        else:  # (r + e)^2 = r^2 + (h - e)^2 / m^2, m = n - 1: a quadratic in e
            m2 = float((n - 1) ** 2)
            if m2 == 1.0:
                e = half**2 / (2 * radius + 2 * half)
            else:
                a, b, c = 1 - 1 / m2, 2 * radius + 2 * half / m2, -(half**2) / m2
                e = (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)
        if e <= tolerance or n >= most:
            z = np.linspace(-(half - e), half - e, n) if n > 1 else np.zeros(1)
            return np.stack([0 * z, 0 * z, z], axis=1), radius + e * (1 + 1e-6), e
    raise AssertionError


def cover_cylinder(radius: float, half: float, tolerance: float, most: int = MOST) -> Cover:
    """Few spheres that cover a cylinder about z within `tolerance` [m]: slices times discs."""
    best = None
    for k, (rho, out) in _DISCS.items():
        for n in range(1, 65):
            reach = np.hypot(rho * radius, half / n)
            e = max(out * radius + reach - radius, reach - half / n)
            good = e <= tolerance
            score = (not good, k * n if good else e)
            if (k * n <= most or k * n == 1) and (best is None or score < best[0]):
                best = (score, k, n, reach, e)
    assert best is not None  # one cell is always allowed
    _, k, n, reach, e = best
    around = np.arange(k if k < 7 else 6) * 2 * np.pi / (k if k < 7 else 6)
    disc = _DISCS[k][1] * radius * np.stack([np.cos(around), np.sin(around)], axis=1)
    if k == 7:
        disc = np.concatenate([disc, np.zeros((1, 2))])
    z = (np.arange(n) + 0.5) * (2 * half / n) - half
    grid = [np.array([*xy, level]) for level in z for xy in disc]
    return np.stack(grid), float(reach) * (1 + 1e-6), float(e)


def cover_ellipsoid(axes, tolerance: float, most: int = MOST) -> Cover:
    """Spheres that cover an ellipsoid with these semi-axes [m]: those of a polytope around it, by which it is the less exact."""
    axes = np.asarray(axes, float)
    corners, further = _around_a_ball()
    spare = (further - 1) * float(axes.max())
    cover = cover_mesh(corners * axes, max(tolerance - spare, 0.25 * tolerance), most)
    centers, radius, overshoot = cover_box(axes, tolerance, most) if cover is None else cover
    return centers, radius, overshoot + spare


@cache
def _around_a_ball() -> tuple[np.ndarray, float]:
    """Corners of a polytope that holds the unit ball, all equally far from its middle; and how far."""
    from scipy.spatial import ConvexHull

    n = 160
    z = 1 - (2 * np.arange(n) + 1) / n
    around = np.pi * (3 - np.sqrt(5)) * np.arange(n)  # the golden angle
    points = np.stack([np.sqrt(1 - z**2) * np.cos(around), np.sqrt(1 - z**2) * np.sin(around), z], axis=1)
    further = 1 / float(np.min(-ConvexHull(points).equations[:, 3]))
    return points * further, further


def cover_box(half, tolerance: float, most: int = MOST) -> Cover:
    """Few spheres that cover a box within `tolerance` [m]: a grid of cells, near cubes."""
    half = np.asarray(half, float)
    best = None
    steps = np.unique(np.concatenate([np.linspace(half.min() / 8, half.max(), 200), half]))
    for side in steps[::-1]:  # half size of a cell
        counts = np.maximum(1, np.ceil(half / side - 1e-9)).astype(int)
        reach = float(np.linalg.norm(half / counts))
        e = reach - float(np.min(half / counts))
        good, total = e <= tolerance, int(counts.prod())
        score = (not good, total if good else e)
        if (total <= most or total == 1) and (best is None or score < best[0]):
            best = (score, counts, reach, e)
    assert best is not None  # one cell is always allowed
    _, counts, reach, e = best
    axes = [(np.arange(n) + 0.5) * (2 * h / n) - h for n, h in zip(counts, half, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3), reach * (1 + 1e-6), e


def rotation_of(quaternion) -> np.ndarray:
    """The rotation matrix of a unit quaternion (w, x, y, z)."""
    import mujoco

    out = np.zeros(9)
    mujoco.mju_quat2Mat(out, np.asarray(quaternion, float))
    return out.reshape(3, 3)
