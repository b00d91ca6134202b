"""The nearest pairs of exact collision bodies (`Primitives`): of each row, of all pairs that belong to it, the one with the least distance.

The exact distance of a pair costs as much as those of a hundred spheres, and the cover of a primitive gives a lower bound l of it that
costs nearly nothing. So pairs are looked at in the order of l, until the least distance d that was found is below the l of all that
remain: branch and bound. What comes out is exact where bodies are apart. Where a pair that overlaps was found, no others are looked at:
the depth is that of the first one, of which the cover is deepest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffopt.geometry import Shapes
from diffopt.geometry.convex import Convex, Separation, separation
from diffopt.geometry.nearest import distances
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Frames

ROWS = ("geom", "body")
_FAR = 1e6


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest pair of each of R rows.

    Attributes:
      a, b: the two bodies; a is the robot's, and of two of them the outer one.
      found: where they touch.
      which: index among the primitives of a and, of the robot itself, of b.
    """

    a: Convex
    b: Convex
    found: Separation
    which: tuple[Int[Array, "R"], ...]

    @property
    def distance(self) -> Float[Array, "R"]:
        """Signed, with its first derivatives [m]."""
        return self.found.following(self.a, self.b)


def to_shapes(
    robot: Embodiment, frames: Frames, obstacles: Shapes, far: Float[np.ndarray, "O G"] | None, rows: str
) -> tuple[Nearest, Any]:
    """The nearest obstacle of each moving primitive, or body, or all pairs of both; and how much to add to each distance.

    Args:
      obstacles: in the frame of the base.
      far: how much further an obstacle is to be taken for [m], by moving primitive.
      rows: "geom", "body", or "pair".
    """
    primitives, index = robot.primitives, np.array(robot.contacts.moving_primitives, int)
    assert primitives is not None
    bodies, others, count = primitives.place(frames), Convex.of(obstacles), len(obstacles)
    further = np.zeros((len(index), count), np.float32) if far is None else far.T
    if rows == "pair":
        own, every = jnp.asarray(np.repeat(index, count)), jnp.asarray(np.tile(np.arange(count), len(index)))
        a, b = bodies.take(own), others.take(every)
        found = separation(a, b, primitives.steps)
        return Nearest(a=a, b=b, found=found, which=(own,)), jnp.asarray(further.reshape(-1))
    groups = _groups([primitives.body[i] for i in index], rows)
    table = _table([[(g, o) for g in group for o in range(count)] for group in groups])
    radius = jnp.asarray(robot.spheres.radii)[:, None]
    below = jax.lax.stop_gradient(distances(obstacles, robot.spheres.place(frames)).T - radius)
    low = _least(below, [primitives.cover[i] for i in index]) + further
    one, two, real = jnp.asarray(table[..., 0]), jnp.asarray(table[..., 1]), table[..., 2] > 0

    def look(row, column):
        k, o = one[row, column], two[row, column]
        a, b = bodies.take(jnp.asarray(index)[k]), others.take(o)
        return separation(a, b, primitives.steps), jnp.asarray(further)[k, o]

    pick, found, added = _search(jnp.where(real, low[one, two], jnp.inf), look)
    which, o = jnp.asarray(index)[_of_row(one, pick)], _of_row(two, pick)
    return Nearest(a=bodies.take(which), b=others.take(o), found=found, which=(which,)), added


def to_itself(robot: Embodiment, frames: Frames, rows: str) -> Nearest:
    """The nearest inner primitive of each outer one, or outer body, of the pairs of bodies that can meet at all.

    Args:
      rows: "geom" or "body".
    """
    primitives = robot.primitives
    assert primitives is not None
    bodies = primitives.place(frames)
    groups = outer(robot, rows)
    meets: dict[int, list[int]] = {}
    for a, b in robot.contacts.pairs:
        meets.setdefault(b, []).extend(i for i, body in enumerate(primitives.body) if body == a)
    table = _table([[(i, j) for i in group for j in meets[primitives.body[i]]] for group in groups])
    one, two, real = jnp.asarray(table[..., 0]), jnp.asarray(table[..., 1]), table[..., 2] > 0
    low = jnp.where(real, _sphere_distances(robot, frames)[one, two], jnp.inf)

    def look(row, column):
        a, b = bodies.take(one[row, column]), bodies.take(two[row, column])
        return separation(a, b, primitives.steps), jnp.zeros(row.shape)

    pick, found, _ = _search(low, look)
    which = _of_row(one, pick), _of_row(two, pick)
    return Nearest(a=bodies.take(which[0]), b=bodies.take(which[1]), found=found, which=which)


