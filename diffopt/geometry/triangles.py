"""Exact signed distances of the nodes of a grid to a closed surface of triangles; on the host, in double precision.

How far: space is halved along each axis again and again, down to single nodes. A cell whose nodes are within s of its centre x needs to
look only at the triangles t with

    dist(x, t) <= min_t' dist(x, t') + 2 s,

as no other is the nearest to any of its nodes. Which side: a vertical line through a node leaves the body upwards through a face whose
outward normal points up, and enters it through one that points down, so that the faces above the node, each counted with the sign of its
normal's height, add up to how often it is enclosed. Lines are shifted by a millionth of a cell, to meet no edge.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_PAIRS = 400_000  # of cells and triangles that are looked at together
_SHIFT = np.array([0.37e-6, 0.61e-6])  # of the spacing


def signed_distances(
    triangles: Float[np.ndarray, "F 3 3"], axes: list[np.ndarray], spacing: float
) -> Float[np.ndarray, "X Y Z"]:
    """Signed distances [m] at the nodes of a grid, negative inside.

    Args:
      triangles: corners of the faces of a closed surface, seen from outside in counterclockwise order [m]; see `closed`.
      axes: coordinates of the nodes along each axis.
      spacing: between them.
    """
    distance = _unsigned(triangles, axes, spacing)
    return np.where(_enclosed(triangles, axes, spacing) > 0, -distance, distance)


def closed(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "F 3 3"]:
    """The triangles of a mesh, turned so that they face outwards.

    Raises:
      ValueError: the mesh has no faces, or indices without a vertex, or is not closed.
    """
    vertices, faces = np.asarray(vertices, float).reshape(-1, 3), np.asarray(faces, int).reshape(-1, 3)
    if not len(faces) or faces.min() < 0 or faces.max() >= len(vertices) or not np.isfinite(vertices).all():
        raise ValueError(
            f"a mesh of {len(vertices)} vertices and {len(faces)} faces: none, out of range, or not finite"
        )
    size = float(np.ptp(vertices, axis=0).max())
    _, same = np.unique(np.round(vertices / (1e-7 * max(size, 1e-9))), axis=0, return_inverse=True)
    corners = same.reshape(-1)[faces]
    keep = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2]) & (corners[:, 2] != corners[:, 0])
    corners = corners[keep]
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    code = edges[:, 0] * (len(vertices) + 1) + edges[:, 1]
    back = edges[:, 1] * (len(vertices) + 1) + edges[:, 0]
    values, counts = np.unique(np.concatenate([code, back]), return_counts=True)
    ahead = np.zeros(len(values), int)
    np.add.at(ahead, np.searchsorted(values, code), 1)
    open_edges = int(np.sum(2 * ahead != counts)) // 2
    if open_edges:
        raise ValueError(
            f"the mesh is not closed: {open_edges} edges are not shared by two faces that agree on which side is out; mend it, or "
            "take points on it as a point cloud (cloud_field)"
        )
    triangles = vertices[faces[keep]]
    volume = np.sum(np.einsum("fi,fi->f", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2]))) / 6
    return triangles if volume > 0 else triangles[:, ::-1]


def _unsigned(triangles: np.ndarray, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    shape = tuple(len(a) for a in axes)
    origin = np.array([a[0] for a in axes])
    prepared = _Prepared(triangles)
    out = np.full(shape, np.inf)
    side = 1 << int(np.ceil(np.log2(max(shape))))
    # A stack of (first nodes of cells, cell of each pair, triangle of each pair, nodes along a side of the cells).
    todo = [(np.zeros((1, 3), int), np.zeros(len(triangles), int), np.arange(len(triangles)), side)]
    while todo:
        cells, cell, triangle, side = todo.pop()
        if len(cell) > _PAIRS and len(cells) > 1:
            first = np.searchsorted(cell, len(cells) // 2)
            middle = len(cells) // 2
            todo.append((cells[middle:], cell[first:] - middle, triangle[first:], side))
            todo.append((cells[:middle], cell[:first], triangle[:first], side))
            continue
        centre = origin + spacing * (cells + (side - 1) / 2)
        d = prepared.distance(centre, cell, triangle)
        starts = np.searchsorted(cell, np.arange(len(cells)))
        least = np.minimum.reduceat(d, starts)
        if side == 1:
            out[tuple(cells.T)] = least
            continue
        near = d <= least[cell] + np.sqrt(3) * spacing * (side - 1) + 1e-12
        cell, triangle = cell[near], triangle[near]
        side //= 2
        children, pairs = [], []
        for corner in np.ndindex(2, 2, 2):
            child = cells + side * np.array(corner)
            here = np.all(child < shape, axis=1)
            number = np.cumsum(here) - 1 + sum(map(len, children))
            mine = here[cell]
            children.append(child[here])
            pairs.append((number[cell[mine]], triangle[mine]))
        cell, triangle = (np.concatenate(part) for part in zip(*pairs, strict=True))
        todo.append((np.concatenate(children), cell, triangle, side))
    return out


class _Prepared:
    """What distances to triangles need of them, computed once."""

    def __init__(self, triangles: np.ndarray):
        self.corner = triangles
        self.edge = np.roll(triangles, -1, axis=1) - triangles
        normal = np.cross(self.edge[:, 0], self.edge[:, 1])
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        self.normal = normal / np.maximum(length, 1e-300)
        self.flat = length[:, 0] > 1e-20  # has an area
        self.inward = np.cross(self.normal[:, None], self.edge)  # in the plane, away from each edge
        self.inverse = 1 / np.maximum(np.einsum("fki,fki->fk", self.edge, self.edge), 1e-300)

    def distance(self, points: np.ndarray, point: np.ndarray, triangle: np.ndarray) -> np.ndarray:
        """Distance of pairs, given by the index of the point and of the triangle."""
        p = points[point]
        square, over = np.full(len(p), np.inf), self.flat[triangle]
        height = np.zeros(len(p))
        for k in range(3):
            offset = p - self.corner[triangle, k]
            edge = self.edge[triangle, k]
            s = np.clip(_dot(offset, edge) * self.inverse[triangle, k], 0, 1)
            gap = offset - s[:, None] * edge
            square = np.minimum(square, _dot(gap, gap))
            over &= _dot(offset, self.inward[triangle, k]) >= 0
            if k == 0:
                height = _dot(offset, self.normal[triangle])
        return np.where(over, np.abs(height), np.sqrt(square))


def _enclosed(triangles: np.ndarray, axes: list[np.ndarray], spacing: float) -> np.ndarray:
    """How often each node is enclosed."""
    x, y, z = axes
    x, y = x + spacing * _SHIFT[0], y + spacing * _SHIFT[1]
    change = np.zeros((len(x), len(y), len(z) + 1), np.int32)  # [..., k]: what lies between node k - 1 and node k
    for a, b, c in triangles:
        u, v = b[:2] - a[:2], c[:2] - a[:2]
        area = u[0] * v[1] - u[1] * v[0]
        if area == 0:
            continue
        i0, i1 = np.searchsorted(x, [min(a[0], b[0], c[0]), max(a[0], b[0], c[0])])
        j0, j1 = np.searchsorted(y, [min(a[1], b[1], c[1]), max(a[1], b[1], c[1])])
        if i0 == i1 or j0 == j1:
            continue
        px, py = x[i0:i1, None] - a[0], y[None, j0:j1] - a[1]
        s, t = (px * v[1] - py * v[0]) / area, (u[0] * py - u[1] * px) / area
        i, j = np.nonzero((s >= 0) & (t >= 0) & (s + t <= 1))
        height = a[2] + s[i, j] * (b[2] - a[2]) + t[i, j] * (c[2] - a[2])
        np.add.at(change, (i + i0, j + j0, np.searchsorted(z, height)), 1 if area > 0 else -1)
    return np.cumsum(change[..., ::-1], axis=2)[..., ::-1][..., 1:]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("pi,pi->p", a, b)
