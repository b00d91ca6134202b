"""Signed distance of convex primitives to each other: balls, capsules, boxes, cylinders and ellipsoids.

A body is a core about its centre (a box, of which points and segments are special cases, a cylinder or an ellipsoid) grown by a radius.
Every core is symmetric about its centre. With c the way from the centre of B to that of A, h(n) = max n . x the support function
of a core, and n a unit vector,

    s(n) = n . c - h_A(n) - h_B(n) - r_A - r_B

is how far the planes across n that touch both bodies are apart. For every n it is a lower bound of the signed distance, and

    distance = max_n s(n)           (negative: minus the depth of the overlap).

So whatever n is found, s(n) never says more than the distance. Candidates are the axes of both bodies, their cross products and c: between
boxes the best of these is the depth (the separating axes of Gottschalk, Lin and Manocha 1996). From the best of them, steps of Gilbert, Johnson and Keerthi (1988)
go to the point x of c - (core A + core B) that is nearest to zero, n = x / |x|: the support point for n joins the corner, edge or
triangle on which x was, and the nearest point of all corners, edges and triangles with the new point is next. Cores that overlap are
moved apart along the best n until they do not, only for finding where they touch.

Derivatives are those of the envelope theorem (Danskin 1967): with p_A and p_B the touching points, fixed to their bodies,

    d distance = n . (d p_A - d p_B).

All arrays are rows over P pairs, and nothing but elementwise arithmetic is done, which vectorises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffopt.geometry.shapes import Shapes

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
STEPS = 14  # until cores that are apart are known to be so; nothing but ellipsoids needs more,
SMOOTH = 24  # so many
MORE = 6  # after them, also of those that were moved apart
_TINY = 1e-30

Vector = tuple[Any, Any, Any]


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

    def take(self, index: Int[Array, "N"]) -> Convex:
        """The bodies at these indices."""
        return jax.tree.map(lambda leaf: leaf[..., index], self)

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

    def carry(self, point: Float[Array, "3 P"]) -> Float[Array, "3 P"]:
        """One point of each body, moving along where the body is differentiated."""
        still = jax.lax.stop_gradient(self)
        local = _turn_back(_rows(still.rotation), _minus(tuple(point), tuple(still.position)))
        return jnp.stack(_plus(_turn(_rows(self.rotation), local), tuple(self.position)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Separation:
    """Of P pairs of bodies A and B.

    Attributes:
      distance: signed [m].
      normal: unit, from B to A.
      on_a, on_b: where they touch, or would if moved along the normal, on the cores [m].
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
    a, b = jax.lax.stop_gradient((a, b))
    turns = _rows(a.rotation), _rows(b.rotation)
    c = _minus(tuple(a.position), tuple(b.position))

    def local(n: Vector) -> tuple[Vector, Vector]:
        return _turn_back(turns[0], n), _turn_back(turns[1], n)

    def bound(n: Vector) -> Any:
        in_a, in_b = local(n)
        return _dot(n, c) - _extent(a, in_a) - _extent(b, in_b)

    def start(best, n, there) -> _Search:
        none, zero = jnp.zeros_like(best), (jnp.zeros_like(c[0]),) * 3
        return _Search(
            best=best,
            n=n,
            tried=n,
            trial=n,
            locally=local(n),
            better=none > 1,
            there=there,
            y=zero,
            of_y=zero,
            corners=(zero,) * 3,
            of_a=(zero,) * 3,
            choice=jnp.full_like(none, _FIRST, jnp.int32),
            triangle=none > 1,
            x=zero,
            done=none > 1,
        )

    def step(_, at: _Search) -> _Search:
        at = at.settled()
        of_y = _turn(turns[0], _support(a, at.locally[0]))
        y = _minus(at.there, _plus(of_y, _turn(turns[1], _support(b, at.locally[1]))))
        value = bound(at.trial)
        first = at.choice == _FIRST
        corners, of_a = (
            tuple(_where(first, new, old) for old in kept) for new, kept in ((y, at.corners), (of_y, at.of_a))
        )
        shortest, x, choice = jnp.where(first, jnp.inf, _dot(at.x, at.x)), at.x, jnp.full_like(at.choice, _KEEP)
        options, inside = _nearest(y, corners)
        for k, (allowed, option) in enumerate(options):
            length = _dot(option, option)
            closer = allowed & (length < shortest)
            shortest, x, choice = jnp.where(closer, length, shortest), _where(closer, option, x), jnp.where(closer, k, choice)
        trial = _scale(x, 1 / _norm(x))
        return replace(
            at,
            best=jnp.maximum(value, at.best),
            better=value > at.best,
            tried=at.trial,
            trial=trial,
            locally=local(trial),
            y=y,
            of_y=of_y,
            corners=corners,
            of_a=of_a,
            choice=choice,
            x=x,
            done=inside | (~first & (choice == _KEEP)) | (_norm(x) * (1 - 1e-6) - jnp.maximum(value, at.best) < 1e-7),
        )

    n = _best_axis(turns, c, a, b)
    at = _run(step, start(bound(n), n, c), steps).settled()
    # cores that overlap are looked at further apart
    p, q = (_extent(k, m) for k, m in zip((a, b), local(at.n), strict=True))
    apart = start(at.best, at.n, _plus(c, _scale(at.n, 0.1 * (p + q) + 1e-3 - at.best)))
    overlap = at.best <= 0
    at = jax.tree.map(lambda new, old: jnp.where(overlap, new, old), apart, at)
    at = _run(step, at, MORE).settled()
    on_a = at.touching()
    on_b = _minus(_minus(at.there, at.x), on_a)
    return Separation(
        distance=at.best - a.radius - b.radius,
        normal=jnp.stack(at.n),
        on_a=a.position - jnp.stack(on_a),
        on_b=b.position + jnp.stack(on_b),
    )


