"""Further attempts for the plans that failed by their own account, and only for those.

A draw is accepted if

    it is feasible, as judged from the plan itself, and
    the policy would leave it where it is:  pull(x) = |D(alpha x, k) - x| <= limit,

with D the clean estimate at a fifth of the levels, where alpha x is the plan as the policy would see it there without noise. A plan
that was dragged away from what the policy was trained on is drawn back, so its pull is large. What is large is said by the policy's
own plain plans in the same context: the limit is a quantile of the pulls of `PLAIN` of them. Nothing of a task takes part. Where the
first attempt failed, plans of the policy's that are feasible are rare, and more of what passes for one is not: the limit of further
attempts is a lower quantile.

A sampler may have several settings take turns (`samplers/turns.py`).

Plans that are not accepted are drawn again with keys of their own, until they are, or `most` draws were made, or `HOPELESS` and not one of
them was feasible. Of these the best is returned:
an accepted one, the first; else the feasible one of least pull; else the one that violates least. So the answer for a key does not
depend on what else is drawn in the same call, and the work is done where it is needed: draws are collected into blocks of one size,
for which one program is compiled, and where few plans are left, a block holds several attempts for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.samplers.base import unconstrained
from diffopt.samplers.linearization import scale
from diffopt.samplers.turns import Turns
from diffopt.solution import Solution

LEVEL = 0.2  # at which share of the levels the policy is asked
PLAIN = 32  # plain plans that say what is usual
USUAL = (0.95, 0.9)  # the quantile of their pulls that still is: of a first attempt, and of a further one
HOPELESS = 32  # draws without a feasible one after which a plan is given up
BLOCK = 16  # draws of one call, after the first
FEASIBLE, INFEASIBLE = 1.0, 1e6  # where the merits of these begin; that of what is accepted is zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Draws, and what they are worth.

    Attributes:
      solution: n plans.
      merit: zero if accepted; the least is the best.
    """

    solution: Solution
    merit: Float[Array, "n"]

    @property
    def accepted(self) -> Bool[Array, "n"]:
        return self.merit == 0


def pull(process: ReverseProcess, x: Float[Array, "n"]) -> Float[Array, ""]:
    """How far the policy would move a clean normalised vector; one evaluation of the network."""
    k = max(1, round(LEVEL * process.count))
    return jnp.linalg.norm(process.clean(process.alpha[k] * x, k) - x)


def limits(policy: Policy, levels: int, eta: float | Array) -> Float[Array, "2"]:
    """What pull is usual for plain plans of a bound policy, at a first and at a further attempt."""
    process = ReverseProcess.of(policy, count=levels, eta=eta)

    def one(key: Array) -> Float[Array, ""]:
        return pull(process, policy.encode(policy.decode(unconstrained(process, key)[0])))

    return jnp.quantile(jax.vmap(one)(jax.random.split(jax.random.key(0), PLAIN)), jnp.array(USUAL))


def judged(policy: Policy, constraints: ConstraintSet, solution: Solution, bound, levels: int, eta) -> Attempt:
    """Draws with their merit, given the limit; the network's evaluation for the pull is counted."""
    process = ReverseProcess.of(policy, count=levels, eta=eta)
    far = jax.vmap(lambda plan: pull(process, policy.encode(plan)))(solution.plans)
    excess = sum(_scaled(constraints, name, value) for name, value in solution.violation.items())
    lesser = jnp.where(solution.feasible, FEASIBLE + far, INFEASIBLE * (1 + jnp.minimum(excess, 1e6)))
    merit = jnp.where(solution.feasible & (far <= bound), 0.0, lesser)
    merit = jnp.where(jnp.isfinite(merit), merit, jnp.inf)
    counted = replace(solution.stats, evaluations=solution.stats.evaluations + 1)
    return Attempt(solution=replace(solution, stats=counted), merit=merit)


