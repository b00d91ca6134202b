"""Sphere covers of meshes, kept on disk by content.

A physics engine collides the convex hull of a mesh, and this is what is covered. With d(c) the distance of a point c of the hull to its
nearest face, the ball B(c, d(c)) lies within the hull, so the sphere of radius

    r = d(c) + e

reaches at most e outside. Centres are chosen greedily among points within the hull, until every point of the hull is in a sphere. That is
certified, not sampled: space is cut into cubic cells of half diagonal h, finer ones where the surface is; each cell that meets the hull
is represented by the point p of the hull that is nearest to its centre. Projection onto a convex set moves no two points apart, so all of
the hull within the cell is within h of p, and is covered once |p - c| <= r - h.

If the tolerance takes more spheres than allowed, e grows until few enough are left; what it has become is returned.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from diffopt.geometry import kept

_VERSION = b"1"  # of the algorithm: part of the key of what is kept
_CELLS = 2000  # of the coarse grid, about
_STARTS = 300
_GROW = 1.15

MeshCover = tuple[np.ndarray, np.ndarray, float]  # centres (n, 3), radii (n,), overshoot


def cover_mesh(vertices: Float[np.ndarray, "V 3"], tolerance: float, most: int) -> MeshCover | None:
    """Few spheres that cover the convex hull of `vertices` within `tolerance` [m], from the cache if it has them.

    Args:
      most: at most so many spheres, whatever the overshoot.
    Returns:
      None if the mesh is flat.
    """
    vertices = np.ascontiguousarray(vertices, np.float64)
    file = kept.file_of("covers", _VERSION, vertices, np.array([tolerance, most], np.float64))
    found = kept.read(file)
    if found is not None and found.keys() >= {"centres", "radii", "overshoot"}:
        return found["centres"], found["radii"], float(found["overshoot"])
    cover = _cover(vertices, tolerance, most)
    if cover is not None:
        kept.write(file, centres=cover[0], radii=cover[1], overshoot=np.asarray(cover[2]))
    return cover


def _cover(vertices: np.ndarray, tolerance: float, most: int) -> MeshCover | None:
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(vertices)
    except (QhullError, ValueError):
        return None
    if hull.volume < 1e-12:
        return None
    triangles, planes = vertices[hull.simplices], hull.equations
    samples, h = _cells(triangles, planes)
    rng, size = np.random.default_rng(0), float(np.ptp(vertices, axis=0).max())
    centres = _centres(samples[rng.permutation(len(samples))[:_STARTS]], planes, size)
    for _ in range(3):  # more candidates where no sphere within the tolerance reaches
        reach = _reach(samples, centres, planes, h)
        missed = np.flatnonzero(np.min(reach, axis=1) > tolerance)
        if not len(missed):
            break
        centres = np.concatenate([centres, _centres(samples[rng.permutation(missed)[: _STARTS // 3]], planes, size)])
    reach = _reach(samples, centres, planes, h)
    e = max(tolerance, float(np.max(np.min(reach, axis=1))))
    while True:
        chosen = _greedy(reach <= e, most)
        if chosen is not None:
            depth = np.maximum(-_outside(centres[chosen], planes), 0.0)
            return centres[chosen], (depth + e) * (1 + 1e-6), e
        e *= _GROW


def _reach(samples: np.ndarray, centres: np.ndarray, planes: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The least overshoot with which a sphere about a centre (columns) covers the cell of a sample (rows): |p - c| + h - d(c)."""
    from scipy.spatial.distance import cdist

    return cdist(samples, centres) + h[:, None] + np.minimum(_outside(centres, planes), 0.0)


def _greedy(covers: np.ndarray, most: int) -> list[int] | None:
    """Indices of at most `most` columns that together are true in every row; None if the greedy choice needs more."""
    weights, left, chosen = covers.astype(np.float32), np.ones(len(covers), np.float32), []
    while left.any():
        if len(chosen) == most:
            return None
        chosen.append(int(np.argmax(left @ weights)))
        left[covers[:, chosen[-1]]] = 0.0
    return chosen


def _cells(triangles: np.ndarray, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A point of the hull per cell that meets it, and half the diagonal of each cell."""
    low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
    side = max((np.prod(high - low) / _CELLS) ** (1 / 3), (high - low).max() / 60)
    counts = np.maximum(1, np.ceil((high - low) / side)).astype(int)
    axes = [lo + side * (np.arange(n) + 0.5) for lo, n in zip(low, counts, strict=True)]
    coarse = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    outside, h = _outside(coarse, planes), side * np.sqrt(3) / 2
    inner = coarse[outside <= -h]
    corners = np.stack(np.meshgrid(*[[-side / 4, side / 4]] * 3), axis=-1).reshape(-1, 3)
    fine = (coarse[np.abs(outside) <= h][:, None] + corners).reshape(
        -1, 3
    )  # a point of the hull is within h of no other cell's centre
    outside = _outside(fine, planes)
    fine, outside = fine[outside <= h / 2], outside[outside <= h / 2]
    points = fine.copy()
    points[outside > 0] = _nearest(fine[outside > 0], triangles)
    points = points[np.linalg.norm(points - fine, axis=1) <= h / 2]
    return np.concatenate([inner, points]), np.repeat([h, h / 2], [len(inner), len(points)])


def _outside(points: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Largest signed distance to the plane of a face: negative within the hull, and there exactly minus the depth."""
    return np.max(points @ planes[:, :3].T + planes[:, 3], axis=1)


def _centres(points: np.ndarray, planes: np.ndarray, size: float) -> np.ndarray:
    """Candidates for centres: `points` of the hull, and where they come to when drawn away from the nearest face."""
    ridge, depth = points.copy(), -_outside(points, planes)
    for step in 0.5 ** np.arange(10) * size / 4:
        normal = planes[np.argmax(ridge @ planes[:, :3].T + planes[:, 3], axis=1), :3]
        trial = ridge - step * normal
        deeper = -_outside(trial, planes)
        better = deeper > depth
        ridge[better], depth[better] = trial[better], deeper[better]
    return np.concatenate([points + t * (ridge - points) for t in (0.15, 0.4, 0.7, 1.0)])


def _nearest(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The nearest point of any of the triangles to each point."""
    best, out = np.full(len(points), np.inf), np.empty_like(points)
    for a, b, c in triangles:
        normal = np.cross(b - a, c - a)
        area = np.linalg.norm(normal)
        if area < 1e-16:
            continue
        normal /= area
        candidates = [_on_segment(points, *ends) for ends in ((a, b), (b, c), (c, a))]
        foot = points - ((points - a) @ normal)[:, None] * normal
        inside = np.all([np.cross(q - p, foot - p) @ normal >= 0 for p, q in ((a, b), (b, c), (c, a))], axis=0)
        candidates.append(np.where(inside[:, None], foot, candidates[0]))
        for candidate in candidates:
            d = np.linalg.norm(points - candidate, axis=1)
            closer = d < best
            best[closer], out[closer] = d[closer], candidate[closer]
    return out


def _on_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    s = np.clip((points - start) @ along / max(along @ along, 1e-30), 0.0, 1.0)
    return start + s[:, None] * along
