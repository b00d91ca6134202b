"""The point nearest to zero of c - K, for a convex K of which only the furthest points along given directions are known.

Gilbert, Johnson and Keerthi 1988: with x the nearest point so far, on a corner, edge or triangle of at most three known points, and w the
furthest point of K along n = x / |x|, the next x is the nearest to zero of all edges and triangles between y = c - w and those three.
|x| is an upper bound of the distance, s(n) = n . (c - w) a lower one; they meet.

If zero is in c - K, the best n known is taken, c moved along it until zero is not, and the search begins anew.

What a step decides, it leaves to the next one to carry out: a compiler may compute a comparison of two equal numbers several times with
several results, but not that of numbers that it has stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from diffopt.geometry.rows import TINY, Vector, cross, dot, minus, norm, plus, scale, where

_EDGES, _TRIANGLES = (0, 1, 2), ((0, 1), (0, 2), (1, 2))  # between a new point and three before
_KEEP, _FIRST = 6, 7


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Search:
    """Where the search stands, of every pair.

    Attributes:
      best, n: the largest s(n), and where it was found.
      tried, better: what was tried last, and whether it was better.
      trial, locally: what is to be tried next, in the common frame and in those of the bodies.
      shift: by how much c was moved; zero at first.
      y, of_y: the newest point, and which point of A it is.
      points, of_a: the three points before it; the same one may stand there several times.
      choice: on which edge or triangle the nearest point is.
      triangle: whether the three points are a triangle; else an edge, between the first two.
      x: the nearest point.
      done: whether nothing better is to be expected.
    """

    best: Any
    n: Vector
    tried: Vector
    better: Any
    trial: Vector
    locally: tuple[Vector, Vector]
    shift: Vector
    y: Vector
    of_y: Vector
    points: tuple[Vector, Vector, Vector]
    of_a: tuple[Vector, Vector, Vector]
    choice: Any
    triangle: Any
    x: Vector
    done: Any


def nearest_point(
    c: Vector,
    first: Vector,
    local: Callable[[Vector], tuple[Vector, Vector]],
    bound: Callable[[Vector, tuple[Vector, Vector]], Any],
    support: Callable[[tuple[Vector, Vector]], tuple[Vector, Vector]],
    steps: int,
) -> tuple[Any, Vector, Vector, Vector, Vector]:
    """The largest s(n) found and n; the nearest point x, which point of A it is, and by how much c was moved to have one.

    Args:
      first: where to begin.
      local: a direction in the frames of both bodies.
      bound: s(n) of a direction given in the common frame and in those.
      support: the furthest points of both bodies.
      steps: at most so many.
    """
    none = jnp.zeros_like(c[0])
    zero = (none,) * 3
    no = none > 1
    start = _Search(
        best=none - jnp.inf,
        n=first,
        tried=first,
        better=no,
        trial=first,
        locally=local(first),
        shift=zero,
        y=zero,
        of_y=zero,
        points=(zero,) * 3,
        of_a=(zero,) * 3,
        choice=jnp.full(none.shape, _FIRST),
        triangle=no,
        x=zero,
        done=no,
    )

    def step(at: _Search) -> _Search:
        at = _settled(at)
        first = at.choice == _FIRST
        of_y, of_other = support(at.locally)
        y = minus(plus(c, at.shift), plus(of_y, of_other))
        points, of_a = (
            tuple(where(first, new, old) for old in before) for new, before in ((y, at.points), (of_y, at.of_a))
        )
        x, choice, inside = _nearest(y, points)
        choice = jnp.where(~first & (dot(x, x) >= dot(at.x, at.x)), _KEEP, choice)
        x = where(choice == _KEEP, at.x, x)
        value = bound(at.trial, at.locally)
        best, length = jnp.maximum(value, at.best), norm(x)
        trial = scale(x, 1 / length)
        converged = length * (1 - 1e-6) - best - dot(trial, at.shift) < 1e-7
        done = at.done | inside | (choice == _KEEP) | converged
        # where zero turned out to be inside, the step is for beginning anew, outside; of the extent of K along n a part is kept as a gap
        again = overlapping(at)
        away = scale(at.n, 0.1 * (dot(at.n, c) - at.best) + 1e-3 - at.best)
        trial = where(again, at.n, trial)
        return replace(
            at,
            best=best,
            better=(value > at.best) & ~again,
            tried=at.trial,
            trial=trial,
            locally=local(trial),
            shift=where(again, away, at.shift),
            y=y,
            of_y=of_y,
            points=points,
            of_a=of_a,
            choice=jnp.where(again, _FIRST, choice),
            x=x,
            done=done & ~again,
        )

    def overlapping(at: _Search) -> Any:
        return at.done & (at.best <= 0) & (dot(at.shift, at.shift) == 0)

    def unfinished(state) -> Any:
        return (state[0] < steps) & jnp.any(~state[1].done | overlapping(state[1]))

    at = _settled(jax.lax.while_loop(unfinished, lambda s: (s[0] + 1, step(s[1])), (0, start))[1])
    return at.best, at.n, *_touching(at), at.shift


def _settled(at: _Search) -> _Search:
    """With the last step's decisions carried out."""
    keep = at.choice >= _KEEP

    def chosen(new: Vector, old: tuple[Vector, Vector, Vector]) -> tuple[Vector, Vector, Vector]:
        second, third = old[1], new
        for k in _EDGES:
            second = where(at.choice == k, old[k], second)
        for k, (i, j) in enumerate(_TRIANGLES, len(_EDGES)):
            second, third = where(at.choice == k, old[i], second), where(at.choice == k, old[j], third)
        return where(keep, old[0], new), where(keep, old[1], second), where(keep, old[2], third)

    return replace(
        at,
        n=where(at.better, at.tried, at.n),
        better=jnp.zeros_like(at.better),
        points=chosen(at.y, at.points),
        of_a=chosen(at.of_y, at.of_a),
        triangle=jnp.where(keep, at.triangle, at.choice >= len(_EDGES)),
        choice=jnp.maximum(at.choice, _KEEP),
    )


