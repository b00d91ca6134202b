"""Optimization-guided diffusion, one small problem per level (row 18 of the catalogue, horizon `step`; arXiv 2606.24208).

At level k, with mean mu, standard deviation s and scale alpha = alpha_{k-1} of the next level, the control d replaces the noise:

    minimise 1/2 |d - anchor|^2   subject to   the constraints on c(d),        x_{k-1} = mu + s d,

anchor = 0 (`zero`: maximum a posteriori) or the drawn noise z (`sampled`: keeps the diversity of the prior), and c(d), to first order,

    next       c(d) = mu + s d                               the next iterate itself
    current    c(d) = D(x_k, k) + s/b (d - anchor)           the clean estimate at this iterate
    lookahead  c(d) = D(mu + s anchor, k-1) + s/b (d - anchor)    the clean estimate at the next iterate; one more evaluation

In all three c(d) = c + g (d - anchor), so the problem is the nearest feasible vector x* to c, weighted by 1/g, and the iterate moves by
b (x* - c), to x_{k-1} = mu + s anchor + b (x* - c). That holds for s -> 0 too, where the hard problem does not depend on s. For `next`,
b = 1. For the others b says how far the iterate has to go for its clean estimate to arrive at x*: the inverse of dD/dx, which for a
prior of unit variance, as the normaliser makes it, is 1/alpha (limited to `most_gain` where there is hardly any signal yet). DiRecT
(arXiv 2606.15359) is `sampled` and `lookahead` with b = alpha.

Local corrections do not change the mode of a prior, and a mode is decided early. So several candidates are drawn plainly down to the
first level that is solved, and only the one whose clean estimate is nearest to feasible goes on: best of N at a share of the price.
Several particles may be drawn for a plan, too: of those that end satisfied, the one with the least control energy is the most likely under
the prior.

The last step has s = 0, so the control has no authority there: the sampler ends with an explicit terminal correction, which is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, stats
from diffopt.samplers.correction import Correction, Tracks
from diffopt.samplers.ddim import DDIM
from diffopt.solvers import RealTimeIteration, Solver

Anchor = Literal["sampled", "zero"]
Constrain = Literal["lookahead", "current", "next"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OGD:
    """See the module's docstring.

    Attributes:
      anchor, constrain: which problem is solved at a level.
      hard: multipliers (augmented Lagrangian) or the least-squares relaxation, whose answer is differentiable.
      share: at which share of the levels, counted from the end, it is solved.
      tracks: starting points that are carried along.
      candidates: plain samples down to the first level that is solved; the one nearest to feasible there goes on.
      particles: draws per plan, of which the best is returned.
      most_gain: largest b.
      penalty: rho of the augmented Lagrangian, per squared violation in tolerances.
      terminal: Gauss-Newton steps of the terminal correction; at a level it is one per track.
    """

    anchor: Anchor = field(default="sampled", metadata=dict(static=True))
    constrain: Constrain = field(default="lookahead", metadata=dict(static=True))
    hard: bool = field(default=True, metadata=dict(static=True))
    share: float = field(default=0.125, metadata=dict(static=True))
    tracks: int = field(default=2, metadata=dict(static=True))
    candidates: int = field(default=16, metadata=dict(static=True))
    particles: int = field(default=1, metadata=dict(static=True))
    most_gain: float | Array = 6.0
    penalty: float | Array = 10.0
    terminal: int = field(default=6, metadata=dict(static=True))

    def __post_init__(self):
        if self.anchor not in ("sampled", "zero"):
            raise ValueError(f"anchor={self.anchor!r}; there are: sampled, zero")
        if self.constrain not in ("lookahead", "current", "next"):
            raise ValueError(f"constrain={self.constrain!r}; there are: lookahead, current, next")
        if self.particles < 1 or self.candidates < 1:
            raise ValueError(f"particles={self.particles}, candidates={self.candidates}; at least one is drawn")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: a share of the levels is between 0 and 1")

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: Tracks | None = None) -> Draw:
        if not constraints:
            return DDIM()(process, constraints, key)
        if self.particles == 1:
            return self._draw(process, constraints, key, warm)
        keys = jax.random.split(key, self.particles)
        draws = jax.vmap(lambda key, warm: self._draw(process, constraints, key, warm))(keys, warm)
        energy = jnp.where(draws.stats.acceptance > 0, draws.stats.control_energy, jnp.inf)
        best = jnp.argmin(jnp.where(jnp.isfinite(energy), energy, jnp.inf))
        chosen = jax.tree.map(lambda leaf: leaf[best], draws)
        total = replace(
            chosen.stats,
            evaluations=jnp.sum(draws.stats.evaluations),
            iterations=jnp.sum(draws.stats.iterations),
            acceptance=jnp.mean(draws.stats.acceptance),
        )
        return replace(chosen, stats=total, warm=draws.warm)

    def _draw(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: Tracks | None) -> Draw:
        """One particle."""
        solved = round(self.share * process.count)
        free = process.count - solved
        init_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (solved, process.dim))
        levels = jnp.arange(process.count, 0, -1)

        correction = Correction(policy=process.policy, constraints=constraints, tracks=self.tracks)
        solver = RealTimeIteration(penalty=self.penalty, hard=self.hard)

        def plain(x, step):
            k, z = step
            return process.step(x, z, k), 0.5 * jnp.sum(jnp.where(process.std[k] > 0, z, 0.0) ** 2)

        def candidate(key):
            """A plain sample down to the first level that is solved, its tracks, and how far it is from feasible."""
            init_key, noise_key = jax.random.split(key)
            drawn = jax.random.normal(noise_key, (free, process.dim))
            x, energy = jax.lax.scan(plain, process.prior(init_key), (levels[:free], drawn))
            return x, jnp.sum(energy), *correction.start(process.clean(x, levels[free]) if solved else x, solver)

        candidates = jax.vmap(candidate)(jax.random.split(init_key, self.candidates))
        best = jnp.argmin(jnp.where(jnp.isfinite(candidates[-1]), candidates[-1], jnp.inf))
        x, energy_before, tracks, _ = jax.tree.map(lambda leaf: leaf[best], candidates)
        tracks = tracks if warm is None else warm

        def body(carry, step):
            x, tracks = carry
            k, z = step
            x, tracks, energy, iterations = self._level(process, correction, solver, x, tracks, z, k)
            return (x, tracks), (energy, iterations)

        (x, tracks), (energy, iterations) = jax.lax.scan(body, (x, tracks), (levels[free:], noise))
        end = correction.settle(x, tracks, solver, steps=self.terminal)
        return Draw(
            x=end.x,
            aux=end.aux,
            settled=end.settled,
            stats=stats(
                evaluations=self.candidates * (free + (solved > 0)) + solved * (2 if self.constrain == "lookahead" else 1),
                iterations=jnp.sum(iterations) + end.iterations,
                control_energy=energy_before + jnp.sum(energy),
                terminal_move=jnp.linalg.norm(end.x - end.reference),
                acceptance=end.satisfied,
            ),
            warm=end.tracks,
        )

    def _level(self, process: ReverseProcess, correction: Correction, solver: Solver, x, tracks: Tracks, z, k):
        """One level: the next iterate, the tracks, the energy of the control and the solver's iterations."""
        clean = process.clean(x, k)
        std, alpha = process.std[k], process.alpha[k - 1]
        anchor = z if self.anchor == "sampled" else jnp.zeros_like(z)
        anchored = process.mean(x, clean, k) + std * anchor
        if self.constrain == "next":
            reference, gain = anchored, jnp.ones(())
        elif self.constrain == "current":
            reference, gain = clean, jnp.minimum(1 / alpha, self.most_gain)
        else:
            reference, gain = process.clean(anchored, k - 1), jnp.minimum(1 / alpha, self.most_gain)
        weight = 1.0 if self.hard else gain / jnp.maximum(std, 0.1)
        corrected = correction(reference, tracks, solver, weight)
        move = gain * (corrected.x - corrected.reference)
        control = jnp.where(std > 0, anchor + move / jnp.maximum(std, 1e-6), 0.0)
        return anchored + move, corrected.tracks, 0.5 * jnp.sum(control**2), corrected.iterations
