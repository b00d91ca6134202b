"""Rigid objects to be grasped, made of a few primitive parts.

A `GraspObject` is plain host data (NumPy): it can be sampled, laid on a table, and added to a MuJoCo model. Its `solid` is the same
geometry as a pytree with a signed distance, padded to a fixed number of parts so that objects can be stacked and mapped over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import shapes
from diffopt.geometry.shapes import Shapes
from diffopt.geometry.superquadric import Superquadric, hull_vertices

if TYPE_CHECKING:
    import mujoco

KINDS = ("box", "cylinder", "capsule", "sphere", "superquadric")
MAX_PARTS = 4
_FAR = 100.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One primitive in the object frame.

    `size` [m] by kind: box (half x, y, z); cylinder and capsule (radius, half length) about the part's z; sphere (radius,);
    superquadric (semi-axes) with `exponents`.
    """

    kind: str
    size: tuple[float, ...]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    exponents: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        expected = {"box": 3, "cylinder": 2, "capsule": 2, "sphere": 1, "superquadric": 3}
        if self.kind not in KINDS:
            raise ValueError(f"no part kind {self.kind!r}; there are: {', '.join(KINDS)}")
        if len(self.size) != expected[self.kind]:
            raise ValueError(f"a {self.kind} takes {expected[self.kind]} sizes [m], given {self.size}")

    @cached_property
    def hull(self) -> np.ndarray:
        """Vertices (n, 3) [m] of a superquadric's convex hull in the part's frame."""
        return hull_vertices(self.size, self.exponents) * 1.01  # halves the gap between hull and surface

    def shape(self) -> Shapes:
        """The part as one signed-distance shape; a superquadric as the rounded box around it."""
        p, R, s = self.position, self.rotation, self.size
        if self.kind == "box":
            return shapes.box(s, p, R)
        if self.kind == "cylinder":
            return shapes.cylinder(s[0], s[1], p, R)
        if self.kind == "capsule":
            return shapes.capsule(s[0], s[1], p, R)
        if self.kind == "sphere":
            return shapes.sphere(s[0], p)
        return shapes.box(s, p, R, rounding=min(s) * min(self.exponents))

    def support(self, down: np.ndarray) -> float:
        """Largest extent [m] of the part along the unit vector `down` (object frame), from the object's origin."""
        local, offset, s = self.rotation.T @ down, float(np.dot(self.position, down)), self.size
        if self.kind == "box":
            return offset + float(np.abs(local) @ np.asarray(s))
        if self.kind == "cylinder":
            return offset + s[0] * float(np.sqrt(max(0.0, 1 - local[2] ** 2))) + s[1] * abs(float(local[2]))
        if self.kind == "capsule":
            return offset + s[0] + s[1] * abs(float(local[2]))
        if self.kind == "sphere":
            return offset + s[0]
        return offset + float(np.max(self.hull @ local))

    def volume(self) -> float:
        """Volume [m^3]."""
        s = self.size
        if self.kind == "box":
            return 8 * s[0] * s[1] * s[2]
        if self.kind == "cylinder":
            return 2 * np.pi * s[0] ** 2 * s[1]
        if self.kind == "capsule":
            return np.pi * s[0] ** 2 * (2 * s[1] + 4 / 3 * s[0])
        if self.kind == "sphere":
            return 4 / 3 * np.pi * s[0] ** 3
        return (
            8 * s[0] * s[1] * s[2] * (0.52 + 0.48 * (1 - float(np.mean(self.exponents))))
        )  # between an ellipsoid and a box

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """About `n` points (m, 3) [m] on the surface, in the object frame, uniform by area (nearly so for superquadrics)."""
        s = self.size
        if self.kind == "box":
            half = np.asarray(s)
            area = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
            axis = rng.choice(3, n, p=area / area.sum())
            points = rng.uniform(-1, 1, (n, 3)) * half
            points[np.arange(n), axis] = rng.choice([-1, 1], n) * half[axis]
        elif self.kind in ("cylinder", "capsule"):
            r, h = s
            cap = r / 2 if self.kind == "cylinder" else r  # area of both ends over that of the side, times h
            side = rng.uniform(size=n) < 2 * h / (2 * h + 2 * cap)
            angle = rng.uniform(0, 2 * np.pi, n)
            around = np.stack([np.cos(angle), np.sin(angle)], 1)
            tube = np.concatenate([r * around, rng.uniform(-h, h, (n, 1))], 1)
            sign = rng.choice([-1.0, 1.0], n)
            if self.kind == "cylinder":
                end = np.concatenate([r * np.sqrt(rng.uniform(size=(n, 1))) * around, (sign * h)[:, None]], 1)
            else:
                ball = _directions(n, rng) * r
                end = ball + np.stack([0 * sign, 0 * sign, np.where(ball[:, 2] >= 0, h, -h)], 1)
            points = np.where(side[:, None], tube, end)
        elif self.kind == "sphere":
            points = _directions(n, rng) * s[0]
        else:
            from diffopt.geometry.superquadric import surface_points

            points = surface_points(s, self.exponents, _directions(n, rng))
        return points @ self.rotation.T + np.asarray(self.position)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Solid:
    """The geometry of one object as data: a union of `MAX_PARTS` shapes (missing ones lie far away) and one superquadric."""

    parts: Shapes
    superquadric: Superquadric
    is_superquadric: Float[Array, ""]
    center: Float[Array, "3"]
    radius: Float[Array, ""]

    def distance(self, point: Float[Array, "3"]) -> Float[Array, ""]:
        """Signed distance [m] to the object, negative inside (inside overlapping parts a lower bound in depth)."""
        union = jnp.min(self.parts.distance(point))
        return jnp.where(self.is_superquadric > 0.5, self.superquadric.distance(point), union)


