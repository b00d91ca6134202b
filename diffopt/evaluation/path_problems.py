"""Paths of a point among obstacles: settings like D3IL's avoiding task and Maze2D, with a prior whose density is known.

A plan is H = 64 points in the unit square, a vector of 128 numbers. The prior is the mixture of a narrow normal around each of some hundred
demonstrated paths, smooth curves through the gaps between fixed discs:

    avoiding   three rows of one, two and three discs, crossed from below: any gap of each row, 2 x 3 x 4 = 24 routes
    maze       nine discs in a square, crossed from corner to corner along the lanes between them: 20 routes

At test time, more discs stand in the way and the speed is limited, of which the demonstrations know nothing. The same kind of
protocol as D3IL (Jia et al. 2024, arXiv 2402.14606) and the test-time obstacles in Maze2D (arXiv 2606.15359), with a prior of our own.

The feasible share of the prior is the dial: discs are drawn until it is. The constraint and the judge, which is NumPy in double precision,
look at the way between the points, too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import Policy, gaussian_mixture
from diffopt.schedules import Cosine, Schedule

POINTS = 64
FIELDS = ("avoiding", "maze")
RADIUS = 0.05  # of the fixed discs [side of the square]
NEW = 5  # discs at test time, at most
SPREAD = 0.005  # standard deviation of a coordinate around a demonstration
UNIT = 0.25  # of the normalised coordinates: about the standard deviation of a coordinate over all demonstrations
TOLERANCE, MARGIN = 1e-3, 1e-4  # what constraint and judge let pass; what the constraint keeps, for rounding
TRIES = 2000


def fixed(field: str) -> Float[np.ndarray, "D 2"]:
    """Centres of the fixed discs."""
    if field == "avoiding":
        rows = [(0.3, [0.5]), (0.52, [0.36, 0.64]), (0.74, [0.22, 0.5, 0.78])]
        return np.array([(x, y) for y, xs in rows for x in xs])
    if field == "maze":
        return np.array(list(itertools.product((0.25, 0.5, 0.75), repeat=2)))
    raise ValueError(f"no field {field!r}; there are: {', '.join(FIELDS)}")


def routes(field: str) -> list[Float[np.ndarray, "K 2"]]:
    """Way points of every route, from the start to the end."""
    fixed(field)
    if field == "avoiding":
        gaps = [(0.3, (0.38, 0.62)), (0.52, (0.24, 0.5, 0.76)), (0.74, (0.1, 0.36, 0.64, 0.9))]
        passes = itertools.product(*([(x, y) for x in xs] for y, xs in gaps))
        return [np.array([(0.5, 0.05), *way, (way[-1][0], 0.95)]) for way in passes]
    out = []
    for right in itertools.combinations(range(6), 3):
        steps = np.array([(1, 0) if i in right else (0, 1) for i in range(6)])
        lanes = np.array([0.125, 0.375, 0.625, 0.875])
        cells = np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])
        out.append(lanes[cells])
    return out


def demonstrations(field: str, each: int = 24, seed: int = 0) -> Float[np.ndarray, "N H 2"]:
    """`each` paths per route: smooth curves at constant speed, their way points disturbed, clear of the fixed discs."""
    from scipy.interpolate import PchipInterpolator

    rng = np.random.default_rng([seed, FIELDS.index(field) if field in FIELDS else 0])
    out = []
    for way in routes(field):
        kept = 0
        while kept < each:
            moved = way + 0.012 * rng.normal(size=way.shape)
            length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(moved, axis=0), axis=1))])
            fine = PchipInterpolator(length, moved)(np.linspace(0, length[-1], 20 * POINTS))
            run = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
            at = np.linspace(0, run[-1], POINTS)
            path = np.stack([np.interp(at, run, fine[:, i]) for i in range(2)], axis=1)
            if clearance(path[None], fixed(field), np.full(len(fixed(field)), RADIUS))[0] > 3 * SPREAD:
                out.append(path)
                kept += 1
    return np.array(out)


def clearance(paths: Float[np.ndarray, "N H 2"], centres: np.ndarray, radii: np.ndarray) -> Float[np.ndarray, "N"]:
    """Least distance of the paths, straight between their points, from discs; negative inside."""
    a, d = paths[:, :-1], np.diff(paths, axis=1)
    square = np.maximum(np.sum(d**2, axis=-1), 1e-12)
    least = np.full(len(paths), np.inf)
    for c, r in zip(centres, radii, strict=True):
        s = np.clip(np.sum((c - a) * d, axis=-1) / square, 0, 1)
        least = np.minimum(least, np.linalg.norm(a + s[..., None] * d - c, axis=-1).min(axis=1) - r)
    return least


def path_prior(field: str, *, each: int = 24, schedule: Schedule | None = None) -> Policy:
    """The policy, in coordinates of `UNIT` around the middle of the square."""
    paths = (demonstrations(field, each).reshape(-1, 2 * POINTS) - 0.5) / UNIT
    return gaussian_mixture(paths, SPREAD / UNIT, schedule=schedule or Cosine())


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Course:
    """The numbers of a problem: discs, and the longest step [side of the square]."""

    centres: Float[Array, "D 2"]
    radii: Float[Array, "D"]
    step: Float[Array, ""]


def _points(plan: Point) -> Float[Array, "H 2"]:
    return plan.values.reshape(POINTS, 2) * UNIT + 0.5


def obstacles(plan: Point, course: Course) -> Float[Array, "H-1"]:
    """How deep every step, straight from point to point, is in the worst disc; only that one is differentiated."""
    points = _points(plan)
    every = (course.centres[:, None], course.radii[:, None])
    worst = jnp.argmax(_depth(jax.lax.stop_gradient(points), *every), axis=0)
    return _depth(points, course.centres[worst], course.radii[worst])


def _depth(points: Float[Array, "H 2"], centres: Float[Array, "*D H-1 2"], radii: Float[Array, "*D H-1"]) -> Array:
    """How deep every step is in a disc of its own."""
    a, d = points[:-1], jnp.diff(points, axis=0)
    along = jnp.sum((centres - a) * d, axis=-1) / (jnp.sum(d**2, axis=-1) + 1e-12)
    apart = a + jnp.clip(along, 0, 1)[..., None] * d - centres
    return radii + MARGIN - jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-12)


def speed(plan: Point, course: Course) -> Float[Array, "H-1"]:
    """How much longer than allowed every step is."""
    return jnp.sqrt(jnp.sum(jnp.diff(_points(plan), axis=0) ** 2, axis=-1) + 1e-12) - course.step


@dataclass(frozen=True, kw_only=True)
class PathProblem:
    """A field with test-time discs and a speed limit; made by `path_problem`.

    Attributes:
      field: one of `FIELDS`. share: of the prior that is feasible.
    """

    field: str
    course: Course
    share: float

    @property
    def constraints(self) -> ConstraintSet:
        return ConstraintSet.of(
            from_residual(obstacles, self.course, name="obstacles", plan_type=Point, tolerance=TOLERANCE),
            from_residual(speed, self.course, name="speed", plan_type=Point, tolerance=TOLERANCE),
        )

    def judge(self, x: Float[np.ndarray, "N n"]) -> Bool[np.ndarray, "N"]:
        """Whether plans are clear of all discs and slow enough; not for NaN."""
        paths = np.asarray(x, np.float64).reshape(len(x), POINTS, 2) * UNIT + 0.5
        course = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self.course)
        fast = np.linalg.norm(np.diff(paths, axis=1), axis=-1).max(axis=1)
        return (clearance(paths, course.centres, course.radii) >= -TOLERANCE) & (fast <= course.step + TOLERANCE)


def path_problem(field: str, draws: Float[np.ndarray, "N n"], share: tuple[float, float], number: int) -> PathProblem:
    """The problem of a number whose feasible share of the prior's `draws` is within two bounds.

    The speed limit alone lets 70 % of the draws pass; discs of random places and sizes, on the way of a random draw each, do the rest.

    Raises:
      ValueError: none was found.
    """
    rng = np.random.default_rng([number, FIELDS.index(field)])
    paths = np.asarray(draws, np.float64).reshape(len(draws), POINTS, 2) * UNIT + 0.5
    fast = np.linalg.norm(np.diff(paths, axis=1), axis=-1).max(axis=1)
    step = float(np.quantile(fast, 0.7))
    hidden = np.full((NEW, 2), -5.0)
    for _ in range(TRIES):
        centres, radii = hidden.copy(), np.full(NEW, 0.01)
        free = fast <= step
        for i in range(NEW):
            on = paths[rng.integers(len(paths)), rng.integers(POINTS // 6, POINTS - POINTS // 6)]
            centres[i], radii[i] = on + 0.02 * rng.normal(size=2), rng.uniform(0.02, 0.07)
            free = free & (clearance(paths, centres[i : i + 1], radii[i : i + 1]) >= 0)
            if free.mean() < share[1]:
                break
        if share[0] <= free.mean() <= share[1]:
            always = fixed(field)
            course = Course(
                centres=jnp.asarray(np.concatenate([always, centres]), jnp.float32),
                radii=jnp.asarray(np.concatenate([np.full(len(always), RADIUS), radii]), jnp.float32),
                step=jnp.asarray(step, jnp.float32),
            )
            return PathProblem(field=field, course=course, share=float(free.mean()))
    raise ValueError(f"no problem of {field!r} with a feasible share within {share} was found in {TRIES} tries")
