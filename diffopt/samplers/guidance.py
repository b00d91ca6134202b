"""What the constraints say to samplers that follow a gradient: one scalar cost of a normalised vector.

    J(x; q) = 1/2 sum_i (h_i / u_i)^2 + 1/2 |cost(x, q)|^2,      h = max(0, ineq), eq,      u_i = softness * (scale of row i)

over the rows of all constraints, with the auxiliary unknowns q (the robot's joints) at their best for this x:

    J(x) = min_q J(x; q),      grad J(x) = d/dx J(x; q)  at the minimum q                        (envelope theorem).

The minimum is not searched anew at every level: joints are carried along, a few tracks of them, and take a damped Gauss-Newton step
whenever x has moved. A row's scale is its tolerance (`linearization.scale`); with softness 10 a row counts as one when it is violated by
ten tolerances, which for a plain vector is 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints import Constraint, ConstraintSet, JointsRealised
from diffopt.constraints.posture import LooksAtFrames, with_frames
from diffopt.policies.base import Policy
from diffopt.samplers.linearization import Piece, by_joints, jacobian_of, scale
from diffopt.solvers import Jacobian, Problem, RealTimeIteration, Terms, Window

APPROACH = 5  # steps of inverse kinematics that bring guesses near, where the constraints know such

Tracks = dict[str, Float[Array, "T m"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Guide:
    """See the module's docstring.

    Attributes:
      policy: decodes; bound.
      constraints: the set.
      softness: of every row, in its scale.
      tracks: number of joint tracks.
    """

    policy: Policy
    constraints: ConstraintSet
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))

    def seeds(self, x: Float[Array, "n"]) -> Tracks:
        """Initial guesses of the auxiliary unknowns, the best first; an empty dict where there are none."""
        plan = self.policy.decode(x)
        seeds = self.constraints.auxiliary(plan, self.policy.context)
        if seeds and self.constraints.approaches:
            seeds = jax.lax.stop_gradient(self.constraints.approached(plan, seeds, APPROACH))
            costs = jax.lax.stop_gradient(jax.vmap(lambda q: self.cost(x, q))(seeds))
            order = jnp.argsort(jnp.where(jnp.isfinite(costs), costs, jnp.inf))
            seeds = jax.tree.map(lambda values: values[order], seeds)
        return {name: values[jnp.arange(self.tracks) % len(values)] for name, values in seeds.items()}

    def start(self, x: Float[Array, "n"], steps: int = 6) -> Tracks:
        """Tracks for x: the best guesses, improved."""
        return self.follow(x, self.seeds(x), steps)

    def follow(self, x: Float[Array, "n"], tracks: Tracks, steps: int = 1) -> Tracks:
        """The tracks after some Gauss-Newton steps on J(x; .)."""
        if not tracks:
            return tracks
        bounds = self._bounds() if self.constraints.bounds() else None
        along = (
            set(tracks) == {"joints"} and tracks["joints"].ndim == 3
        )  # (T, H, A): by knots, without the zeros between them
        problem = Problem(
            cost=lambda q, x: self._residuals(x, q), bounds=bounds, linearize=self._by_knots if along else None
        )
        solver = RealTimeIteration(longest=1.0)

        def body(tracks: Tracks, _: None) -> tuple[Tracks, None]:
            return jax.vmap(lambda q: solver(problem, q, x).z)(tracks), None

        return jax.lax.scan(body, tracks, length=steps)[0]

    def best(self, x: Float[Array, "n"], tracks: Tracks) -> dict[str, Array]:
        """The auxiliary unknowns of the track that costs least."""
        if not tracks:
            return {}
        values = jax.vmap(lambda q: self.cost(x, q))(tracks)
        index = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        return jax.tree.map(lambda leaf: leaf[index], tracks)

    def realise(self, x: Float[Array, "n"], tracks: Tracks, steps: int = 12) -> dict[str, Array]:
        """Auxiliary unknowns for a vector that is not to be changed: from the tracks and from fresh guesses, whichever ends better."""
        if not tracks:
            return {}
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), tracks, self.seeds(x))
        return self.best(x, self.follow(x, both, steps))

    def signed(self, x: Float[Array, "n"], q: dict[str, Array]) -> tuple[Float[Array, "e"], Float[Array, "i"]]:
        """Scaled equality (zero) and inequality (<= 0) rows."""
        plan = self.policy.decode(x)

        def rows(kind: Any) -> Float[Array, "m"]:
            each = [
                jnp.ravel(scale(c, c.residual(plan, q, self.policy.context))) for c in self.constraints.of_kind(kind)
            ]
            return jnp.concatenate([jnp.zeros(0), *each]) / self.softness

        return rows("eq"), rows("ineq")

    def rows(self, x: Float[Array, "n"], q: dict[str, Array]) -> Float[Array, "m"]:
        """All rows as scaled inequalities (<= 0): an equality twice, from above and from below."""
        eq, ineq = self.signed(x, q)
        return jnp.concatenate([ineq, eq, -eq])

    def linearized(self, x: Float[Array, "n"], tracks: Tracks) -> tuple[Float[Array, "m"], Float[Array, "m n"]]:
        """`rows` at x and their Jacobian by x."""
        q = self.best(x, tracks)
        return self.rows(x, q), jax.jacfwd(lambda x: self.rows(x, q))(x)

    def excess(self, x: Float[Array, "n"], tracks: Tracks) -> Float[Array, ""]:
        """Sum over the constraints of their worst scaled violation: what a check that need not be differentiable can say."""
        report = self.constraints.report(self.policy.decode(x), self.best(x, tracks), self.policy.context)
        worst = [jnp.max(scale(self.constraints[name], value)) for name, value in report.violation.items()]
        return sum(worst, jnp.zeros(())) / self.softness

    def cost(self, x: Float[Array, "n"], q: dict[str, Array]) -> Float[Array, ""]:
        """J(x; q)."""
        return 0.5 * jnp.sum(self._residuals(x, q) ** 2)

    def gradient(self, x: Float[Array, "n"], tracks: Tracks) -> tuple[Float[Array, ""], Float[Array, "n"]]:
        """J(x) and its gradient."""
        q = self.best(x, tracks)
        return jax.value_and_grad(lambda x: self.cost(x, q))(x)

    def _residuals(self, x: Float[Array, "n"], q: dict[str, Array]) -> Float[Array, "m"]:
        eq, ineq = self.signed(x, q)
        plan = self.policy.decode(x)
        costs = [jnp.ravel(c.residual(plan, q, self.policy.context)) for c in self.constraints.of_kind("cost")]
        return jnp.concatenate([eq, jnp.maximum(ineq, 0), *costs])

    def _by_knots(self, q: dict[str, Array], x: Float[Array, "n"]) -> tuple[Terms, Jacobian]:
        """`_residuals` and their Jacobian by the joints of a path, as blocks; the plan stays where it is."""
        plan, context = self.policy.decode(x), self.policy.context
        still = jax.tree.map(lambda leaf: jnp.zeros((q["joints"].shape[1], *leaf.shape)), plan)
        framed = with_frames(self.constraints, plan, q)
        values: list[Array] = [jnp.zeros(0)]
        pieces: list[Piece] = []
        for kind in ("eq", "ineq", "cost"):
            for k in self.constraints.of_kind(kind):
                aux = framed if isinstance(k, LooksAtFrames) else q
                if isinstance(k, JointsRealised):
                    rows, more = _each_knot(k, plan, aux, context)
                else:
                    rows, more = by_joints(k, plan, still, aux, context)
                if kind != "cost":
                    counts = (rows > 0) / self.softness if kind == "ineq" else jnp.full_like(rows, 1 / self.softness)
                    rows, more = counts * rows, _times(counts, more)
                values.append(rows)
                pieces += more
        return Terms(jnp.concatenate(values), jnp.zeros(0), jnp.zeros(0)), jacobian_of(pieces, q["joints"])

    def _bounds(self):
        """Box bounds of the auxiliary unknowns."""
        bounds = self.constraints.bounds()

        def both(x):
            free = {name: jnp.full(values.shape[1:], jnp.inf) for name, values in self.seeds(x).items()}
            lower = {name: bounds[name][0] if name in bounds else -infinite for name, infinite in free.items()}
            return lower, {name: bounds[name][1] if name in bounds else infinite for name, infinite in free.items()}

        return both


def _each_knot(k: Constraint, plan: Any, aux: dict[str, Array], context: Any) -> tuple[Float[Array, "m"], list[Piece]]:
    """Scaled rows (H, m) of which those of a knot depend on its own joints alone, with their derivatives: all knots at once."""
    joints = aux["joints"]

    def rows(joints: Float[Array, "H A"]) -> Float[Array, "H m"]:
        return scale(k, k.residual(plan, aux | {"joints": joints}, context)).reshape(len(joints), -1)

    def push(unit: Float[Array, "A"]):
        return jax.jvp(rows, (joints,), (jnp.broadcast_to(unit, joints.shape),))

    values, columns = jax.vmap(push, out_axes=(None, 0))(jnp.eye(joints.shape[1]))
    return jnp.ravel(values), [Window(blocks=jnp.moveaxis(columns, 0, -1)[:, :, None])]


def _times(weights: Float[Array, "m"], pieces: list[Piece]) -> list[Piece]:
    """Rows of a Jacobian, each times a number."""
    out: list[Piece] = []
    begin = 0
    for piece in pieces:
        size = piece.size if isinstance(piece, Window) else piece.shape[1]
        part = weights[begin : begin + size]
        begin += size
        if isinstance(piece, Window):
            out.append(replace(piece, blocks=piece.blocks * part.reshape(*piece.blocks.shape[:2], 1, 1)))
        else:
            out.append(piece * part)
    return out


def unit(g: Float[Array, "n"]) -> Float[Array, "n"]:
    """g / |g|; zero where g is zero, with a finite derivative."""
    square = jnp.sum(g**2)
    return jnp.where(square > 0, g / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