@dataclass(frozen=True, kw_only=True)
class GraspObject:
    """A rigid object: its parts in the object frame, mass [kg], stable rests and symmetries.

    `rests` are unit vectors in the object frame that may point down when it lies on a table. `symmetries` are rotation matrices of
    the object frame that map the object to itself (identity included); `axis_symmetric` objects may also be turned about z at will.
    """

    name: str
    family: str
    parts: tuple[Part, ...]
    mass: float
    rests: tuple[tuple[float, float, float], ...]
    symmetries: tuple[np.ndarray, ...] = ()
    axis_symmetric: bool = False

    def __post_init__(self):
        if not 1 <= len(self.parts) <= MAX_PARTS:
            raise ValueError(f"object {self.name!r} has {len(self.parts)} parts; 1 to {MAX_PARTS} are possible")
        if any(p.kind == "superquadric" for p in self.parts) and len(self.parts) > 1:
            raise ValueError(f"object {self.name!r}: a superquadric stands alone")

    @property
    def shapes(self) -> Shapes:
        """The parts as signed-distance shapes in the object frame."""
        out = self.parts[0].shape()
        for part in self.parts[1:]:
            out = out | part.shape()
        return out

    @cached_property
    def center_of_mass(self) -> np.ndarray:
        """Centre of mass (3,) [m] at uniform density (parts weighted by volume, as MuJoCo does)."""
        volume = np.array([p.volume() for p in self.parts])
        return volume @ np.array([p.position for p in self.parts]) / volume.sum()

    @cached_property
    def bounds(self) -> np.ndarray:
        """Axis-aligned bounding box ((lower), (upper)) [m] in the object frame."""
        eye = np.eye(3)
        return np.array(
            [
                [-max(p.support(-e) for p in self.parts) for e in eye],
                [max(p.support(e) for p in self.parts) for e in eye],
            ]
        )

    @cached_property
    def solid(self) -> Solid:
        own = self.shapes
        missing = MAX_PARTS - len(self.parts)
        if missing:
            far = shapes.sphere(0.0, (_FAR, _FAR, _FAR))
            own = jax.tree.map(lambda a, b: jnp.concatenate([a] + [b] * missing), own, far)
        one = self.parts[0] if self.parts[0].kind == "superquadric" else None
        quadric = Superquadric(
            axes=jnp.asarray(one.size if one else (1.0, 1.0, 1.0), jnp.float32),
            exponents=jnp.asarray(one.exponents if one else (1.0, 1.0), jnp.float32),
        )
        corner = np.maximum(np.abs(self.bounds[0] - self.center_of_mass), np.abs(self.bounds[1] - self.center_of_mass))
        return Solid(
            parts=own,
            superquadric=quadric,
            is_superquadric=jnp.asarray(float(one is not None)),
            center=jnp.asarray(self.center_of_mass, jnp.float32),
            radius=jnp.asarray(np.linalg.norm(corner), jnp.float32),
        )

    def support(self, down) -> float:
        """Largest extent [m] along the unit vector `down` of the object frame, from the object's origin."""
        return max(p.support(np.asarray(down, float)) for p in self.parts)

    def surface(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """`n` points and outward unit normals (n, 3) on the outer surface, in the object frame [m]."""
        rng = np.random.default_rng(seed)
        volume = np.array([p.volume() for p in self.parts]) ** (2 / 3)
        counts = np.ceil(4 * n * volume / volume.sum()).astype(int)
        points = np.concatenate([p.sample(c, rng) for p, c in zip(self.parts, counts, strict=True)])
        if len(self.parts) > 1:
            depth = np.stack([part_distance(p, points) for p in self.parts])
            points = points[np.min(depth, axis=0) > -1e-6]
        points = points[rng.permutation(len(points))[:n]]
        distances = np.stack([part_distance(p, points) for p in self.parts])
        owner = np.argmin(np.abs(distances), axis=0)
        normals = np.zeros_like(points)
        for i, part in enumerate(self.parts):
            mine = owner == i
            for axis in range(3):
                step = np.zeros(3)
                step[axis] = 1e-4
                normals[mine, axis] = part_distance(part, points[mine] + step) - part_distance(
                    part, points[mine] - step
                )
        return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)

    def scaled(self, factor: float) -> GraspObject:
        """The object with all lengths multiplied by `factor`, at the same density."""
        parts = tuple(
            replace(p, size=tuple(factor * v for v in p.size), position=tuple(factor * v for v in p.position))
            for p in self.parts
        )
        return replace(self, parts=parts, mass=self.mass * factor**3)

    def add_to(self, spec: mujoco.MjSpec, *, name: str | None = None, mass: float | None = None, free: bool = True):
        """Add the object to a MuJoCo spec as one body with named geoms.

        Args:
          name: body name, and prefix of its geoms (default: the object's name).
          mass: total mass [kg] (default: the object's), shared among the parts by volume.
          free: whether the body gets a free joint, `<name>_free`.
        Returns:
          The new `MjsBody`; set its `pos` and `quat`, or the free joint's qpos.
        """
        import mujoco

        kinds = dict(
            zip(KINDS, ("mjGEOM_BOX", "mjGEOM_CYLINDER", "mjGEOM_CAPSULE", "mjGEOM_SPHERE", "mjGEOM_MESH"), strict=True)
        )
        name = name or self.name
        body = spec.worldbody.add_body(name=name)
        if free:
            body.add_freejoint(name=f"{name}_free")
        volume = np.array([p.volume() for p in self.parts])
        for i, part in enumerate(self.parts):
            options = dict(
                name=f"{name}_{i}", mass=float((self.mass if mass is None else mass) * volume[i] / volume.sum())
            )
            options |= dict(
                pos=list(part.position), quat=_quaternion(part.rotation), type=getattr(mujoco.mjtGeom, kinds[part.kind])
            )
            if part.kind == "superquadric":
                spec.add_mesh(name=f"{name}_{i}", uservert=part.hull.astype(np.float32).ravel())
                body.add_geom(meshname=f"{name}_{i}", **options)
            else:
                body.add_geom(size=list(part.size) + [0.0] * (3 - len(part.size)), **options)
        return body


