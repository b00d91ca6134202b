"""Moves of plans that were found, which leave the constrained posterior as it is: what bias a sampler has decays with their number.

A move takes a plan x up the policy's own process and down again, and keeps what it finds there only if that is feasible:

    x_k = alpha_k x + sigma_k noise,      x' drawn plainly from x_k (eta = 1),      x <- x' if x' satisfies the constraints, else x.

Up and down is Gibbs sampling of the pair (x, x_k), whose second half is what the policy was trained for, and so it is reversible
with respect to the policy's distribution p. Refusing what is infeasible is the Metropolis test for p restricted to the feasible
set, which therefore stays as it is at every level and with any number of moves. What soft constraints charge, E = 1/2 |cost|^2, is
tested as well: x' is taken with probability min(1, exp(E(x) - E(x'))), which is the test for p exp(-E). Low levels change little
and are accepted often, high ones go from one mode to another: `SHARES` take turns.

Chen et al., Diffusive Gibbs Sampling, arXiv 2402.03008, go from mode to mode by noise and its removal, for densities that are known.
With a network and few levels, p is what plain sampling from there draws from, up to their discretisation.

Joints have to be found for x', so it goes through the terminal correction, and counts as feasible if that hardly moved it (`WITHIN`).
To that extent the chain is not exact: what lies within `WITHIN` of the feasible set ends on its border, and what inverse
kinematics does not find is refused. Whatever `eta` the plan was drawn with, moves draw with eta = 1.
A move costs `share * levels` evaluations and one correction, a fifth to a half of a steered draw. A plan that is not feasible
takes the first proposal that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.samplers.base import Start, begun_at, level_of
from diffopt.solution import Solution

SHARES = (0.8, 0.4, 0.2)  # of the levels, one move each in turn
WITHIN = 0.1  # by how much the terminal correction may move what counts as drawn plainly, in normalised coordinates

Propose = Callable[[Start, Array], Solution]  # plain draws from a start, with keys
Cost = Callable[[Solution], Float[Array, "n"]]  # E of plans


def moved(
    begun: Solution,
    propose: Propose,
    encode: Callable[[Any], Float[Array, "n d"]],
    keys: Array,
    count: int,
    levels: int,
    cost: Cost | None = None,
) -> Solution:
    """Plans after `count` moves each.

    Args:
      propose: plans drawn plainly from a start, and corrected in the end.
      encode: plans as normalised vectors.
      keys: one per plan.
      cost: what soft constraints charge; None for nothing.
    """
    at = jnp.asarray([level_of(share, levels) for share in SHARES])

    def move(number: Any, now: Solution) -> Solution:
        fresh = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0), number))(keys)
        proposed = propose(begun_at(encode(now.plans), at[number % len(SHARES)]), fresh)
        rise = jnp.zeros(len(keys)) if cost is None else cost(proposed) - cost(now)
        return tested(now, proposed, rise, fresh)

    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((begun, keys))):
        return jax.lax.fori_loop(0, count, move, begun)
    for number in range(count):  # on the host, where proposals are drawn by the program of the attempts
        begun = move(number, begun)
    return begun


@jax.jit
def tested(now: Solution, proposed: Solution, rise: Float[Array, "n"], keys: Array) -> Solution:
    """Plan by plan what was proposed where it passes the Metropolis test, else what there was; what both cost is added up.

    Args:
      rise: by how much what was proposed is dearer.
    """
    chance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    plain = proposed.feasible & (proposed.stats.terminal_move <= WITHIN)
    take = plain & (~now.feasible | (jnp.log(chance) < -rise))

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(take.reshape(take.shape + (1,) * (new.ndim - 1)), new, old)

    old, new = now.stats, proposed.stats
    chosen = jax.tree.map(choose, replace(now, warm=None), replace(proposed, warm=None))
    stats = replace(
        chosen.stats,
        evaluations=old.evaluations + new.evaluations,
        iterations=old.iterations + new.iterations,
        acceptance=old.acceptance,
        attempts=old.attempts,
        moves=old.moves + take,
    )
    return replace(chosen, stats=stats, warm=now.warm)