def outer(robot: Embodiment, rows: str) -> list[list[int]]:
    """The primitives of each row of `to_itself`."""
    assert robot.primitives is not None
    second = {b for _, b in robot.contacts.pairs}
    index = [i for i, body in enumerate(robot.primitives.body) if body in second]
    return [[index[k] for k in group] for group in _groups([robot.primitives.body[i] for i in index], rows)]


def _groups(body: list[int], rows: str) -> list[list[int]]:
    """Positions in `body` that make one row."""
    if rows == "geom":
        return [[i] for i in range(len(body))]
    return [[i for i, b in enumerate(body) if b == one] for one in dict.fromkeys(body)]


def _table(rows: list[list[tuple[int, int]]]) -> Int[np.ndarray, "R N 3"]:
    """Pairs of each row, filled up with the first one; and 1 where they are not for filling up."""
    longest = max(map(len, rows))
    full = [[(*pair, 1) for pair in row] + [(*row[0], 0)] * (longest - len(row)) for row in rows]
    return np.array(full, np.int32)


def _of_row(table: Int[Array, "R N"], pick: Int[Array, "R"]) -> Int[Array, "R"]:
    return jnp.take_along_axis(table, pick[:, None], axis=1)[:, 0]


def _least(values: Float[Array, "S N"], covers: list[tuple[int, ...]]) -> Float[Array, "G N"]:
    """The least row of each set of rows, which follow each other."""
    return jnp.stack([jnp.min(values[cover[0] : cover[-1] + 1], axis=0) for cover in covers])


def _sphere_distances(robot: Embodiment, frames: Frames) -> Float[Array, "G G"]:
    """Between the covers of all primitives [m]."""
    assert robot.primitives is not None
    covers = list(robot.primitives.cover)
    centers, radius = jax.lax.stop_gradient(robot.spheres.place(frames)), jnp.asarray(robot.spheres.radii)
    apart = sum((centers[i][:, None] - centers[i][None]) ** 2 for i in range(3))
    return _least(_least(jnp.sqrt(apart + 1e-12) - radius[:, None] - radius[None], covers).T, covers)


def _search(
    low: Float[Array, "R N"], look: Callable[[Any, Any], tuple[Separation, Float[Array, "K"]]]
) -> tuple[Int[Array, "R"], Separation, Float[Array, "R"]]:
    """Of each row the pair with the least distance, and what `look` says of it; see the top of the file.

    In every round as many pairs are looked at as there are rows: at first one of each, then those of which there is most to gain.

    Args:
      low: lower bounds of the distances [m]; infinite where there is no pair.
      look: the exact ones of some pairs, given by row and column, and what is to be added to their distances.
    """
    count, width = low.shape
    low = jax.lax.stop_gradient(low)

    def gain(low, best):
        return jnp.where((low < best[:, None]) & (best[:, None] > 0), best[:, None] - low, -1.0)

    def opened(state):
        first, low, best, *_ = state
        return first | jnp.any(gain(low, best) > 0)

    def round(state):
        first, low, best, which, found, added = state
        nearest = np.arange(width) == jnp.argmin(low, axis=1)[:, None]
        hope, flat = jax.lax.top_k(jnp.where(first, jnp.where(nearest, _FAR, -1.0), gain(low, best)).reshape(-1), count)
        row, column = flat // width, flat % width
        new, more = look(row, column)
        value = new.distance + more
        mine = (np.arange(count)[:, None] == row) & (hope > 0)
        of_row = jnp.where(mine, value, jnp.inf)
        k = jnp.argmin(of_row, axis=1)
        closer = jnp.any(mine, axis=1) & ~(value[k] >= best)  # also where it is no number, which then stays
        low = low.at[row, column].set(jnp.inf)
        kept = jax.tree.map(
            lambda a, b: jnp.where(closer, a[..., k], b), (value, column, new, more), (best, which, found, added)
        )
        return jnp.asarray(False), low, *kept

    none = jnp.zeros(count)
    nothing = Separation(
        distance=none, normal=jnp.stack([none] * 3), on_a=jnp.stack([none] * 3), on_b=jnp.stack([none] * 3)
    )
    start = (jnp.asarray(True), low, none + jnp.inf, jnp.zeros(count, jnp.int32), nothing, none)
    *_, which, found, added = jax.lax.while_loop(opened, round, start)
    return which, found, added