def part_distance(part: Part, points: np.ndarray) -> np.ndarray:
    """Signed distances (n,) [m] of `points` (n, 3) of the object frame to one part, on the host in double precision."""
    p = (points - np.asarray(part.position)) @ part.rotation
    s = part.size
    if part.kind == "superquadric":
        q = np.abs(p / np.asarray(s)) + 1e-9
        e1, e2 = part.exponents
        value = ((q[:, 0] ** (2 / e2) + q[:, 1] ** (2 / e2)) ** (e2 / e1) + q[:, 2] ** (2 / e1)) ** (e1 / 2)
        return (value - 1) * np.linalg.norm(p, axis=1) / np.maximum(value, 1e-9)  # along the ray from the centre
    if part.kind == "sphere":
        return np.linalg.norm(p, axis=1) - s[0]
    if part.kind == "capsule":
        p[:, 2] -= np.clip(p[:, 2], -s[1], s[1])
        return np.linalg.norm(p, axis=1) - s[0]
    if part.kind == "cylinder":
        q = np.stack([np.linalg.norm(p[:, :2], axis=1) - s[0], np.abs(p[:, 2]) - s[1]], 1)
    else:
        q = np.abs(p) - np.asarray(s)
    return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(1), 0)


def stack(objects: list[GraspObject]) -> Solid:
    """The solids of several objects stacked along a leading axis, to map over."""
    if not objects:
        raise ValueError("no objects to stack")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *[o.solid for o in objects])


def _directions(n: int, rng: np.random.Generator) -> np.ndarray:
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def _quaternion(rotation: np.ndarray) -> list[float]:
    """Quaternion (w x y z) of a rotation matrix, for MuJoCo."""
    import mujoco

    out = np.zeros(4)
    mujoco.mju_mat2Quat(out, np.ascontiguousarray(rotation, float).ravel())
    return out.tolist()
