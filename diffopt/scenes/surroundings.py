"""Obstacles that are no primitives, for scenes: closed meshes, terrains, point clouds.

    scene = tabletop(cup, surroundings=[Surrounding.mesh("rock.stl", pose), Surrounding.cloud(depth_points(...), radius=0.01)])

Samplers see each as a field (`diffopt.geometry.surroundings`). Physics and the judge see geoms: a convex mesh as it is; of any other mesh
the faces, as prisms one millimetre thick, and boxes that fill it; of a cloud a ball per point. All are fixed in the world.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffopt.geometry import Pose
from diffopt.geometry.field import Field
from diffopt.geometry.surroundings import Mesh, cloud_field, mesh_field, read_mesh, terrain_mesh
from diffopt.geometry.triangles import closed

if TYPE_CHECKING:
    import mujoco

MOST_GEOMS = 20_000
_THICK = 1e-3  # of the faces in physics [m]
_COLOUR = [0.5, 0.55, 0.5, 1.0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrounding:
    """One obstacle; made by `mesh`, `terrain` or `cloud`.

    Attributes:
      triangles: faces, seen from outside in counterclockwise order, in the world [m]; none for a cloud.
      points: of a cloud, in the world [m].
      radius: of the balls about them [m].
      field: what samplers see, in the world.
    """

    triangles: Float[np.ndarray, "F 3 3"]
    points: Float[np.ndarray, "N 3"]
    radius: float
    field: Field

    @staticmethod
    def mesh(
        source: str | pathlib.Path | Mesh, pose: Pose | None = None, *, spacing: float = 0.01, scale: float = 1.0
    ) -> Surrounding:
        """A closed mesh: a file or (vertices, faces), where `pose` (T_world_mesh) puts it; see `mesh_field`."""
        vertices, faces = source if isinstance(source, tuple) else read_mesh(pathlib.Path(source))
        pose = Pose.identity() if pose is None else pose
        field = mesh_field((vertices, faces), spacing, scale=scale).at(pose)
        local = closed(np.asarray(vertices, float) * scale, faces)
        placed = local @ np.asarray(pose.rotation, float).T + np.asarray(pose.position, float)
        return Surrounding(triangles=placed, points=np.zeros((0, 3)), radius=0.0, field=field)

    @staticmethod
    def terrain(
        heights: Float[np.ndarray, "M N"],
        half: tuple[float, float],
        pose: Pose | None = None,
        *,
        depth: float = 0.1,
        spacing: float = 0.01,
    ) -> Surrounding:
        """What lies below a surface of heights over a grid; see `heightfield`."""
        return Surrounding.mesh(terrain_mesh(heights, half, depth), pose, spacing=spacing)

    @staticmethod
    def cloud(points: Float[np.ndarray, "N 3"], radius: float, *, spacing: float = 0.01, **options) -> Surrounding:
        """Balls about points in the world; see `cloud_field`."""
        points = np.asarray(points, float).reshape(-1, 3)
        points = points[np.isfinite(points).all(axis=1)]
        field = cloud_field(points, radius, spacing, **options)
        return Surrounding(triangles=np.zeros((0, 3, 3)), points=points, radius=radius, field=field)

    def add_to(self, spec: mujoco.MjSpec, name: str) -> None:
        """Add geoms, fixed in the world and named after `name`, to a MuJoCo spec.

        Raises:
          ValueError: it takes more than `MOST_GEOMS`.
        """
        import mujoco

        count = len(self.points) + (1 if self._convex else len(self.triangles))
        if count > MOST_GEOMS:
            raise ValueError(f"{name}: {count} points or faces; physics takes {MOST_GEOMS}: thin it out first")
        kinds, world = mujoco.mjtGeom, spec.worldbody
        for i, point in enumerate(self.points):
            size = [self.radius, 0.0, 0.0]
            world.add_geom(name=f"{name}_{i}", type=kinds.mjGEOM_SPHERE, size=size, pos=point.tolist(), rgba=_COLOUR)
        for i, corners in enumerate(self._hulls):
            spec.add_mesh(name=f"{name}_{i}", uservert=corners.astype(np.float32).ravel().tolist())
            world.add_geom(name=f"{name}_{i}", type=kinds.mjGEOM_MESH, meshname=f"{name}_{i}", rgba=_COLOUR)
        for i, (middle, half) in enumerate(self._filling):
            quaternion = np.zeros(4)
            mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(self.field.rotation, float).ravel())
            at = dict(pos=middle.tolist(), quat=quaternion.tolist(), size=half.tolist(), rgba=_COLOUR)
            world.add_geom(name=f"{name}_filling_{i}", type=kinds.mjGEOM_BOX, **at)

    @cached_property
    def _convex(self) -> bool:
        """Whether every corner lies on the inner side of every face, up to a micrometre."""
        if not len(self.triangles):
            return False
        normals = np.cross(*np.swapaxes(self.triangles[:, 1:] - self.triangles[:, :1], 0, 1))
        size = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.where(size > 0, normals / np.maximum(size, 1e-300), 0.0)
        corners = np.unique(self.triangles.reshape(-1, 3), axis=0)
        level = np.einsum("fi,fi->f", normals, self.triangles[:, 0])
        return bool(np.max(corners @ normals.T - level) < 1e-6)

    @property
    def _hulls(self) -> list[np.ndarray]:
        """Corners of convex bodies: of all of it, or of a prism inwards from each face."""
        if self._convex:
            return [np.unique(self.triangles.reshape(-1, 3), axis=0)]
        normals = np.cross(*np.swapaxes(self.triangles[:, 1:] - self.triangles[:, :1], 0, 1))
        size = np.linalg.norm(normals, axis=1)
        return [
            np.concatenate([t, t - _THICK * n / s])
            for t, n, s in zip(self.triangles, normals, size, strict=True)
            if s > 1e-10
        ]

    @property
    def _filling(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Middles and half extents of boxes, along the axes of the field, that lie within a mesh that is not convex."""
        if self._convex or not len(self.triangles):
            return []
        values, h = np.asarray(self.field.values, float), float(self.field.spacing)
        # A cube about a node is within the mesh where the node is deeper than half its diagonal; the field says less than the depth.
        inside = values + np.sqrt(3) / 2 * h <= -np.sqrt(3) / 2 * h
        boxes = []
        for i, j in np.argwhere(inside.any(axis=2)):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], inside[i, j].astype(int), [0]])))
            for start, end in edges.reshape(-1, 2):
                local = np.asarray(self.field.origin, float) + h * np.array([i, j, (start + end - 1) / 2])
                middle = np.asarray(self.field.rotation, float) @ local + np.asarray(self.field.position, float)
                boxes.append((middle, h / 2 * np.array([1.0, 1.0, end - start])))
        return boxes