_EDGES, _TRIANGLES = (0, 1, 2), ((0, 1), (0, 2), (1, 2))  # those between a new point and three corners
_KEEP, _FIRST = 6, 7


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Search:
    """Where the search stands, of every pair.

    What a step decides, it leaves to the next one to carry out (`settled`): a compiler may work out a comparison of two equal numbers
    several times with several results, but not that of numbers that it has stored.

    Attributes:
      best, n: the largest bound, and where it was found.
      tried, better: what was tried last, and whether it was better.
      trial, locally: what is to be tried next, in the common frame and in those of both bodies.
      there: from the centre of B to that of A.
      y, of_y: the newest point of the difference of the cores, and which point of A it is.
      corners, of_a: those of the point, edge or triangle before it; the same one may stand there several times.
      choice: on which of the edges and triangles from y to the corners the nearest point is; or to keep what was before.
      triangle: whether the corners are those of a triangle; else of an edge, between the first two.
      x: the nearest point.
      done: whether nothing better is to be expected.
    """

    best: Any
    n: Vector
    tried: Vector
    better: Any
    trial: Vector
    locally: tuple[Vector, Vector]
    there: Vector
    y: Vector
    of_y: Vector
    corners: tuple[Vector, Vector, Vector]
    of_a: tuple[Vector, Vector, Vector]
    choice: Any
    triangle: Any
    x: Vector
    done: Any

    def settled(self) -> _Search:
        """With the last step's decisions carried out."""
        keep = self.choice >= _KEEP

        def chosen(new: Vector, old: tuple[Vector, Vector, Vector]) -> tuple[Vector, Vector, Vector]:
            second, third = old[1], new
            for k in _EDGES:
                second = _where(self.choice == k, old[k], second)
            for k, (i, j) in enumerate(_TRIANGLES, len(_EDGES)):
                second, third = _where(self.choice == k, old[i], second), _where(self.choice == k, old[j], third)
            return _where(keep, old[0], new), _where(keep, old[1], second), _where(keep, old[2], third)

        return replace(
            self,
            n=_where(self.better, self.tried, self.n),
            better=jnp.zeros_like(self.better),
            corners=chosen(self.y, self.corners),
            of_a=chosen(self.of_y, self.of_a),
            triangle=jnp.where(keep, self.triangle, self.choice >= len(_EDGES)),
            choice=jnp.where(self.choice == _FIRST, _FIRST, _KEEP),
        )

    def touching(self) -> Vector:
        """The point of A that belongs to the nearest point."""
        first, second, third = self.corners
        e, f = _minus(second, first), _minus(third, first)
        weights = _weights(first, e, f)
        t = jnp.clip(-_dot(first, e) / jnp.maximum(_dot(e, e), _TINY), 0, 1)
        u, v = jnp.where(self.triangle, weights[0], t), jnp.where(self.triangle, weights[1], 0.0)
        a, b, c = self.of_a
        return _plus(_scale(a, 1 - u - v), _plus(_scale(b, u), _scale(c, v)))


