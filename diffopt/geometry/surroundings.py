"""Fields of what stands around a robot: closed meshes, heightfields, point clouds, depth images.

    rock = mesh_field("rock.stl", spacing=0.01).at(pose)
    seen = cloud_field(depth_points(image, intrinsics, T_world_camera), radius=0.01, lower=(-1, -1, 0), upper=(1, 1, 1))

Distances at the nodes are exact (of a cloud: to the nearest point, less its radius); how they are interpolated, and by how much a
look-up may be below the truth, says `field`. Fields of meshes are kept on disk by the content of the mesh.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffopt.geometry import kept
from diffopt.geometry.field import Field, grid
from diffopt.geometry.pose import Pose
from diffopt.geometry.triangles import closed, signed_distances

_VERSION = b"1"  # of the algorithm: part of the key of what is kept
_PAD = 4  # cells around a mesh, at least

Mesh = tuple[Any, Any]  # vertices (V, 3) [m], faces (F, 3)


def mesh_field(
    source: str | pathlib.Path | Mesh, spacing: float = 0.01, *, pad: float = 0.05, scale: float = 1.0
) -> Field:
    """The field of a closed mesh, in the mesh's own frame.

    Args:
      source: a file that trimesh reads (STL, OBJ, PLY, ...), or (vertices [m], faces).
      spacing: between nodes [m]; of the order of the smallest sphere that is to be kept off it, or less.
      pad: how far the grid reaches beyond the mesh [m]; beyond that the field is a lower bound, see `field`.
      scale: of the vertices, 0.001 for a file in millimetres.
    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the mesh is not closed, or takes too many nodes.
    """
    vertices, faces = source if isinstance(source, tuple) else read_mesh(pathlib.Path(source))
    vertices = np.asarray(vertices, float) * scale
    try:
        triangles = closed(vertices, faces)
    except ValueError as error:
        raise ValueError(str(error) if isinstance(source, tuple) else f"{source}: {error}") from error
    pad = max(pad, _PAD * spacing)
    corners = triangles.reshape(-1, 3)
    origin, axes = grid(corners.min(axis=0) - pad, corners.max(axis=0) + pad, spacing)
    file = kept.file_of("fields", _VERSION, triangles, np.array([spacing, pad]))
    found = kept.read(file)
    if found is None or "distance" not in found:
        found = {"distance": signed_distances(triangles, axes, spacing)}
        kept.write(file, **found)
    return Field.of(found["distance"], origin, spacing)


def heightfield(
    heights: Float[np.ndarray, "M N"],
    half: tuple[float, float],
    spacing: float = 0.01,
    *,
    depth: float = 0.1,
    pad: float = 0.05,
) -> Field:
    """The field of a terrain: what lies below a surface of two triangles per square of samples.

    Args:
      heights: [i, j] at x = half[0] (2 i / (M - 1) - 1) and y = half[1] (2 j / (N - 1) - 1) [m].
      half: half extents along x and y [m].
      depth: thickness of the ground below the lowest sample [m].
      spacing, pad: as in `mesh_field`.
    """
    return mesh_field(terrain_mesh(heights, half, depth), spacing, pad=pad)


def terrain_mesh(heights: Float[np.ndarray, "M N"], half: tuple[float, float], depth: float) -> Mesh:
    """Vertices and faces of the body below a terrain: its top, its sides and its bottom."""
    heights = np.asarray(heights, float)
    if heights.ndim != 2 or min(heights.shape) < 2 or not np.isfinite(heights).all() or depth <= 0:
        raise ValueError(
            f"heights of shape {heights.shape}, depth={depth}: expected at least 2 x 2 finite samples and a positive depth"
        )
    m, n = heights.shape
    x, y = np.meshgrid(np.linspace(-half[0], half[0], m), np.linspace(-half[1], half[1], n), indexing="ij")
    top = np.stack([x, y, heights], axis=-1).reshape(-1, 3)
    bottom = np.stack([x, y, np.full((m, n), heights.min() - depth)], axis=-1).reshape(-1, 3)
    at = np.arange(m * n).reshape(m, n)
    a, b, c, d = (s.ravel() for s in (at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]))
    up = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    rim = np.concatenate([at[:-1, 0], at[-1, :-1], at[:0:-1, -1], at[0, :0:-1]])  # counterclockwise, seen from above
    after = np.roll(rim, -1)
    low, low_after = rim + m * n, after + m * n
    sides = np.concatenate([np.stack([rim, low, low_after], 1), np.stack([rim, low_after, after], 1)])
    return np.concatenate([top, bottom]), np.concatenate([up, sides, up[:, ::-1] + m * n])


def cloud_field(
    points: Float[np.ndarray, "N 3"], radius: float, spacing: float = 0.01, *, lower=None, upper=None, pad: float = 0.05
) -> Field:
    """The field of balls about points: the distance to the nearest point, less `radius`.

    Args:
      points: in the world [m]; those that are not finite are left out.
      radius: of the balls [m]; more than half the distance between neighbouring points, so that the surface has no holes.
      spacing, pad: as in `mesh_field`.
      lower, upper: corners of the grid's box [m], for a field of the same structure whatever the points: those outside are left out.
        Default: the box around the points.
    """
    from scipy.spatial import cKDTree

    points = np.asarray(points, float).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    given = lower is not None and upper is not None
    if given:
        points = points[np.all((points >= np.asarray(lower)) & (points <= np.asarray(upper)), axis=1)]
    elif not len(points):
        raise ValueError("no finite points: give lower and upper for a field of empty space")
    pad = max(pad + radius, _PAD * spacing)
    low, high = (lower, upper) if given else (points.min(axis=0) - pad, points.max(axis=0) + pad)
    origin, axes = grid(low, high, spacing)
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    if not len(points):
        return Field.of(np.full(nodes.shape[:-1], 10.0), origin, spacing)
    reach, _ = cKDTree(points).query(nodes.reshape(-1, 3))
    reach = reach.reshape(nodes.shape[:-1])
    return Field.of(reach - radius, origin, spacing, reach)


def depth_points(
    depth: Float[np.ndarray, "H W"], intrinsics: Float[np.ndarray, "3 3"], camera: Pose, *, farthest: float = np.inf
) -> Float[np.ndarray, "N 3"]:
    """The points that a depth image shows, in the world [m].

    A pixel (u, v), counted from the centre of the upper left one, with depth z along the optical axis is the point
    z ((u - cx) / fx, (v - cy) / fy, 1) of a camera that looks along its z, with x to the right and y down.

    Args:
      depth: [m]; zero, negative or not finite where nothing was seen.
      intrinsics: ((fx, 0, cx), (0, fy, cy), (0, 0, 1)) [pixels].
      camera: T_world_camera.
      farthest: what lies further away along the optical axis is left out [m].
    """
    depth, K = np.asarray(depth, float), np.asarray(intrinsics, float)
    if depth.ndim != 2 or K.shape != (3, 3):
        raise ValueError(
            f"a depth image of shape {depth.shape} and intrinsics of shape {K.shape}; expected (H, W) and (3, 3)"
        )
    v, u = np.nonzero(np.isfinite(depth) & (depth > 0) & (depth <= farthest))
    z = depth[v, u]
    local = np.stack([(u - K[0, 2]) / K[0, 0] * z, (v - K[1, 2]) / K[1, 1] * z, z], axis=1)
    return local @ np.asarray(camera.rotation, float).T + np.asarray(camera.position, float)


def read_mesh(path: pathlib.Path) -> tuple[np.ndarray, Int[np.ndarray, "F 3"]]:
    """Vertices and faces of a mesh file."""
    import trimesh

    if not path.exists():
        raise FileNotFoundError(f"no mesh file {path}")
    mesh: Any = trimesh.load(path, force="mesh")
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)
