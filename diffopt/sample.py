"""`sample`: draw plans from a policy that satisfy constraints, and say of each plan whether it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffopt.attempts import BLOCK, INFEASIBLE, Attempt, begins, better, judged, keyed, limit, persist, resumes, start
from diffopt.compiling import jit
from diffopt.constraints import ConstraintSet, fit
from diffopt.moves import moved
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Persistent, Start
from diffopt.solution import Solution, verdict

if TYPE_CHECKING:
    from diffopt.samplers import Sampler


def sample(
    policy: Policy,
    constraints: ConstraintSet | None = None,
    *,
    n: int = 1,
    key: int | Array = 0,
    sampler: str | Sampler = "ogd",
    levels: int = 16,
    eta: float = 1.0,
    warm: Any = None,
    attempts: int | None = None,
    moves: int = 0,
) -> Solution:
    """Draw `n` plans from `policy` under `constraints`.

    The first call with a new structure (policy, kinds of constraints, sampler, n, levels) compiles; further calls with other numbers
    do not, but for the one in which plans are steered for the first time, if the first were right as the policy drew them. It may
    be called inside `jit`, `vmap` and `grad`.

    Args:
      policy: a policy bound to an observation, `policy.given(...)`.
      constraints: what the plans have to satisfy; None or an empty set for plain sampling. Where the policy plans paths, constraints of
        one configuration have to hold at every knot.
      n: number of plans.
      key: a PRNG key or an integer seed.
      sampler: a sampler, or the name of one of `diffopt.samplers.available()` with its default options.
      levels: steps of the reverse process, which is also the number of network evaluations of plain sampling.
      eta: its stochasticity, 0 (DDIM) to 1 (DDPM).
      warm: `Solution.warm` of an earlier call with the same structure and n.
      attempts: how often a plan is drawn at most. What is not feasible, or what the policy itself would move further than most of its own
        plans, is drawn again with a key of its own (`diffopt.attempts`). None for as often as the sampler asks for (`OGD.attempts`)
        where up to 16 plans are asked for, and for once where it is more: a population, from which those that failed can be left out.
        What a sampler leaves to the policy before that (`OGD.plain`) is not counted, though `stats.attempts` does.
        Also once inside `jit`, `vmap` and `grad`, where nothing can be left out of a batch and more attempts cost as much for all.
        What most plans do is said by 64 plain ones, which are drawn in every call that asks for attempts: with a large network that
        takes longer than one plan with `attempts=1`, which is what `Controller` asks for.
      moves: how often a plan is then taken up the process and plainly down again, and replaced if that is feasible (`diffopt.moves`). With
        their number plans come nearer to draws of the policy's own distribution restricted to what is feasible (and weighted by exp
        of minus what soft constraints charge), whatever the sampler; they are no longer held to what the policy would move less than
        most. Each costs a fifth to a half of a draw.

    Returns:
      The plans, each with its status, its violations by name, and what it cost. A plan that violates a constraint beyond its tolerance
      is never marked feasible: the violations are computed from the returned plan, apart from the sampler. A plan that was dragged
      away from all that the policy was trained on violates "support" [standard deviations], whatever else it satisfies.

    Raises:
      TypeError: if a constraint does not speak about the policy's type of plan.
      ValueError: if the policy is not bound, a number in it or in the constraints is not finite, an argument is out of range, or moves are
        asked for where soft constraints alone ask for the robot's joints.
      KeyError: if no sampler has that name.
    """
    constraints = ConstraintSet() if constraints is None else constraints
    constraints = fit(constraints, policy.spec)
    sampler = resolve(sampler)
    if n < 1:
        raise ValueError(f"n={n}: ask for at least one plan")
    _check_plan_type(policy, constraints)
    policy = policy.bound()
    _check_finite("policy's context", policy.context)
    _check_finite("constraints", constraints)
    if isinstance(key, (int, np.integer)):
        key = jax.random.key(int(key))
    keys = jax.random.split(key, n)
    given = (policy, constraints, keys, sampler, eta, warm)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
    if attempts is None:
        asked = sampler.usual_attempts() if isinstance(sampler, Persistent) else 1
        attempts = 1 if traced or not constraints or n > BLOCK else asked
    if attempts < 1:
        raise ValueError(f"attempts={attempts}: every plan is drawn at least once")
    if moves < 0:
        raise ValueError(f"moves={moves}: expected at least 0")
    if attempts == 1:
        found = _sample(policy, constraints, keys, sampler, eta, warm, None, levels)
    else:
        found = _repeated(policy, constraints, keys, sampler, eta, warm, levels, attempts, traced)
    if not moves or not constraints:
        return found
    return _moved(policy, constraints, keys, found, moves, levels)


def _moved(policy, constraints, keys, found: Solution, moves: int, levels: int) -> Solution:
    """Plans after some moves each."""
    plainly, costs = mover(policy), [constraint.name for constraint in constraints.of_kind("cost")]
    asked = constraints.remove(*costs)
    first = jax.tree.map(lambda leaf: leaf[0], found.plans)
    if jax.eval_shape(lambda plan: asked.auxiliary(plan, policy.context), first).keys() != found.aux.keys():
        named, unknowns = ", ".join(costs), ", ".join(found.aux)
        raise ValueError(
            f"moves={moves}: soft constraints alone ({named}) ask for {unknowns}; a constraint that is not soft has to"
        )

    def propose(start: Start, keys: Array) -> Solution:
        return _sample(policy, asked, keys, plainly, 1.0, None, start, levels)

    cost = partial(_cost, policy, constraints) if costs else None
    return moved(found, propose, partial(_encoded, policy), keys, moves, levels, cost)


def _repeated(policy, constraints, keys, sampler, eta, warm, levels, attempts, traced) -> Solution:
    """Plans of which each is drawn until it is accepted, at most `attempts` times."""
    n = len(keys)
    resuming, plainly, times = isinstance(sampler, Persistent), sampler, 0
    if isinstance(sampler, Persistent):
        plainly, times = sampler.plainly(policy, constraints)
        sampler = sampler.persistent(policy)
    usual = cache(lambda: _limit(policy, eta, levels))
    if traced:
        usual()

    def draw(plans, numbers, x, goes_on, alone=False) -> Attempt:
        """Some of the plans once more, each with the key of its attempt; for as many as the first time, by the same program."""
        own, warmed = jax.tree.map(lambda leaf: leaf[plans], (keys, warm))
        begun_at, draws = start(x, goes_on, levels) if resuming else None, plainly if alone else sampler
        solution = _sample(policy, constraints, keyed(own, numbers), draws, eta, warmed, begun_at, levels)
        bound = np.inf if alone else usual()
        return _judged(policy, constraints, solution, bound, eta, levels, alone)

    def encode(plans):
        return _encoded(policy, plans)

    every, noise = np.arange(n), jnp.zeros((n, policy.spec.dim))
    first = draw(every, np.full(n, -times), noise, False, times > 0)
    if traced:
        return _scanned(first, draw, encode, attempts, 1 - times)
    found = persist(first, draw, encode, attempts, made=1 - times, block=min(BLOCK, n))
    return jax.tree.map(jnp.asarray, found.solution)


@partial(jit, static_argnames="levels")
def _limit(policy, eta, levels):
    return limit(policy, levels, eta)


@partial(jit, static_argnames=("levels", "plainly"))
def _judged(policy, constraints, solution, bound, eta, levels, plainly) -> Attempt:
    return judged(policy, constraints, solution, bound, levels, eta, plainly)


@jit
def _encoded(policy, plans):
    """Plans as normalised vectors."""
    return jax.vmap(policy.encode)(plans)


@jit
def _cost(policy, constraints, solution):
    """What soft constraints charge for plans: half the squares of their residuals."""

    def one(plan, aux):
        rows = [jnp.ravel(c.residual(plan, aux, policy.context)) for c in constraints.of_kind("cost")]
        return 0.5 * jnp.sum(jnp.concatenate(rows) ** 2)

    return jax.vmap(one)(solution.plans, solution.aux)


def _scanned(
    first: Attempt, draw: Callable[..., Attempt], encode: Callable[[Any], Array], attempts: int, made: int
) -> Solution:
    """Further attempts inside a transformation: for all plans, unless none needs one."""
    plans = jnp.arange(len(first.merit))

    def best_of(attempt: Attempt) -> tuple[Array, Array]:
        return encode(attempt.solution.plans), attempt.merit < INFEASIBLE

    def body(alone: bool, carry: tuple[Attempt, tuple[Array, Array]], number):
        best, turn = carry
        x, near = turn = jax.lax.cond(begins(number), lambda: best_of(best), lambda: turn)

        def once_more() -> Attempt:
            return better(best, draw(plans, jnp.full(plans.shape, number), x, resumes(number) & near, alone))

        return (jax.lax.cond(jnp.all(best.accepted), lambda: best, once_more), turn), None

    carry = first, best_of(first)
    for alone, numbers in ((True, np.arange(made, 0)), (False, np.arange(max(made, 0), attempts))):
        carry = jax.lax.scan(partial(body, alone), carry, numbers)[0] if len(numbers) else carry
    return carry[0].solution


@partial(jit, static_argnames="levels")
def _sample(policy, constraints, keys, sampler, eta, warm, start, levels) -> Solution:
    process = ReverseProcess.of(policy, count=levels, eta=eta)

    def one(key, warm, start) -> Solution:
        draw = sampler(process, constraints, key, warm, **({} if start is None else {"start": start}))
        plan = policy.decode(draw.x)
        report = constraints.report(plan, draw.aux, policy.context)
        violation, where, satisfied = report.violation, report.where, report.satisfied
        if math.isfinite(policy.support):
            beyond = jnp.maximum(jnp.abs(draw.x) - policy.support, 0)
            violation, where = violation | {"support": jnp.max(beyond)}, where | {"support": jnp.argmax(beyond)}
            satisfied &= jnp.max(beyond) <= 0
        finite = jnp.all(jnp.isfinite(draw.x)) & jnp.all(
            jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((plan, draw.aux, violation))])
        )
        stats = draw.stats
        if stats.acceptance is None:
            stats = replace(stats, acceptance=satisfied.astype(jnp.float32))
        return Solution(
            plans=plan,
            aux=draw.aux,
            violation=violation,
            where=where,
            status=verdict(finite, satisfied, draw.settled),
            stats=stats,
            warm=draw.warm,
            labels=constraints.labels(),
        )

    # one level for all where it can be: then what lies above is left out, and not computed in vain
    axes = None if start is None else replace(start, x=0, level=0 if start.level.ndim else None)
    return jax.vmap(one, in_axes=(0, 0, axes))(keys, warm, start)


def mover(policy: Policy) -> Persistent:
    """What draws plainly from a start, and corrects the end: the program of OGD's attempts, with no level solved."""
    from diffopt.samplers import OGD

    return replace(OGD().persistent(policy), every=0)


def resolve(sampler: str | Sampler) -> Sampler:
    from diffopt import samplers

    if isinstance(sampler, str):
        return samplers.load(sampler)
    if not isinstance(sampler, samplers.Sampler):
        raise TypeError(
            f"sampler is a {type(sampler).__name__}; expected a name ({', '.join(samplers.available())}) or a Sampler"
        )
    return sampler


def _check_plan_type(policy: Policy, constraints: ConstraintSet) -> None:
    for constraint in constraints:
        if not issubclass(policy.spec.plan_type, constraint.plan_type):
            expected = constraint.plan_type if isinstance(constraint.plan_type, tuple) else (constraint.plan_type,)
            raise TypeError(
                f"constraint {constraint.name!r} speaks about {' or '.join(t.__name__ for t in expected)}, but policy {policy.name!r} "
                f"plans a {policy.spec.plan_type.__name__}; take it out with constraints.remove({constraint.name!r})"
            )


def _check_finite(what: str, tree: Any) -> None:
    """Refuse NaN in concrete numbers (infinities may be bounds); inside a transformation the status tells instead."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        if np.isnan(np.asarray(leaf)).any():
            raise ValueError(f"the {what} hold a NaN at {jax.tree_util.keystr(path)}")