def _best_axis(turns, c: Vector, a: Convex, b: Convex) -> Vector:
    """The best direction among the axes of both bodies, their cross products and the centre line."""
    own, other = ([tuple(R[i][k] for i in range(3)) for k in range(3)] for R in turns)
    M = [[_dot(u, v) for v in other] for u in own]
    in_a, in_b = (tuple(_dot(u, c) for u in axes) for axes in (own, other))
    values = [jnp.abs(in_a[i]) - a.half[i] - _extent(b, tuple(M[i])) for i in range(3)]
    values += [jnp.abs(in_b[j]) - b.half[j] - _extent(a, tuple(M[i][j] for i in range(3))) for j in range(3)]
    zero = jnp.zeros_like(c[0])
    for i in range(3):
        k, l = (i + 1) % 3, (i + 2) % 3
        for j in range(3):  # u_i x v_j, in both frames
            p, q = (j + 1) % 3, (j + 2) % 3
            seen_a, seen_b = [zero] * 3, [zero] * 3
            seen_a[k], seen_a[l], seen_b[p], seen_b[q] = -M[l][j], M[k][j], M[i][q], -M[i][p]
            square = M[k][j] ** 2 + M[l][j] ** 2
            apart = jnp.abs(in_a[l] * M[k][j] - in_a[k] * M[l][j]) - _extent(a, tuple(seen_a)) - _extent(b, tuple(seen_b))
            values.append(jnp.where(square > 1e-8, apart / jnp.sqrt(jnp.maximum(square, 1e-8)), -jnp.inf))
    length = jnp.maximum(_norm(c), 1e-9)
    values.append(length - (_extent(a, in_a) + _extent(b, in_b)) / length)
    which = jnp.argmax(jnp.stack(values), axis=0)

    def axis(of: list[Vector], index) -> Vector:
        return _where(index == 0, of[0], _where(index == 1, of[1], of[2]))

    of_cross = jnp.maximum(which - 6, 0)
    cross = _cross(axis(own, of_cross // 3), axis(other, of_cross % 3))
    n = _where(which < 3, axis(own, which), _where(which < 6, axis(other, which - 3), _where(which < 15, cross, c)))
    length = _norm(n)
    n = _scale(n, jnp.where(_dot(n, c) >= 0, 1.0, -1.0) / length)
    return _where(length > 1e-9, n, own[0])


def _run(step, at: _Search, most: int) -> _Search:
    """At most so many steps, until all are done."""
    return jax.lax.while_loop(
        lambda s: (s[0] < most) & ~jnp.all(s[1].done), lambda s: (s[0] + 1, step(s[0], s[1])), (0, at)
    )[1]


def _nearest(y: Vector, corners: tuple[Vector, Vector, Vector]) -> tuple[list[tuple[Any, Vector]], Any]:
    """The points nearest to zero on the edges from y to the corners, and on the planes of the triangles, each with whether it is one;
    and whether zero is inside of all."""
    edges = [_minus(k, y) for k in corners]
    out = []
    for i in _EDGES:
        t = jnp.clip(-_dot(y, edges[i]) / jnp.maximum(_dot(edges[i], edges[i]), _TINY), 0, 1)
        out.append((True, _plus(y, _scale(edges[i], t))))
    for i, j in _TRIANGLES:
        across = _cross(edges[i], edges[j])
        area = _dot(across, across)
        u, v = _weights(y, edges[i], edges[j])
        flat = area > 1e-10 * _dot(edges[i], edges[i]) * _dot(edges[j], edges[j])
        x = _scale(across, _dot(across, y) / jnp.maximum(area, _TINY))
        out.append(((u >= 0) & (v >= 0) & (u + v <= 1) & flat, x))
    across = [_cross(edges[j], edges[k]) for j, k in ((1, 2), (2, 0), (0, 1))]
    volume = _dot(edges[0], across[0])
    shares = [-_dot(y, m) * jnp.sign(volume) for m in across]
    inside = (shares[0] > 0) & (shares[1] > 0) & (shares[2] > 0) & (sum(shares) < jnp.abs(volume))
    return out, inside


def _weights(y: Vector, e: Vector, f: Vector) -> tuple[Any, Any]:
    """u, v of the point y + u e + v f that is nearest to zero."""
    across = _cross(e, f)
    inverse = 1 / jnp.maximum(_dot(across, across), _TINY)
    ee, ff, ef, ye, yf = _dot(e, e), _dot(f, f), _dot(e, f), _dot(y, e), _dot(y, f)
    return (ef * yf - ff * ye) * inverse, (ef * ye - ee * yf) * inverse


def _support(k: Convex, n: Vector) -> Vector:
    """The point of each core furthest along n, in its own frame."""
    h = tuple(k.half)
    corner = tuple(jnp.where(m >= 0, e, -e) for e, m in zip(h, n, strict=True))
    rim = h[0] / jnp.sqrt(n[0] ** 2 + n[1] ** 2 + _TINY)
    stretched = tuple(e * m for e, m in zip(h, n, strict=True))
    scale = 1 / _norm(stretched)
    round, smooth = k.kind == CYLINDER, k.kind == ELLIPSOID
    own = jnp.where(round, rim * n[0], corner[0]), jnp.where(round, rim * n[1], corner[1]), corner[2]
    return _where(smooth, tuple(e * m * scale for e, m in zip(h, stretched, strict=True)), own)


def _extent(k: Convex, n: Vector) -> Any:
    """h(n) of each core."""
    stretched = tuple(e * m for e, m in zip(tuple(k.half), n, strict=True))
    flat = jnp.sqrt(stretched[0] ** 2 + stretched[1] ** 2)
    straight = jnp.where(k.kind == CYLINDER, flat, jnp.abs(stretched[0]) + jnp.abs(stretched[1])) + jnp.abs(stretched[2])
    return jnp.where(k.kind == ELLIPSOID, jnp.sqrt(flat**2 + stretched[2] ** 2), straight)


def _rows(rotation) -> list[list[Any]]:
    return [[rotation[i, j] for j in range(3)] for i in range(3)]


def _turn(R, v: Vector) -> Vector:
    return tuple(sum(R[i][j] * v[j] for j in range(3)) for i in range(3))


def _turn_back(R, v: Vector) -> Vector:
    return tuple(sum(R[j][i] * v[j] for j in range(3)) for i in range(3))


def _dot(a: Vector, b: Vector) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _plus(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _scale(a: Vector, s: Any) -> Vector:
    return a[0] * s, a[1] * s, a[2] * s


def _where(condition: Any, a: Vector, b: Vector) -> Vector:
    return tuple(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True))


def _norm(v: Vector) -> Any:
    return jnp.sqrt(_dot(v, v) + _TINY)
