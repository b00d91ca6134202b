"""Further attempts for the plans that failed by their own account, and only for those.

A draw is accepted if

    it is feasible, as judged from the plan itself, and
    the policy would leave it where it is:  pull(x) = |D(alpha x, k) - x| <= limit,

with D the clean estimate at a fifth of the levels, where alpha x is the plan as the policy would see it there without noise. A plan
that was dragged away from what the policy was trained on is drawn back, so its pull is large. What is large is said by the policy's
own plain plans in the same context: the limit is a quantile of the pulls of `PLAIN` of them. Nothing of a task takes part. The
quantile is well below one: where plans of the policy's that are feasible are rare, most of what has the pull of its more unusual plans
is not one of them.

Before anything is steered, the policy may have it right by itself: some draws are left to it (how many, and how, is the sampler's
affair: `samplers.base.Persistent.plainly`). Of these one is accepted if it is feasible and the terminal correction hardly moved it
(`moves.WITHIN`), however it is pulled: it is a draw of the policy's distribution restricted to what is feasible.

Where noise has failed some times, the best plan so far, if it is feasible and only pulled too hard, is the better beginning: it is made
as noisy as at `RESUMED` of the levels and drawn from there, which costs less than half of a whole draw. Attempts from noise and attempts
that go on take `TURNS`; in a turn all go on from what was the best when it began. That is for samplers that can begin at a level
(`samplers.base.Persistent`); others always begin with noise.

Plans that are not accepted are drawn again with keys of their own, until they are, or `most` draws were made, or `HOPELESS` and not one of
them was feasible. Of these the best is returned:
an accepted one, the first; else the feasible one of least pull; else the one that violates least. So the answer for a key does not
depend on what else is drawn in the same call, and the work is done where it is needed: draws are collected into blocks of one size,
for which one program is compiled, and where few plans are left, a block holds several attempts for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet
from diffopt.moves import WITHIN
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Start, begun_at, level_of, unconstrained
from diffopt.samplers.linearization import scale
from diffopt.solution import Solution

LEVEL = 0.2  # at which share of the levels the policy is asked
PLAIN = 64  # plain plans that say what is usual
USUAL = 0.8  # the quantile of their pulls that still is
TURNS = (8, 12)  # attempts in a row that begin with noise, and that go on from the best plan so far
RESUMED = 0.4  # made as noisy as at this share of the levels
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
    k = level_of(LEVEL, process.count)
    return jnp.linalg.norm(process.clean(process.alpha[k] * x, k) - x)


def limit(policy: Policy, levels: int, eta: float | Array) -> Float[Array, ""]:
    """What pull is usual for plain plans of a bound policy."""
    process = ReverseProcess.of(policy, count=levels, eta=eta)

    def one(key: Array) -> Float[Array, ""]:
        return pull(process, policy.encode(policy.decode(unconstrained(process, key)[0])))

    return jnp.quantile(jax.vmap(one)(jax.random.split(jax.random.key(0), PLAIN)), USUAL)


def judged(
    policy: Policy, constraints: ConstraintSet, solution: Solution, bound, levels: int, eta, plainly: bool = False
) -> Attempt:
    """Draws with their merit, given the limit; the network's evaluation for the pull is counted.

    Args:
      plainly: whether they were left to the policy.
    """
    process = ReverseProcess.of(policy, count=levels, eta=eta)
    far = jax.vmap(lambda plan: pull(process, policy.encode(plan)))(solution.plans)
    beyond = jnp.minimum(excess(constraints, solution.violation), 1e6)
    lesser = jnp.where(solution.feasible, FEASIBLE + far, INFEASIBLE * (1 + beyond))
    usual = solution.stats.terminal_move <= WITHIN if plainly else far <= bound
    merit = jnp.where(solution.feasible & usual, 0.0, lesser)
    merit = jnp.where(jnp.isfinite(merit), merit, jnp.inf)
    counted = replace(solution.stats, evaluations=solution.stats.evaluations + 1)
    return Attempt(solution=replace(solution, stats=counted), merit=merit)


def excess(constraints: ConstraintSet, violation: dict[str, Float[Array, "n"]]) -> Float[Array, "n"]:
    """By how much plans violate constraints, the largest violation of each in its tolerances, summed."""
    return sum((_scaled(constraints, name, value) for name, value in violation.items()), jnp.zeros(()))


def _scaled(constraints: ConstraintSet, name: str, value: Float[Array, "n"]) -> Float[Array, "n"]:
    return jnp.max(scale(constraints[name], value[:, None]), axis=1) if name in constraints else value


def resumes(number: Any) -> Any:
    """Whether an attempt goes on from the best plan so far. They are counted from 0; draws that are left to the policy come before."""
    return (number >= 0) & (number % sum(TURNS) >= TURNS[0])


def begins(number: Any) -> Any:
    """Whether a turn begins with this attempt."""
    return (number >= 0) & ((number % sum(TURNS) == 0) | (number % sum(TURNS) == TURNS[0]))


def keyed(keys: Any, numbers: Int[Any, "n"]) -> Any:
    """The keys of attempts: of the first the plan's own, of others one of their own."""

    def one(key: Any, number: Any) -> Any:
        own, other = (jax.random.key_data(k) for k in (key, jax.random.fold_in(key, number)))
        return jax.random.wrap_key_data(jnp.where(number == 0, own, other), impl=jax.random.key_impl(key))

    return jax.vmap(one)(keys, jnp.asarray(numbers))


