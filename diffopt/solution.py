"""What a call of `sample` returns."""

from __future__ import annotations

import collections
import enum
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.paths import is_path


class Status(enum.IntEnum):
    """The verdict on one plan.

    FEASIBLE: every constraint holds within its tolerance, as recomputed from the plan that is returned.
    INFEASIBLE: some constraint does not, and the solver had settled: it found nothing better nearby.
    SOLVER_LIMIT: some constraint does not, but the solver was still making progress when its iterations ran out.
    NONFINITE: the plan holds a NaN or an infinity.
    """

    FEASIBLE = 0
    INFEASIBLE = 1
    SOLVER_LIMIT = 2
    NONFINITE = 3


class InfeasibleError(RuntimeError):
    """Raised by `Solution.check`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a plan cost and how far it was moved.

    Attributes:
      evaluations: evaluations of the network per returned plan, rejected draws included.
      iterations: iterations of the solver per returned plan, over all levels and tracks.
      control_energy: 1/2 sum over the levels of |control|^2, where plain sampling has the energy of its noise [-].
      terminal_move: length of the last, explicit correction in normalised coordinates.
      acceptance: share of the draws that were feasible (rejection; 0 or 1 for one draw).
      attempts: how often the plan was drawn by the sampler (see `diffopt.attempts`).
      moves: how many of the moves that were asked for changed the plan (see `diffopt.moves`).
    """

    evaluations: Int[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    control_energy: Float[Array, "*batch"]
    terminal_move: Float[Array, "*batch"]
    acceptance: Float[Array, "*batch"]
    attempts: Int[Array, "*batch"]
    moves: Int[Array, "*batch"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Solution:
    """Plans with a verdict each; every leaf has a leading axis of n plans.

    Attributes:
      plans: the typed plans, in the world.
      aux: auxiliary unknowns that realise the plans, by name.
      violation: by the constraint's name, the largest violation in its own units; 0 where it holds exactly.
      where: by the constraint's name, the row of its residual that is violated most.
      status: `Status` per plan.
      stats: costs.
      warm: what the next call may start from (`sample(..., warm=solution.warm)`).
      labels: by the constraint's name, what its rows mean, where it says; of a path, those of one step.
    """

    plans: Any
    aux: dict[str, Float[Array, "n m"]]
    violation: dict[str, Float[Array, "n"]]
    where: dict[str, Int[Array, "n"]]
    status: Int[Array, "n"]
    stats: Stats
    warm: Any
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict, metadata=dict(static=True))

    @property
    def feasible(self) -> Bool[Array, "n"]:
        """Which plans satisfy every constraint within tolerance."""
        return self.status == Status.FEASIBLE

    @property
    def joints(self) -> Float[Array, "n J"]:
        """Positions of the robot's joints that realise the plans [rad, m]."""
        if "joints" not in self.aux:
            raise AttributeError(f"no constraint asked for joints; auxiliary unknowns: {', '.join(self.aux) or 'none'}")
        return self.aux["joints"]

    def __repr__(self) -> str:
        if isinstance(self.status, jax.core.Tracer):
            return f"Solution({len(self)} plans, traced)"
        counts = collections.Counter(Status(int(s)).name.lower() for s in np.ravel(self.status))
        parts = [f"{n} {name}" for name, n in counts.most_common()]
        return f"Solution({type(self.plans).__name__} plans: {', '.join(parts)})"

    def __len__(self) -> int:
        return self.status.shape[0]

    def __getitem__(self, index) -> Solution:
        """Some of the plans; an integer keeps the leading axis."""
        if isinstance(index, (int, np.integer)):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return jax.tree.map(lambda leaf: leaf[index], self)

    def explain(self, index: int = 0) -> str:
        """One line on plan `index`: its status and, if it is not feasible, each violated constraint, how much and where."""
        status = Status(int(self.status[index]))
        if status == Status.FEASIBLE:
            return f"plan {index}: feasible"
        parts = []
        for name, values in self.violation.items():
            value = float(values[index])
            if not value > 0:
                continue
            row = int(self.where[name][index])
            rows = self.labels.get(name, ())
            place = rows[row % len(rows)] if rows else f"row {row}"
            step = f", step {row // len(rows)}" if rows and is_path(self.plans) else ""
            parts.append(f"{name} by {value:.4g} at {place}{step}")
        return f"plan {index}: {status.name.lower()}" + (f" ({'; '.join(parts)})" if parts else "")

    def check(self) -> Solution:
        """This solution, if every plan is feasible; otherwise an `InfeasibleError` that names what is violated and by how much."""
        status = np.asarray(self.status)
        bad = np.flatnonzero(status != Status.FEASIBLE)
        if bad.size:
            lines = [self.explain(int(i)) for i in bad[:5]]
            more = f"\n... and {bad.size - 5} more" if bad.size > 5 else ""
            raise InfeasibleError(f"{bad.size} of {status.size} plans are not feasible:\n" + "\n".join(lines) + more)
        return self


def verdict(finite: Bool[Array, ""], satisfied: Bool[Array, ""], settled: Bool[Array, ""]) -> Int[Array, ""]:
    """Status of one plan."""
    return jnp.where(
        ~finite,
        Status.NONFINITE,
        jnp.where(satisfied, Status.FEASIBLE, jnp.where(settled, Status.INFEASIBLE, Status.SOLVER_LIMIT)),
    ).astype(jnp.int32)
