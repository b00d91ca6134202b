"""Signed distance of convex primitives to each other: balls, capsules, boxes, cylinders and ellipsoids.

A body is a core about its centre (a box, of which points and segments are special cases, a cylinder or an ellipsoid) grown by a radius.
Every core is symmetric about its centre. With c the way from the centre of B to that of A, h(n) = max n . x the support function
of a core, and n a unit vector,

    s(n) = n . c - h_A(n) - h_B(n) - r_A - r_B

is how far the planes across n that touch both bodies are apart. For every n it is a lower bound of the signed distance, and

    distance = max_n s(n)           (negative: minus the depth of the overlap).

So whatever n is found, s(n) never says more than the distance. First candidates are the axes of both bodies, their cross products and
c, of which the best is the depth between boxes (the separating axes of Gottschalk, Lin and Manocha 1996). From there steps of Gilbert,
Johnson and Keerthi 1988 (`simplex.py`) go to the point x of c - (core A + core B) that is nearest to zero, n = x / |x|. Cores that overlap
are moved apart along the best n until they do not, for finding where they touch and whether a direction near n is better.

Where cores are apart the distance is found to single precision. Where they overlap and are no boxes, the depth may be a little more than
the least one, never less. Derivatives are those of the envelope theorem (Danskin 1967): with p_A and p_B the touching points, fixed to
their bodies,

    d distance = n . (d p_A - d p_B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.custom_batching
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffopt.geometry.rows import (
    TINY,
    Matrix,
    Vector,
    cross,
    dot,
    matrix,
    minus,
    norm,
    plus,
    scale,
    turn,
    turn_back,
    where,
)
from diffopt.geometry.shapes import Shapes
from diffopt.geometry.simplex import nearest_point

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
STEPS = 20  # of the search; nothing but ellipsoids needs more,
SMOOTH = 32  # so many


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Convex:
    """P bodies in one common frame.

    Attributes:
      half: half extents of the core [m]: of a box (zero in all directions: a point; in two: a segment), (radius, radius, half length)
        of a cylinder about z, semi-axes of an ellipsoid.
      radius: growth of the core [m].
      kind: BOX, CYLINDER or ELLIPSOID.
      position: centres [m].
      rotation: rotation matrices from body to common frame.
    """

    half: Float[Array, "3 P"]
    radius: Float[Array, "P"]
    kind: Int[Array, "P"]
    position: Float[Array, "3 P"]
    rotation: Float[Array, "3 3 P"]

    @staticmethod
    def of(shapes: Shapes) -> Convex:
        """Shapes of a scene."""
        return Convex(
            half=shapes.half.T,
            radius=shapes.radius,
            kind=jnp.where(shapes.round, CYLINDER, BOX),
            position=shapes.position.T,
            rotation=jnp.moveaxis(shapes.rotation, 0, -1),
        )

    def take(self, index: Int[Array, "N"]) -> Convex:
        """The bodies at these indices."""
        return jax.tree.map(lambda leaf: leaf[..., index], self)

    def carry(self, point: Float[Array, "3 P"]) -> Float[Array, "3 P"]:
        """One point of each body, moving along where the body is differentiated."""
        still = jax.lax.stop_gradient(self)
        local = turn_back(matrix(still.rotation), minus(_rows(point), _rows(still.position)))
        return jnp.stack(plus(turn(matrix(self.rotation), local), _rows(self.position)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Separation:
    """Of P pairs of bodies A and B.

    Attributes:
      distance: signed [m].
      normal: unit, from B to A.
      on_a, on_b: where the cores touch, or would if moved along the normal [m].
    """

    distance: Float[Array, "P"]
    normal: Float[Array, "3 P"]
    on_a: Float[Array, "3 P"]
    on_b: Float[Array, "3 P"]

    def following(self, a: Convex, b: Convex) -> Float[Array, "P"]:
        """The distance, with the first derivatives that it has where the bodies move."""
        still = jax.lax.stop_gradient(self)
        gap = a.carry(still.on_a) - b.carry(still.on_b)
        return still.distance + jnp.sum(still.normal * (gap - jax.lax.stop_gradient(gap)), axis=0)


def distance(a: Convex, b: Convex, steps: int = STEPS) -> Float[Array, "P"]:
    """Signed distance of each pair [m]; never more than the true one but for rounding, with exact first derivatives."""
    return separation(a, b, steps).following(a, b)


def separation(a: Convex, b: Convex, steps: int = STEPS) -> Separation:
    """Signed distance, direction and touching points of each pair; not differentiable (see `distance`).

    Args:
      steps: of the search; `SMOOTH` where there are ellipsoids.
    """
    return _separation(steps)(*jax.lax.stop_gradient((a, b)))


@cache
def _separation(steps: int) -> Callable[[Convex, Convex], Separation]:
    """`separation`, under `jax.vmap` in one row of all pairs of the batch, which is ten times faster than a row for each."""
    flat = jax.custom_batching.custom_vmap(partial(_search, steps=steps))

    @flat.def_vmap
    def batched(size: int, mapped: tuple[Convex, Convex], a: Convex, b: Convex):
        def long(leaf, is_mapped):
            leaf = jnp.moveaxis(leaf, 0, -2) if is_mapped else jnp.repeat(leaf[..., None, :], size, axis=-2)
            return leaf.reshape(*leaf.shape[:-2], -1)

        found = flat(*jax.tree.map(long, (a, b), tuple(mapped)))
        return jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], size, -1), -2, 0), found
        ), jax.tree.map(lambda _: True, found)

    return flat


def _search(a: Convex, b: Convex, steps: int) -> Separation:
    c = minus(_rows(a.position), _rows(b.position))
    turns = matrix(a.rotation), matrix(b.rotation)

    def local(n: Vector) -> tuple[Vector, Vector]:
        return turn_back(turns[0], n), turn_back(turns[1], n)

    def bound(n: Vector, seen: tuple[Vector, Vector]):
        return dot(n, c) - _extent(a, seen[0]) - _extent(b, seen[1])

    def support(seen: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        """The points of both cores furthest along a direction, from their centres."""
        return turn(turns[0], _support(a, seen[0])), turn(turns[1], _support(b, seen[1]))

    first = _best_axis(turns, c, a, b)
    best, n, x, on_a, shift = nearest_point(c, first, local, bound, support, steps)
    on_b = minus(minus(plus(c, shift), x), on_a)
    return Separation(
        distance=best - a.radius - b.radius,
        normal=jnp.stack(n),
        on_a=a.position - jnp.stack(on_a),
        on_b=b.position + jnp.stack(on_b),
    )


def _best_axis(turns: tuple[Matrix, Matrix], c: Vector, a: Convex, b: Convex) -> Vector:
    """The best direction among the axes of both bodies, their cross products and the centre line."""
    own, other = ([tuple(R[i][k] for i in range(3)) for k in range(3)] for R in turns)
    M = [[dot(u, v) for v in other] for u in own]
    in_a, in_b = (tuple(dot(u, c) for u in axes) for axes in (own, other))
    values = [jnp.abs(in_a[i]) - a.half[i] - _extent(b, tuple(M[i])) for i in range(3)]
    values += [jnp.abs(in_b[j]) - b.half[j] - _extent(a, tuple(M[i][j] for i in range(3))) for j in range(3)]
    zero = jnp.zeros_like(c[0])
    for i in range(3):
        k, m = (i + 1) % 3, (i + 2) % 3
        for j in range(3):  # u_i x v_j, in both frames
            p, q = (j + 1) % 3, (j + 2) % 3
            seen_a, seen_b = [zero] * 3, [zero] * 3
            seen_a[k], seen_a[m], seen_b[p], seen_b[q] = -M[m][j], M[k][j], M[i][q], -M[i][p]
            square = M[k][j] ** 2 + M[m][j] ** 2  # zero where the axes are parallel
            apart = jnp.abs(in_a[m] * M[k][j] - in_a[k] * M[m][j])
            apart = apart - _extent(a, tuple(seen_a)) - _extent(b, tuple(seen_b))
            values.append(jnp.where(square > 1e-8, apart / jnp.sqrt(jnp.maximum(square, 1e-8)), -jnp.inf))
    length = jnp.maximum(norm(c), 1e-9)
    values.append(length - (_extent(a, in_a) + _extent(b, in_b)) / length)
    which = jnp.argmax(jnp.stack(values), axis=0)

    def axis(of: list[Vector], index) -> Vector:
        return where(index == 0, of[0], where(index == 1, of[1], of[2]))

    pair = jnp.maximum(which - 6, 0)
    between = cross(axis(own, pair // 3), axis(other, pair % 3))
    n = where(which < 3, axis(own, which), where(which < 6, axis(other, which - 3), where(which < 15, between, c)))
    long = norm(n)
    n = scale(n, jnp.where(dot(n, c) >= 0, 1.0, -1.0) / long)
    return where(long > 1e-9, n, own[0])


def _support(of: Convex, n: Vector) -> Vector:
    """The point of each core furthest along n, in its own frame."""
    half = _rows(of.half)
    corner = tuple(jnp.where(m >= 0, h, -h) for h, m in zip(half, n, strict=True))
    rim = half[0] / jnp.sqrt(n[0] ** 2 + n[1] ** 2 + TINY)
    level = jnp.where(of.kind == CYLINDER, rim * n[0], corner[0]), jnp.where(of.kind == CYLINDER, rim * n[1], corner[1])
    stretched = tuple(h * m for h, m in zip(half, n, strict=True))
    size = 1 / norm(stretched)
    smooth = tuple(h * m * size for h, m in zip(half, stretched, strict=True))
    return where(of.kind == ELLIPSOID, smooth, (*level, corner[2]))


def _extent(of: Convex, n: Vector):
    """h(n) of each core, for n in its own frame."""
    x, y, z = (h * m for h, m in zip(_rows(of.half), n, strict=True))
    flat = jnp.sqrt(x * x + y * y)
    straight = jnp.where(of.kind == CYLINDER, flat, jnp.abs(x) + jnp.abs(y)) + jnp.abs(z)
    return jnp.where(of.kind == ELLIPSOID, jnp.sqrt(x * x + y * y + z * z), straight)


def _rows(v) -> Vector:
    return v[0], v[1], v[2]
