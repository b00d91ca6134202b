"""What every level of a sampler does to the constraints: violations of the clean estimate before and after it.

Seen from outside, so that it is the same measure for every sampler: the network is watched, which each level asks at its iterate x_k.
Before level k the plan would be D(x_k), after it D(x_{k-1}), and after the last one it is the plan that is returned. Each of these is
realised by joints anew (`samplers.guidance`), and its violations are computed in physical units. What a level did includes what the
network did; how far it moved is the distance between the two clean estimates.

    watched = Watched()
    controller = diffopt.Controller(policy=watched.policy(policy), ...)
    chunk, after = controller.plan(observation, memory)
    rows = watched.levels(policy.given(observation), controller.limits(memory), chunk.plan, {"joints": chunk.joints})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints import ConstraintSet, fit
from diffopt.policies.base import Denoiser, Policy
from diffopt.samplers.guidance import Guide


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level.

    Attributes:
      time: of the level, 1 pure noise, 0 a plan.
      before, after: by constraint, the largest violation beyond its tolerance before and after the level, in its own units.
      moved: distance between the clean estimates [standard deviations of the policy].
    """

    time: float
    before: dict[str, float]
    after: dict[str, float]
    moved: float


@dataclass(eq=False)
class Watched:
    """Remembers what a network is asked and answers. Compiled programs belong to one instance: keep it.

    Attributes:
      calls: (time, clean estimate) in the order in which they were made.
    """

    calls: list[tuple[float, np.ndarray]] = field(default_factory=list)

    def policy(self, policy: Policy) -> Policy:
        """The same policy, watched; its samples are the same."""
        return replace(policy, denoiser=_Listening(inner=policy.denoiser, listener=self))

    def told(self, time: Array, clean: Array) -> None:
        self.calls.append((float(time), np.array(clean)))

    def levels(
        self, policy: Policy, constraints: ConstraintSet, plan: Any = None, aux: Mapping[str, Array] | None = None
    ) -> list[Level]:
        """The levels of the last plan that was drawn, the noisiest first; draw one plan at a time, and once (`sample(..., attempts=1)`).

        Args:
          policy: the policy that was drawn from, bound to its observation.
          constraints: what is looked at.
          plan, aux: what was returned, for the end of the last level, and its joints; default the network's last answer.
        Raises:
          ValueError: nothing was drawn since the watch began.
        """
        jax.effects_barrier()
        if not self.calls:
            raise ValueError("no call of the network was seen; draw a plan from `watched.policy(policy)` first")
        times = np.array([time for time, _ in self.calls])
        start = int(np.flatnonzero(np.append(True, np.diff(times) > 1e-6))[-1])  # time runs up where a new plan begins
        kept = {round(time, 6): clean for time, clean in self.calls[start:]}  # the last answer of a level
        ends = [np.asarray(x) for x in kept.values()]
        policy = policy.bound()
        ends.append(ends[-1] if plan is None else np.asarray(policy.encode(plan)))
        rows = jax.device_get(_violations(policy, fit(constraints, policy.spec), jnp.asarray(np.stack(ends))))
        each = [{name: float(values[i]) for name, values in rows.items()} for i in range(len(ends))]
        if aux is not None and plan is not None:
            each[-1] = _excess(fit(constraints, policy.spec), plan, dict(aux), policy)
        moved = [float(np.linalg.norm(b - a)) for a, b in pairwise(ends)]
        return [
            Level(time=time, before=before, after=after, moved=far)
            for time, (before, after), far in zip(kept, pairwise(each), moved, strict=True)
        ]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Listening:
    """A denoiser that tells of its calls."""

    inner: Denoiser
    listener: Watched = field(metadata=dict(static=True))

    def __call__(self, z: Float[Array, "n"], t: Float[Array, ""], condition: Any) -> Float[Array, "n"]:
        clean = self.inner(z, t, condition)
        jax.debug.callback(self.listener.told, t, clean)
        return clean


@jax.jit
def _violations(
    policy: Policy, constraints: ConstraintSet, vectors: Float[Array, "L n"]
) -> dict[str, Float[Array, "L"]]:
    """By constraint, the largest violation beyond the tolerance, of plans realised by the joints that come nearest."""
    guide = Guide(policy=policy, constraints=constraints)

    def one(x):
        aux = guide.realise(x, guide.seeds(x))
        return _beyond(constraints, policy.decode(x), aux, policy.context)

    return jax.lax.map(one, vectors)


def _beyond(constraints: ConstraintSet, plan: Any, aux: dict[str, Array], context: Any) -> dict[str, Float[Array, ""]]:
    out = {}
    for constraint in constraints:
        if constraint.kind == "cost":
            continue
        rows = constraint.residual(plan, aux, context)
        amount = jnp.abs(rows) if constraint.kind == "eq" else jnp.maximum(rows, 0)
        out[constraint.name] = jnp.max(jnp.maximum(amount - jnp.asarray(constraint.tolerance), 0), initial=0.0)
    return out


def _excess(constraints: ConstraintSet, plan: Any, aux: dict[str, Array], policy: Policy) -> dict[str, float]:
    found = jax.device_get(_beyond(constraints, plan, aux, policy.context))
    return {name: float(value) for name, value in found.items()}


def written(levels: list[Level]) -> str:
    """The levels as a table in plain text: time, distance moved, and by constraint before -> after."""
    names = list(levels[0].before)
    lines = ["  ".join(["   t", " moved", *(f"{name:>21}" for name in names)])]
    for level in levels:
        cells = [f"{level.before[name]:9.3g} -> {level.after[name]:8.3g}" for name in names]
        lines.append("  ".join([f"{level.time:.2f}", f"{level.moved:6.2f}", *(f"{cell:>21}" for cell in cells)]))
    return "\n".join(lines)