def _scaled(constraints: ConstraintSet, name: str, value: Float[Array, "n"]) -> Float[Array, "n"]:
    return jnp.max(scale(constraints[name], value[:, None]), axis=1) if name in constraints else value


def better(best: Attempt, new: Attempt) -> Attempt:
    """Plan by plan the better of two, the first of equals; what both cost is added up."""
    keep = best.merit <= new.merit

    def choose(a, b):
        return jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - 1)), a, b)

    a, b = best.solution.stats, new.solution.stats
    chosen = jax.tree.map(choose, best, new)
    total = replace(
        chosen.solution.stats,
        evaluations=a.evaluations + b.evaluations,
        iterations=a.iterations + b.iterations,
        acceptance=(a.acceptance * a.attempts + b.acceptance * b.attempts) / (a.attempts + b.attempts),
        attempts=a.attempts + b.attempts,
    )
    return replace(chosen, solution=replace(chosen.solution, stats=total))


def persist(
    first: Attempt,
    draw: Callable[[Int[np.ndarray, "B"], Int[np.ndarray, "B"], int], Attempt],
    most: int,
    turns: Turns,
    *,
    block: int = BLOCK,
    total: float = np.inf,
    hopeless: int = HOPELESS,
) -> Attempt:
    """The first attempt, improved by further ones where it was not accepted; on the host.

    Args:
      draw: attempts for a block of plans, given which plans, the number of the attempt of each (the first was 0), and their turn.
      turns: of the settings.
      most: draws per plan in all.
      total: draws over all plans after which no further one begins.
      hopeless: draws without a feasible one after which a plan is given up.
    """
    best = jax.tree.map(np.array, first)
    count = len(best.merit)
    made, spent = np.ones(count, int), count
    while spent < total:
        cap = np.where(best.merit < INFEASIBLE, most, min(most, hopeless))
        open_ = np.flatnonzero((best.merit > 0) & (made < cap))
        if not len(open_):
            break
        # one attempt for each, and where that leaves room in the last block more, the same number for all
        each = max(1, block // len(open_))
        plans = np.repeat(open_, each)
        numbers = made[plans] + np.tile(np.arange(each), len(open_))
        there = numbers < cap[plans]
        plans, numbers = plans[there], numbers[there]
        made[open_] = np.minimum(made[open_] + each, cap[open_])
        for part, number, turn in _blocks(plans, numbers, turns, block):
            if spent >= total:
                break
            fill = block - len(part)
            new = draw(np.pad(part, (0, fill), "edge"), np.pad(number, (0, fill), "edge"), turn)
            _take(best, jax.tree.map(np.asarray, new), part)
            spent += len(part)
    return best


def _blocks(plans, numbers, turns: Turns, size: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Attempts in blocks of one turn each, in the order in which a plan's own are made."""
    turn = turns.turn(numbers)
    for one in np.unique(turn):
        (mine,) = np.nonzero(turn == one)
        for start in range(0, len(mine), size):
            chosen = mine[start : start + size]
            yield plans[chosen], numbers[chosen], int(one)


def _take(best: Attempt, new: Attempt, plans: Int[np.ndarray, "m"]) -> None:
    """Put into `best` what of `new` is better, in the order of the attempts; what they cost is added up."""
    into, of = best.solution.stats, new.solution.stats
    costs = [(getattr(into, name), getattr(of, name)) for name in ("evaluations", "iterations", "attempts")]
    for i, plan in enumerate(plans):
        share = (into.acceptance[plan] * into.attempts[plan] + of.acceptance[i]) / (into.attempts[plan] + 1)
        counted = [(old, old[plan] + fresh[i]) for old, fresh in costs]
        if new.merit[i] < best.merit[plan]:
            for old, fresh in zip(jax.tree.leaves(best), jax.tree.leaves(new), strict=True):
                old[plan] = fresh[i]
        for old, value in [*counted, (into.acceptance, share)]:
            old[plan] = value
