"""Optimization-guided diffusion, one small problem per level (row 18 of the catalogue, horizon `step`; arXiv 2606.24208).

At level k, with mean mu, standard deviation s and scale alpha = alpha_{k-1} of the next level, the control d replaces the noise:

    minimise 1/2 |d - anchor|^2   subject to   the constraints on c(d),        x_{k-1} = mu + s d,

anchor = 0 (`zero`: maximum a posteriori) or the drawn noise z (`sampled`: keeps the diversity of the prior), and c(d), to first order,

    next       c(d) = mu + s d                               the next iterate itself
    current    c(d) = D(x_k, k) + s/b (d - anchor)           the clean estimate at this iterate
    lookahead  c(d) = D(mu + s anchor, k-1) + s/b (d - anchor)    the clean estimate at the next iterate; one more evaluation

In all three c(d) = c + g (d - anchor), so the problem is the nearest feasible vector x* to c, weighted by 1/g, and the iterate moves by
b (x* - c), to x_{k-1} = mu + s anchor + b (x* - c). That holds for s -> 0 too, where the hard problem does not depend on s. For `next`,
b = 1. For the others b says how far the iterate has to go for its clean estimate to arrive at x*: the inverse of dD/dx. Where the prior
has variance v, dD/dx = alpha v / (alpha^2 v + sigma^2): for unit variance, as the normaliser makes it, b = 1/alpha (limited to `most_gain`
where there is hardly any signal yet); along a wide manifold b = alpha. So b = alpha^`gain`. DiRecT (arXiv 2606.15359) is `sampled` and
`lookahead` with b = alpha.

What makes this work on grasps (what each part is worth stands in docs/ogd.md):

    distance   "nearest" is the policy's own distance of plans (`Policy.difference`), not that of its coordinates
    search     inverse kinematics starts afresh at every level that is solved, so that no track stays in a poor local minimum
    tighten    margins grow with the noise, by tighten * sigma: what is only just feasible now will not be in the end
    window     the last levels are the network's own: it makes a good plan of a feasible one, which the solver cannot

The last step has s = 0, so the control has no authority there: the sampler ends with an explicit terminal correction, which is measured.
Of several particles that end satisfied, the one that is the most its own network's is returned: the one with the least terminal
correction (`move`), or, where levels are solved to the end and that says little, the one that the network would move least itself,
|D(alpha x_0, k) - x_0| at a fifth of the levels (`stay`, one more evaluation per particle).

Particles are drawn for all plans, attempts only for those that failed: outside of transformations `sample` has these drawn again, up to
`attempts` times. A single draw is cheap, and has to be feasible at once, so that its noisiest levels are steered already, where it is
decided what kind of plan it becomes: too often the kind to which the nearest feasible point of a blurred estimate belongs. Where failure
is seen and drawn again, draws are made with more care (`persistent`): the noisiest fifth of the levels is left to the prior, every other
level is solved, to the end, with smaller margins, a smaller gain, and more guesses, brought to the estimate's own pose (`held`): what
inverse kinematics does not find, whole parts of the feasible set, is missing from the plans. They are the guesses for a vector that is
`aside` standard deviations beside the estimate, another one every time: as many plans are found so, but hardly any of them is never found,
as those are whose own nearest guesses all lead nowhere. Where no joints have to be found, a share
g of the control of the levels above the window may follow the gradient of the violation through the network instead (`guided`), as in
`dsg`,

    d = sqrt(n) unit((1 - g) z - g sqrt(n) unit(grad_x J(D(x, k)))),      J as in `guidance`,

which, unlike the nearest feasible plan, leads to another route where there is one, but not to routes in their right shares.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints import ConstraintSet
from diffopt.paths import ToolPath, is_path
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.samplers.as_drawn import AsDrawn
from diffopt.samplers.base import Draw, Start, Started, level_of, stats
from diffopt.samplers.correction import Correction
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.guidance import Guide, unit
from diffopt.samplers.registry import Card
from diffopt.samplers.tracks import Progress, Tracks
from diffopt.solvers import RealTimeIteration

Anchor = Literal["sampled", "zero"]
Constrain = Literal["lookahead", "current", "next"]
Merit = Literal["move", "stay"]
# where a plan may be drawn again: the window, the gain, how much smaller the margins are, and among how many guesses joints are looked for
WINDOW, GAIN, CLOSER, WIDER = (0.8, 0.0), 0.5, 0.3, 5
ASIDE = 1.0  # how far beside the estimate guesses are made there
PLAINLY = 16  # draws that are left to the policy before others, where no joints have to be found, which is half of a draw's price
STAY = 0.2  # at which share of the levels the network is asked whether it would move a plan


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OGD:
    """See the module's docstring.

    Attributes:
      anchor, constrain: which problem is solved at a level.
      hard: multipliers (augmented Lagrangian) or the least-squares relaxation, whose answer is differentiable.
      every: a problem is solved at the levels that are multiples of it; 0 for none.
      window: shares of the levels, counted from the end, between which they are solved; below the second they are the network's own.
      tighten: added to every margin, times sigma [m, rad]; None for 0.1 where a plan is one configuration, and for 0.02 along a path, which
        has to come as near to things as its prior does; for 0.01 along a path of a tool, which is there to touch them.
      tracks: starting points that are carried along the levels.
      search: guesses of inverse kinematics at every level that is solved and in the end, beside the tracks. held: as in `Correction`.
      aside: where they are held, how far beside the estimate the vector is for which they are guessed [standard deviations of the prior].
      steps, terminal: Gauss-Newton steps per starting point at a level, and in the end.
      particles: draws per plan, of which the best is returned. merit: which of those that are satisfied is the best.
      attempts: how often `sample` has a plan drawn at most that fails by its own account (`diffopt.attempts`), with the
        care of `persistent`; None for 256, and for once where no level is solved or the answer is to be differentiable (not `hard`).
      plain: draws that are left to the policy before those; None for none where joints have to be found and for 16 where they have not. Not
        made where a plan of the policy's own, though feasible, is not what is asked for: with soft constraints, particles, or `zero`.
      guided: share of the gradient in the control of the levels above the window, where no joints have to be found.
      gain: exponent of b = alpha^gain. most_gain: largest b.
      penalty: rho of the augmented Lagrangian, per squared violation in tolerances.
    """

    anchor: Anchor = field(default="sampled", metadata=dict(static=True))
    constrain: Constrain = field(default="current", metadata=dict(static=True))
    hard: bool = field(default=True, metadata=dict(static=True))
    every: int | Array = 3
    window: tuple[float | Array, float | Array] = (1.0, 0.3)
    tighten: float | Array | None = None
    tracks: int = field(default=1, metadata=dict(static=True))
    search: int = field(default=2, metadata=dict(static=True))
    held: bool = field(default=False, metadata=dict(static=True))
    aside: float | Array = 0.0
    steps: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=5, metadata=dict(static=True))
    particles: int = field(default=1, metadata=dict(static=True))
    merit: Merit = field(default="move", metadata=dict(static=True))
    attempts: int | None = field(default=None, metadata=dict(static=True))
    plain: int | None = field(default=None, metadata=dict(static=True))
    guided: float = field(default=0.0, metadata=dict(static=True))
    gain: float | Array = -1.0
    most_gain: float | Array = 6.0
    penalty: float | Array = 10.0

    def __post_init__(self):
        if self.anchor not in ("sampled", "zero"):
            raise ValueError(f"anchor={self.anchor!r}; there are: sampled, zero")
        if self.constrain not in ("lookahead", "current", "next"):
            raise ValueError(f"constrain={self.constrain!r}; there are: lookahead, current, next")
        if self.merit not in ("move", "stay"):
            raise ValueError(f"merit={self.merit!r}; there are: move, stay")
        for name in ("particles", "tracks", "steps", "terminal"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; expected at least 1")
        if not 0 <= self.guided <= 1:
            raise ValueError(f"guided={self.guided}; expected between 0 and 1")
        if self.plain is not None and self.plain < 0:
            raise ValueError(f"plain={self.plain}; expected at least 0")
        numbers = jax.tree.leaves((self.window, self.every))
        if any(isinstance(number, jax.core.Tracer) or not np.isscalar(number) for number in numbers):
            return
        if not 0 <= self.window[1] <= self.window[0] <= 1 or self.every < 0:
            raise ValueError(
                f"window={self.window}: shares between 0 and 1, the larger first; every={self.every}: at least 0"
            )

    def usual_attempts(self) -> int:
        """How often a plan is drawn at most."""
        if self.attempts is not None:
            return self.attempts
        return 256 if self.hard and self._solves else 1

    def persistent(self, policy: Policy) -> OGD:
        """What draws a plan that may be drawn again."""
        if not self._solves:
            return self
        closer, wider = CLOSER * self._tighten(policy), max(self.search, WIDER)
        care = replace(self, every=1, window=WINDOW, gain=GAIN, tighten=closer, search=wider, held=True, aside=ASIDE)
        return replace(care, attempts=None, plain=None)  # of which a draw knows nothing: all share a program

    def plainly(self, policy: Policy, constraints: ConstraintSet) -> tuple[Started, int]:
        """What draws a plan that is left to the policy, and how often before others; not where a plan of the policy's is no answer yet."""
        again = self.persistent(policy)
        answers = self.hard and self._solves and self.anchor == "sampled" and self.particles == 1
        found = constraints.asks
        times = (0 if found else PLAINLY) if self.plain is None else self.plain
        plainly = (
            replace(again, every=0)
            if found
            else AsDrawn(tracks=again.tracks, search=again.search, penalty=again.penalty)
        )
        return plainly, times if answers and not constraints.of_kind("cost") else 0

    @property
    def _solves(self) -> bool:
        return isinstance(self.every, jax.core.Tracer) or bool(self.every)

    def _tighten(self, policy: Policy) -> Any:
        if self.tighten is not None:
            return self.tighten
        plan_type = policy.spec.plan_type
        return 0.01 if issubclass(plan_type, ToolPath) else 0.02 if is_path(plan_type) else 0.1

    def __call__(
        self,
        process: ReverseProcess,
        constraints: ConstraintSet,
        key: Array,
        warm: Tracks | None = None,
        start: Start | None = None,
    ) -> Draw:
        if not constraints and start is None:
            return DDIM()(process, constraints, key)
        if self.particles == 1:
            return self._draw(process, constraints, key, warm, start)
        keys = jax.random.split(key, self.particles)
        draws = jax.vmap(lambda key, warm: self._draw(process, constraints, key, warm, start))(keys, warm)
        far, asked = draws.stats.terminal_move, 0
        if self.merit == "stay":
            k = level_of(STAY, process.count)
            far, asked = (
                jax.vmap(lambda x: jnp.linalg.norm(process.clean(process.alpha[k] * x, k) - x))(draws.x),
                self.particles,
            )
        merit = jnp.where(draws.stats.acceptance > 0, 0.0, 1e3) + far
        best = jnp.argmin(jnp.where(jnp.isfinite(merit), merit, jnp.inf))
        chosen = jax.tree.map(lambda leaf: leaf[best], draws)
        total = replace(
            chosen.stats,
            evaluations=jnp.sum(draws.stats.evaluations) + asked,
            iterations=jnp.sum(draws.stats.iterations),
            acceptance=jnp.mean(draws.stats.acceptance),
        )
        return replace(chosen, stats=total, warm=draws.warm)

    def solved(self, count: int) -> Array:
        """At which of the levels count, ..., 1 a problem is solved."""
        levels = jnp.arange(count, 0, -1)
        first, last = self.window
        within = (levels <= first * count) & (levels > last * count)
        return within & (self.every > 0) & (levels % jnp.maximum(self.every, 1) == 0)

    def _draw(
        self,
        process: ReverseProcess,
        constraints: ConstraintSet,
        key: Array,
        warm: Tracks | None,
        start: Start | None,
    ) -> Draw:
        """One particle. The terminal correction is the last step of the same loop, so that the program holds the solver once."""
        init_key, noise_key = jax.random.split(key)
        aside_key, count = jax.random.fold_in(noise_key, 1), process.count
        noise = jax.random.normal(noise_key, (count, process.dim))
        correction = Correction.of(process.policy, constraints, tracks=self.tracks, search=self.search, held=self.held)
        solver = RealTimeIteration(penalty=self.penalty, hard=self.hard, passes=correction.passes)
        x, level = process.prior(init_key), jnp.asarray(count) if start is None else start.level
        if start is not None:
            noisy = process.alpha[level] * start.x + process.sigma[level] * jax.random.normal(init_key, x.shape)
            x = jnp.where(level < count, noisy, x)
        tracks = correction.seeds(x, solver) if warm is None else warm
        guide = Guide(policy=process.policy, constraints=constraints) if self.guided and not constraints.asks else None

        def free(x, z, k):
            """The clean estimate, the next iterate before a problem is solved, and its control."""
            if guide is None:
                clean, control = process.clean(x, k), z
            else:
                above = (k > self.window[0] * count) & (self.every > 0)
                towards, plain = partial(self._guided, process, guide, x, z, k), lambda: (process.clean(x, k), z)
                clean, control = jax.lax.cond(above, towards, plain)
            return clean, process.mean(x, clean, k) + process.std[k] * control, control

        def body(carry, step):
            x, tracks = carry
            k, z, solve = step
            anchor = jnp.where(solve & (self.anchor == "zero"), 0.0, z)
            clean, anchored, anchor = jax.lax.cond(k > 0, lambda: free(x, anchor, k), lambda: (x, x, anchor))
            move, tracks, progress = jax.lax.cond(
                solve,
                lambda: self._solve(process, correction, solver, clean, anchored, tracks, k, aside_key),
                lambda: (jnp.zeros_like(x), tracks, Progress.none(tracks)),
            )
            control = jnp.where(process.std[k] > 0, anchor + move / jnp.maximum(process.std[k], 1e-6), 0.0)
            return (jnp.where(k > 0, anchored + move, x), tracks), (0.5 * jnp.sum(control**2), progress)

        def body_from(carry, step):
            return jax.lax.cond(
                step[0] <= level, body, lambda carry, _: (carry, (jnp.zeros(()), Progress.none(carry[1]))), carry, step
            )

        solved = self.solved(count)
        steps = (
            jnp.arange(count, -1, -1),
            jnp.concatenate([noise, jnp.zeros((1, process.dim))]),
            jnp.append(solved, True),
        )
        (x, tracks), (energy, progress) = jax.lax.scan(body if start is None else body_from, (x, tracks), steps)
        choose = correction.judged if self.tracks > 1 or self.particles > 1 else correction.best
        end = choose(x, tracks, jax.tree.map(lambda leaf: leaf[-1], progress))
        more = int(self.constrain == "lookahead")
        return Draw(
            x=end.x,
            aux=end.aux,
            settled=end.settled,
            stats=stats(
                evaluations=level + more * jnp.sum(solved & (steps[0][:-1] <= level)),
                iterations=jnp.sum(progress.iterations),
                control_energy=jnp.sum(energy),
                terminal_move=jnp.linalg.norm(end.x - end.reference),
                acceptance=end.satisfied if self.particles > 1 else None,
            ),
            warm=tracks,
        )

    def _guided(self, process: ReverseProcess, guide: Guide, x, z, k) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
        """The clean estimate, and the noise turned towards less violation of it; the noise itself where nothing is violated."""
        clean, pull = jax.vjp(lambda x: process.clean(x, k), x)
        push, radius = pull(guide.gradient(clean, {})[1])[0], jnp.sqrt(x.size)
        turned = radius * unit((1 - self.guided) * z - self.guided * radius * unit(push))
        return clean, jnp.where(jnp.any(push != 0) & jnp.all(jnp.isfinite(push)), turned, z)

    def _solve(
        self,
        process: ReverseProcess,
        correction: Correction,
        solver: RealTimeIteration,
        clean: Float[Array, "n"],
        anchored: Float[Array, "n"],
        tracks: Tracks,
        k: Array,
        key: Array,
    ) -> tuple[Float[Array, "n"], Tracks, Progress]:
        """The problem of level k, or of the end (k = 0): by how much the next iterate moves, the tracks, and how they do.

        Args:
          key: of the vector for which joints are guessed (`aside`).
        """
        std, alpha = process.std[k], process.alpha[jnp.maximum(k - 1, 0)]
        gain = jnp.ones(()) if self.constrain == "next" else jnp.minimum(alpha**self.gain, self.most_gain)
        reference = anchored if self.constrain == "next" else clean
        if self.constrain == "lookahead":
            reference = jax.lax.cond(k > 0, lambda: process.clean(anchored, k - 1), lambda: anchored)
        tighten = self._tighten(process.policy) * process.sigma[k]
        correction = correction.tightened(tighten)
        beside = reference + self.aside * jax.random.normal(jax.random.fold_in(key, k), reference.shape)
        tracks = correction.start(reference, solver, tracks, beside)
        weight: Any = 1.0
        charged = bool(correction.nearest.constraints.of_kind("cost"))
        if charged or not self.hard:  # else the energy is all there is to weigh
            weight = jnp.where(k > 0, gain / jnp.maximum(std, 0.1), 1.0)
        if charged and self.hard:
            solver = replace(solver, penalty=self.penalty * weight**2)
        steps, most = jnp.where(k > 0, self.steps, self.terminal), max(self.steps, self.terminal)
        tracks, progress = correction.improve(reference, tracks, solver, weight, steps=steps, most=most)
        corrected = correction.best(reference, tracks, progress, weight)
        return gain * (corrected.x - corrected.reference), tracks, progress


CARD = Card(
    name="ogd",
    build=OGD,
    row=18,
    paper="arXiv 2606.24208; with anchor `sampled`, `lookahead` and every level solved close to DiRecT, arXiv 2606.15359",
    summary="a small constrained problem at every third level, solved afresh, with margins that shrink with the noise",
    needs=("projection",),
    evaluations="1 (`lookahead`: 2 where a problem is solved)",
    strength=("every", (1, 2, 3, 4, 6)),
)
