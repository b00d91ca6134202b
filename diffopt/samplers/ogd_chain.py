"""Optimization-guided diffusion over the whole chain (row 18 of the catalogue, horizon `chain`; arXiv 2606.24208).

Over x_K, the controls d_K .. d_1, and the joints,

    minimise    1/2 |x_K - drawn|^2 / sigma_K^2 + 1/2 sum_k |d_k - anchor_k|^2
    subject to  x_{k-1} = mu(x_k) + std_k d_k,      the constraints on x_0,

anchor = 0 (maximum a posteriori about the drawn start) or the drawn noise (`sampled`). Three ways, after the settings that are reported:

    shooting        states by rollout, constraints as strength * J(x_0 + offset); L-BFGS with history 10, 10 iterations, over x_K, the
                    controls, and an offset that stands for the control which the last step lacks
    least_squares   states and controls are unknowns, all is a residual: dynamics with weight 10 (last step 50), controls 1, rows of
                    the constraints beyond 0.005 with weight 10; Levenberg-Marquardt, 15 iterations
    hard            controls are (x_{k-1} - mu(x_k))/std_k, constraints are kept, |d_k| and |x_K|/sigma_K within `box`; 45 iterations of
                    the augmented Lagrangian where the paper has an interior point method

Deviations: the paper's L-BFGS searches by strong Wolfe (here `descent`), its box is 1 (here 3, for starts are Gaussian), and whether its
weights are squared is not said (here they multiply squares). The two that keep states as unknowns are dense, for up to about 200 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.descent import descend
from diffopt.samplers.guidance import Guide
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Walked, finish, plain_draw
from diffopt.solvers import AugmentedLagrangian, GaussNewton, Problem, Status

Way = Literal["shooting", "least_squares", "hard"]
WAYS: tuple[Way, ...] = ("shooting", "least_squares", "hard")
DYNAMICS, LAST_STEP, TERMINAL, ABOVE = (
    10.0,
    50.0,
    10.0,
    0.005,
)  # of least_squares; ABOVE in units of the rows' scale / 0.01


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OGDChain:
    """See the module's docstring.

    Attributes:
      way: how the problem is solved.
      anchor: of the controls.
      strength: weight of J in shooting.
      offset: standard deviation of shooting's offset.
      iterations: of the solver; None for 10, 15 or 45, by the way.
      box: of the hard way.
      softness: of the cost's rows. tracks: of the joints, the best of which is optimised along. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    way: Way = field(default="shooting", metadata=dict(static=True))
    anchor: Literal["sampled", "zero"] = field(default="sampled", metadata=dict(static=True))
    strength: float | Array = 10.0
    offset: float | Array = 0.1
    iterations: int | None = field(default=None, metadata=dict(static=True))
    box: float | Array = 3.0
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __post_init__(self):
        if self.way not in WAYS:
            raise ValueError(f"way={self.way!r}; there are: {', '.join(WAYS)}")
        if self.anchor not in ("sampled", "zero"):
            raise ValueError(f"anchor={self.anchor!r}; there are: sampled, zero")

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        guide = Guide(policy=process.policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        init_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (process.count, process.dim))
        anchor = noise if self.anchor == "sampled" else jnp.zeros_like(noise)
        drawn = process.prior(init_key)
        iterations = self.iterations or {"shooting": 10, "least_squares": 15, "hard": 45}[self.way]
        solve = {"shooting": self._shoot, "least_squares": self._relax, "hard": self._constrain}[self.way]
        walked, settled, aux, asked, used = solve(process, guide, drawn, anchor, iterations)
        tracks = {name: jnp.broadcast_to(value, (self.tracks, *value.shape)) for name, value in aux.items()}
        draw = finish(
            process, guide, walked, tracks, evaluations=asked, terminal=self.terminal, iterations=used, begun=0
        )
        return draw if self.terminal else replace(draw, settled=settled)

    def _shoot(self, process: ReverseProcess, guide: Guide, drawn, anchor, iterations):
        acting = process.std[:0:-1, None] > 0
        x = process.rollout(drawn, anchor)

        def loss(z):
            end = process.rollout(process.sigma[-1] * z["start"], z["controls"]) + self.offset * z["offset"]
            energy = jnp.sum((z["start"] - drawn / process.sigma[-1]) ** 2) + jnp.sum(
                jnp.where(acting, z["controls"] - anchor, 0.0) ** 2
            )
            return 0.5 * (energy + jnp.sum(z["offset"] ** 2)) + self.strength * guide.cost(end, z["aux"])

        aux = guide.best(x, guide.start(x))
        first = {"start": drawn / process.sigma[-1], "controls": anchor, "offset": jnp.zeros_like(drawn), "aux": aux}
        end = descend(loss, first, iterations=iterations)
        z, offset = end.z, self.offset * end.z["offset"]
        walked = Walked(
            x=process.rollout(process.sigma[-1] * z["start"], z["controls"]) + offset,
            carry=None,
            energy=0.5 * jnp.sum(jnp.where(acting, z["controls"], 0.0) ** 2),
            moved=jnp.linalg.norm(offset),
        )
        return walked, end.settled, z["aux"], process.count * (end.evaluations + 2), iterations

    def _relax(self, process: ReverseProcess, guide: Guide, drawn, anchor, iterations):
        std = process.std[:0:-1, None]
        weight = jnp.sqrt(jnp.concatenate([jnp.full(process.count - 1, DYNAMICS), jnp.full(1, LAST_STEP)]))[:, None]

        def residuals(z, _):
            states = z["states"]
            means = self._means(process, states[:-1])
            control = jnp.where(std > 0, z["controls"] - anchor, 0.0)
            eq, ineq = guide.signed(states[-1], z["aux"])
            beyond = jnp.concatenate([jnp.abs(eq), ineq]) * guide.softness - 100 * ABOVE
            parts = [
                (states[0] - drawn) / process.sigma[-1],
                control,
                weight * (states[1:] - means - std * z["controls"]),
                jnp.sqrt(TERMINAL) * jnp.maximum(beyond, 0),
            ]
            return jnp.concatenate([jnp.ravel(part) for part in parts])

        states = self._states(process, drawn, anchor)
        aux = guide.best(states[-1], guide.start(states[-1]))
        solver = GaussNewton(iterations=iterations)
        result = solver(Problem(cost=residuals), {"states": states, "controls": anchor, "aux": aux})
        return self._ended(process, result.z["states"], result, iterations)

    def _constrain(self, process: ReverseProcess, guide: Guide, drawn, anchor, iterations):
        std = process.std[:1:-1, None]  # the last step has none: x_0 = mu(x_1)
        box = self.box

        def controls(states):
            means = self._means(process, states)
            return (states[1:] - means[:-1]) / jnp.where(std > 0, std, 1.0), means[-1]

        def cost(z, _):
            d, _ = controls(z["states"])
            start = (z["states"][0] - drawn) / process.sigma[-1]
            return jnp.concatenate([start, jnp.ravel(jnp.where(std > 0, d - anchor[:-1], d))])

        def eq(z, _):
            return guide.softness * guide.signed(controls(z["states"])[1], z["aux"])[0]

        def ineq(z, _):
            d, end = controls(z["states"])
            start = jnp.abs(z["states"][0]) / process.sigma[-1] - box
            return jnp.concatenate(
                [guide.softness * guide.signed(end, z["aux"])[1], jnp.ravel(jnp.abs(d) - box), start]
            )

        states = self._states(process, drawn, anchor)
        aux = guide.best(states[-1], guide.start(states[-1]))
        solver = AugmentedLagrangian(outer=iterations, tolerance=1e-3)
        result = solver(Problem(cost=cost, eq=eq, ineq=ineq), {"states": states[:-1], "aux": aux})
        states = result.z["states"]
        return self._ended(
            process, jnp.concatenate([states, self._means(process, states[-1:], first=1)]), result, iterations, more=1
        )

    @staticmethod
    def _means(process: ReverseProcess, states, first: int | None = None):
        """Plain means after x_K .. x_1 (or after x_first only)."""
        levels = jnp.arange(process.count if first is None else first, 0, -1)
        return jax.vmap(lambda x, k: process.mean(x, process.clean(x, k), k))(states, levels)

    @staticmethod
    def _states(process: ReverseProcess, x, controls):
        """x_K .. x_0 of a rollout."""

        def body(x, step):
            k, control = step
            x = process.step(x, control, k)
            return x, x

        _, rest = jax.lax.scan(body, x, (jnp.arange(process.count, 0, -1), controls))
        return jnp.concatenate([x[None], rest])

    def _ended(self, process: ReverseProcess, states, result, iterations, more: int = 0):
        """What the states amount to: the controls that make them, however well the solver kept the dynamics."""
        std = process.std[:0:-1, None]
        off = states[1:] - self._means(process, states[:-1])
        control = jnp.where(std > 0, off / jnp.where(std > 0, std, 1.0), 0.0)
        walked = Walked(x=states[-1], carry=None, energy=0.5 * jnp.sum(control**2), moved=jnp.linalg.norm(off[-1]))
        asked = process.count * (iterations + 4) + more
        return walked, result.status != Status.iteration_limit, result.z["aux"], asked, result.iterations


CARD = Card(
    name="ogd_chain",
    build=OGDChain,
    row=18,
    paper="arXiv 2606.24208",
    summary="one optimisation over the start and all controls: shooting, least squares or hard",
    needs=("gradient", "network gradient"),
    evaluations="63: 6 per iteration of L-BFGS, one of which also backwards; of the others 19 and 49",
    strength=("strength", (3.0, 10.0, 30.0, 100.0, 300.0)),
)
