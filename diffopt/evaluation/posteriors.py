"""Problems whose constrained posterior is known exactly, and how far a sampler's plans are from it.

The prior is a Gaussian mixture, so that the denoiser is exact; the constraint is f(x) <= c with a scalar f, and c is the quantile of f
under the prior at which the wanted share of it is feasible: the share is the dial of difficulty. The posterior, the prior restricted to
the feasible set, is drawn exactly by rejection. All kinds of f at one dimension have one structure: a sampler compiles once for all.

    half_space   u.x                                 ball      |x - a|                   shell   | |x - a| - R |
    union        min_i |x - a_i|, three centres      passage   |v.x| - (u.x)^2 / 2       u, v orthonormal

The judge decides by NumPy in double precision, apart from what the samplers differentiate.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import Policy, gaussian_mixture
from diffopt.schedules import Cosine, Schedule

KINDS = ("half_space", "ball", "shell", "union", "passage")
TOLERANCE = 1e-3
RADIUS = 1.5  # of the shell, in standard deviations per square root of the dimension
COMPONENTS, SCALE = 6, 0.35


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of f: which kind, u and v, the centres, R and c."""

    kind: Int[Array, ""]
    u: Float[Array, "n"]
    v: Float[Array, "n"]
    centres: Float[Array, "3 n"]
    radius: Float[Array, ""]
    level: Float[Array, ""]


def excess(plan: Point, shape: Shape) -> Float[Array, ""]:
    """f(x) - c."""
    x = plan.values

    def distance(a):
        return jnp.sqrt(jnp.sum((x - a) ** 2) + 1e-12)

    branches = [
        lambda: shape.u @ x,
        lambda: distance(shape.centres[0]),
        lambda: jnp.abs(distance(shape.centres[0]) - shape.radius),
        lambda: jnp.min(jax.vmap(distance)(shape.centres)),
        lambda: jnp.abs(shape.v @ x) - 0.5 * (shape.u @ x) ** 2,
    ]
    return jax.lax.switch(shape.kind, branches) - shape.level


@dataclass(frozen=True, kw_only=True)
class PosteriorProblem:
    """A prior, a constraint, and the exact posterior; made by `problem`.

    Attributes:
      kind: one of `KINDS`.
      share: of the prior that is feasible.
      policy: the prior.
      shape: the constraint's numbers.
    """

    kind: str
    share: float
    policy: Policy
    shape: Shape

    @property
    def constraints(self) -> ConstraintSet:
        return ConstraintSet.of(from_residual(excess, self.shape, name="region", plan_type=Point, tolerance=TOLERANCE))

    def judge(self, x: Float[np.ndarray, "N n"]) -> Bool[np.ndarray, "N"]:
        """Whether plans are feasible, within the tolerance; not for NaN."""
        return self._f(np.asarray(x, np.float64)) <= float(self.shape.level) + TOLERANCE

    def exact(self, seed: int, n: int) -> Float[np.ndarray, "n dim"]:
        """Draws of the posterior."""
        kept: list[np.ndarray] = []
        key = jax.random.key(seed)
        while sum(map(len, kept)) < n:
            key, now = jax.random.split(key)
            x = np.asarray(self.policy.denoiser.sample(now, max(4096, round(1.5 * n / self.share))), np.float64)  # type: ignore[attr-defined]
            kept.append(x[self._f(x) <= float(self.shape.level)])
        return np.concatenate(kept)[:n]

    def _f(self, x: np.ndarray) -> np.ndarray:
        shape = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), self.shape)
        to = np.linalg.norm(x[:, None] - shape.centres, axis=-1)
        if self.kind == "half_space":
            return x @ shape.u
        if self.kind == "ball":
            return to[:, 0]
        if self.kind == "shell":
            return np.abs(to[:, 0] - shape.radius)
        if self.kind == "union":
            return to.min(axis=1)
        return np.abs(x @ shape.v) - 0.5 * (x @ shape.u) ** 2


def problem(
    kind: str, *, dim: int = 2, share: float = 0.1, seed: int = 0, schedule: Schedule | None = None
) -> PosteriorProblem:
    """The problem of a kind at a dimension; `seed` draws mixture and constraint, `share` is how much of the prior is feasible."""
    if kind not in KINDS:
        raise ValueError(f"no problem {kind!r}; there are: {', '.join(KINDS)}")
    if not 0 < share < 1 or dim < 2:
        raise ValueError(f"share={share}, dim={dim}; expected a share between 0 and 1 and at least two dimensions")
    rng = np.random.default_rng([seed, dim])
    means = np.sqrt(1 - SCALE**2) * rng.normal(size=(COMPONENTS, dim))
    basis = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    policy = gaussian_mixture(means, SCALE, rng.uniform(0.5, 1.5, COMPONENTS), schedule=schedule or Cosine())
    shape = Shape(
        kind=jnp.asarray(KINDS.index(kind)),
        u=jnp.asarray(basis[0], jnp.float32),
        v=jnp.asarray(basis[1], jnp.float32),
        centres=jnp.asarray(rng.normal(size=(3, dim)), jnp.float32),
        radius=jnp.asarray(RADIUS * np.sqrt(dim), jnp.float32),
        level=jnp.zeros(()),
    )
    free = PosteriorProblem(kind=kind, share=share, policy=policy, shape=shape)
    draws = np.asarray(policy.denoiser.sample(jax.random.key(seed), 200_000), np.float64)  # type: ignore[attr-defined]
    level = jnp.asarray(np.quantile(free._f(draws), share), jnp.float32)
    return PosteriorProblem(kind=kind, share=share, policy=policy, shape=Shape(**{**vars(shape), "level": level}))


@dataclass(frozen=True, kw_only=True)
class Distance:
    """An energy distance with its bootstrap interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Exact draws that others are compared with, and their mean distance from each other; made by `Reference.of`."""

    points: Float[np.ndarray, "M n"]
    among: float

    @staticmethod
    def of(points: Float[np.ndarray, "M n"]) -> Reference:
        from scipy.spatial.distance import pdist

        if len(points) < 2:
            raise ValueError(f"{len(points)} points; a reference needs at least two")
        return Reference(points=points, among=float(pdist(points).mean()))


def energy_distance(
    x: Float[np.ndarray, "N n"], reference: Reference, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Distance:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased (Szekely and Rizzo 2013), zero for equal distributions; resampling x alone.

    Pairs of a resampled x with itself are left out, as they are of x: otherwise every interval would lie above its estimate.
    """
    if len(x) < 2:
        raise ValueError(f"{len(x)} points; a distance needs at least two")
    from scipy.spatial.distance import cdist

    across, within = cdist(x, reference.points).mean(axis=1), cdist(x, x)

    def value(w: np.ndarray) -> np.ndarray:
        pairs = 1 - np.sum(w**2, axis=-1)  # share of pairs of different members
        return 2 * w @ across - np.sum((w @ within) * w, axis=-1) / pairs - reference.among

    n = len(x)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    low, high = np.quantile(value(counts), [0.5 - level / 2, 0.5 + level / 2])
    return Distance(estimate=float(value(np.full(n, 1 / n))), low=float(low), high=float(high))


def noise_floor(problem: PosteriorProblem, n: int, reference: Reference, *, repeats: int = 40) -> float:
    """The 95 % quantile of the distance of n exact draws from the reference: what an exact sampler would show."""
    draws = problem.exact(10_000, n * repeats).reshape(repeats, n, -1)
    return float(np.quantile([energy_distance(x, reference, resamples=1).estimate for x in draws], 0.95))
