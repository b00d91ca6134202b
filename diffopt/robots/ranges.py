"""The part of a joint's range in which the joints that follow it are in theirs."""

from __future__ import annotations

import numpy as np

from diffopt.robots.couplings import Coupling, closed, complete, lineage, roots


def narrowed(
    couplings: tuple[Coupling, ...],
    qpos0: np.ndarray,
    index: int,
    own: tuple[float, float],
    limits: dict[int, tuple[float, float]],
) -> tuple[tuple[float, float], tuple[str, ...]]:
    """The part of the range `own` of an independent joint in which the followers of it alone are in theirs; and who narrowed it.

    Args:
      limits: ranges of the followers by index in qpos.
    Raises:
      ValueError: nothing of the range is left.
    """
    low, high, by = *own, []
    for coupling in couplings:
        below, above = limits[coupling.index]
        loop = any(not isinstance(c, Coupling) for c in lineage(couplings, coupling.index))
        if roots(couplings, coupling.index) != {index} or not (loop or np.isfinite([below, above]).any()):
            continue
        if loop:
            ends = _reached(couplings, qpos0, index, (low, high), coupling.index, (below, above))
        elif all(c.affine for c in lineage(couplings, coupling.index)):
            at = _along(couplings, qpos0, index, np.array([0.0, 1.0]))[:, coupling.index]
            slope = at[1] - at[0]
            if slope == 0:
                continue
            ends = sorted(((below - at[0]) / slope, (above - at[0]) / slope))
        elif np.isfinite([low, high]).all():
            grid = np.linspace(low, high, 2001)
            at = _along(couplings, qpos0, index, grid)[:, coupling.index]
            inside = grid[(at >= below - 1e-6) & (at <= above + 1e-6)]
            ends = [inside.min(initial=np.inf), inside.max(initial=-np.inf)]
        else:
            continue
        if ends[0] > low + 1e-5 or ends[1] < high - 1e-5:
            by.append(coupling.joint)
            low, high = max(low, float(ends[0])), min(high, float(ends[1]))
        if not low < high:
            raise ValueError(
                f"{coupling.origin}: no position within its limits puts {coupling.joint!r} within [{below:g}, {above:g}]; "
                "correct the coupling or the limits"
            )
    return (low, high), tuple(by)


def _reached(
    couplings: tuple[Coupling, ...],
    qpos0: np.ndarray,
    index: int,
    own: tuple[float, float],
    follower: int,
    limits: tuple[float, float],
) -> list[float]:
    """The part of the range around the reference in which closed chains stay closed and a follower within its limits."""
    low, high = (v if np.isfinite(v) else turn for v, turn in zip(own, (-np.pi, np.pi), strict=True))
    grid = np.linspace(low, high, 2001)
    postures = np.tile(np.asarray(qpos0, float), (len(grid), 1))
    postures[:, index] = grid
    at = complete(couplings, postures)
    good = closed(couplings, at) & (at[:, follower] >= limits[0] - 1e-5) & (at[:, follower] <= limits[1] + 1e-5)
    start = int(np.argmin(np.abs(grid - np.clip(qpos0[index], low, high))))
    if good.all():
        return list(own)
    if not good[start]:
        good_ones = np.flatnonzero(good)
        if not len(good_ones):
            return [np.inf, -np.inf]
        start = int(good_ones[np.argmin(np.abs(good_ones - start))])
    bad = np.flatnonzero(~good)
    first = bad[bad < start].max(initial=-1) + 1
    last = bad[bad > start].min(initial=len(grid)) - 1
    return [float(grid[first]), float(grid[last])]


def _along(couplings: tuple[Coupling, ...], qpos0: np.ndarray, index: int, values: np.ndarray) -> np.ndarray:
    postures = np.tile(np.asarray(qpos0, float), (len(values), 1))
    postures[:, index] = values
    return complete(couplings, postures)