def _nearest(y: Vector, points: tuple[Vector, Vector, Vector]) -> tuple[Vector, Any, Any]:
    """The point nearest to zero of the edges from y and the triangles on them; which it is on; whether zero is inside of all four."""
    edges = [minus(k, y) for k in points]
    square, slope = [dot(e, e) for e in edges], [dot(y, e) for e in edges]
    x = plus(y, scale(edges[0], jnp.clip(-slope[0] / jnp.maximum(square[0], TINY), 0, 1)))
    shortest, choice = dot(x, x), jnp.zeros_like(square[0], jnp.int32)

    def take(k: int, option: Vector, allowed: Any) -> None:
        nonlocal x, shortest, choice
        length = dot(option, option)
        closer = allowed & (length < shortest)
        shortest, x, choice = (
            jnp.where(closer, length, shortest),
            where(closer, option, x),
            jnp.where(closer, k, choice),
        )

    for k in _EDGES[1:]:
        t = jnp.clip(-slope[k] / jnp.maximum(square[k], TINY), 0, 1)
        take(k, plus(y, scale(edges[k], t)), True)
    shares = []
    for k, (i, j) in enumerate(_TRIANGLES, len(_EDGES)):
        normal = cross(edges[i], edges[j])
        area, height = dot(normal, normal), dot(y, normal)
        foot = scale(normal, height / jnp.maximum(area, TINY))
        u, v = _weights(minus(foot, y), edges[i], edges[j], normal)
        take(k, foot, (u >= 0) & (v >= 0) & (u + v <= area) & (area > 1e-10 * square[i] * square[j]))
        shares.append(height)
    # zero as y and shares of the edges, which are ratios of volumes
    volume = dot(edges[2], cross(edges[0], edges[1]))
    sign = -jnp.sign(volume)
    of_third, of_second, of_first = sign * shares[0], -sign * shares[1], sign * shares[2]
    inside = (of_first > 0) & (of_second > 0) & (of_third > 0) & (of_first + of_second + of_third < jnp.abs(volume))
    return x, choice, inside


def _weights(r: Vector, e: Vector, f: Vector, normal: Vector) -> tuple[Any, Any]:
    """u, v of r = (u e + v f) / |normal|^2, for r in the plane of e and f; better conditioned than the normal equations are."""
    return dot(cross(r, f), normal), dot(cross(e, r), normal)


def _touching(at: _Search) -> tuple[Vector, Vector]:
    """The nearest point from the three points, and the point of A that belongs to it."""
    first, second, third = at.points
    e, f = minus(second, first), minus(third, first)
    normal = cross(e, f)
    inverse = 1 / jnp.maximum(dot(normal, normal), TINY)
    u, v = _weights(minus(at.x, first), e, f, normal)
    t = -dot(first, e) / jnp.maximum(dot(e, e), TINY)
    u = jnp.clip(jnp.where(at.triangle, u * inverse, t), 0, 1)
    v = jnp.clip(jnp.where(at.triangle, v * inverse, 0.0), 0, 1 - u)
    a, b, c = at.of_a
    return plus(first, plus(scale(e, u), scale(f, v))), plus(scale(a, 1 - u - v), plus(scale(b, u), scale(c, v)))