def start(x: Float[Array, "*B n"], goes_on: Any, levels: int) -> Start:
    """Where attempts begin, given the best vectors so far."""
    return begun_at(x, jnp.where(goes_on, level_of(RESUMED, levels), levels))


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
    draw: Callable[[Int[np.ndarray, "B"], Int[np.ndarray, "B"], Float[np.ndarray, "B n"], bool, bool], Attempt],
    encode: Callable[[Any], Float[Any, "N n"]],
    most: int,
    *,
    made: int = 1,
    block: int = BLOCK,
    total: float = np.inf,
    hopeless: int = HOPELESS,
) -> Attempt:
    """The first attempt, improved by further ones where it was not accepted; on the host.

    Args:
      draw: attempts for a block of plans, given which plans, the number of the attempt of each, the best vector of each when that turn
        began, whether they go on from there, and whether they are left to the policy, as all of negative number are.
      encode: plans as vectors.
      most: attempts per plan, draws that are left to the policy not counted.
      made: the number of the next attempt.
      total: draws over all plans after which no further one begins.
      hopeless: draws without a feasible one after which a plan is given up.
    """
    best = jax.tree.map(np.array, first)
    count = len(best.merit)
    spent = count
    begun, near = np.array(encode(best.solution.plans)), best.merit < INFEASIBLE
    while spent < total:
        cap = np.where(best.merit < INFEASIBLE, most, min(most, hopeless))
        open_ = np.flatnonzero((best.merit > 0) & (made < cap))
        if not len(open_):
            break
        if begins(made):
            begun, near = np.array(encode(best.solution.plans)), best.merit < INFEASIBLE
        # one attempt for each, and where that leaves room in the last block more, as many as are left of the turn
        each = max(1, block // len(open_))
        numbers = np.arange(made, made + each)
        numbers = numbers[: 1 + np.argmax([*begins(numbers[1:]), True])]
        made += len(numbers)
        plans, numbers = np.repeat(open_, len(numbers)), np.tile(numbers, len(open_))
        there = numbers < cap[plans]
        plans, numbers = plans[there], numbers[there]
        on = resumes(numbers) & near[plans]
        for goes_on in (False, True):
            (mine,) = np.nonzero(on == goes_on)
            for first_of in range(0, len(mine), block):
                if spent >= total:
                    break
                chosen = mine[first_of : first_of + block]
                padded = np.pad(chosen, (0, block - len(chosen)), "edge")
                new = draw(plans[padded], numbers[padded], begun[plans[padded]], goes_on, made <= 0)
                _take(best, jax.tree.map(np.asarray, new), plans[chosen])
                spent += len(chosen)
    return best


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
