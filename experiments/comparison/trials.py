"""Trials of samplers on the problems of `benches`.

A trial is an instance and a key. All methods get the same trials, constraints and prior, and one program serves all instances. A trial
succeeds if the returned plan is feasible by the independent judge and on the prior, by a density that NumPy computes in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

import diffopt
from diffopt.attempts import BLOCK, HOPELESS, Attempt, judged, keyed, limit, persist, start
from diffopt.compiling import jit
from diffopt.constraints import ConstraintSet
from diffopt.moves import moved
from diffopt.policies.base import Context
from diffopt.process import ReverseProcess
from diffopt.sample import mover
from diffopt.samplers import Sampler
from diffopt.samplers.base import Draw, Persistent, Start
from diffopt.solution import Solution
from experiments.comparison.benches import Bench, stack

LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An instance, by its dial and number, and the key of the draw."""

    dial: str
    number: int
    key: int


def trials(dial: str, numbers: Sequence[int], keys: int, seed: int) -> list[Trial]:
    """Every instance with `keys` keys, the first key of all first."""
    return [Trial(dial=dial, number=number, key=1000 * seed + k) for k in range(keys) for number in numbers]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of N trials.

    Attributes:
      claimed: whether the sampler's own status is feasible. accepted: and the policy would leave it there (`diffopt.attempts`).
      feasible, on_prior: by the judge; by the density.
      vectors: the plans, normalised.
      evaluations, attempts, moves, energy, terminal_move: see `Stats`.
    """

    claimed: np.ndarray
    accepted: np.ndarray
    feasible: np.ndarray
    on_prior: np.ndarray
    vectors: np.ndarray
    evaluations: np.ndarray
    attempts: np.ndarray
    moves: np.ndarray
    energy: np.ndarray
    terminal_move: np.ndarray

    @property
    def success(self) -> np.ndarray:
        return self.feasible & self.on_prior


@partial(jax.jit, static_argnames="levels")
def _limit(policy, levels):
    return limit(policy, levels, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Begun:
    """A sampler whose draws begin somewhere."""

    sampler: Persistent
    start: Start

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: jax.Array, warm: Any) -> Draw:
        return self.sampler(process, constraints, key, warm, self.start)


@partial(jit, static_argnames=("levels", "plainly"))
def program(policy, frames, constraints, keys, bounds, sampler, start, levels, plainly=False) -> Attempt:
    """One plan each, and its merit; leaves have one leading axis."""

    def one(frame, constraints, key, bound, x):
        placed = replace(policy, context=Context(frame=frame))
        begun = sampler if start is None else Begun(sampler=sampler, start=replace(start, x=x))
        result = diffopt.sample(placed, constraints, key=key, sampler=begun, levels=levels, attempts=1)
        return judged(placed, constraints, replace(result, warm=None), bound, levels, 1.0, plainly)

    return jax.tree.map(
        lambda leaf: leaf[:, 0], jax.vmap(one)(frames, constraints, keys, bounds, None if start is None else start.x)
    )


@jax.jit
def vectors(policy, frames, plans):
    """Plans as normalised vectors."""
    return jax.vmap(lambda frame, plan: replace(policy, context=Context(frame=frame)).encode(plan))(frames, plans)


@dataclass(frozen=True, kw_only=True)
class Places:
    """The instances of some trials, made once: frames and constraints in rows, and the row of each; made by `Places.of`.

    Attributes:
      limit: of the pull, see `diffopt.attempts`; the prior is the same at all.
    """

    bench: Bench
    limit: Any
    rows: Mapping[tuple[str, int], int]
    frames: Any
    constraints: Any

    @staticmethod
    def of(bench: Bench, wanted: Sequence[Trial]) -> Places:
        there = list(dict.fromkeys((t.dial, t.number) for t in wanted))
        return Places(
            bench=bench,
            limit=np.asarray(_limit(replace(bench.policy, context=Context()).bound(), LEVELS)),
            rows={place: i for i, place in enumerate(there)},
            frames=stack([bench.frame(*place) for place in there]),
            constraints=stack([bench.constraints(*place) for place in there]),
        )

    def arguments(self, block: Sequence[Trial], numbers: Sequence[int] | None = None) -> tuple[Any, ...]:
        """What the program takes beside the sampler: policy, frames, constraints, keys (of attempts, by number), the limit."""
        rows = np.array([self.rows[t.dial, t.number] for t in block])
        frames, constraints = jax.tree.map(lambda leaf: leaf[rows], (self.frames, self.constraints))
        attempts = np.zeros(len(block), int) if numbers is None else np.asarray(numbers)
        keys = _keys(np.array([t.key for t in block]), np.array([t.number for t in block]), attempts)
        policy = replace(self.bench.policy, context=Context()).bound()
        return policy, frames, constraints, keys, np.full(len(block), self.limit)


@jax.jit
def _keys(keys, numbers, attempts):
    return keyed(jax.vmap(lambda key, number: jax.random.fold_in(jax.random.key(key), number))(keys, numbers), attempts)


def draw(
    places: Places,
    sampler: Sampler,
    block: Sequence[Trial],
    size: int,
    numbers: Sequence[int] | None = None,
    begun: Start | None = None,
    plainly: bool = False,
) -> Attempt:
    """One attempt for every trial of a block, which is padded to a size."""
    fill = size - len(block)
    attempts = [*(numbers or [0] * len(block)), *[0] * fill]
    return program(*places.arguments([*block, *[block[-1]] * fill], attempts), sampler, begun, LEVELS, plainly)


def attempted(
    places: Places, sampler: Sampler, wanted: Sequence[Trial], chunk: int, most: int, total: float = np.inf
) -> Attempt:
    """All trials, `chunk` at a time; what fails by its own account is drawn again as by `sample(attempts=most)`, `BLOCK` at a time, `total`
    draws in all."""
    parts = []
    resuming, plainly, times = most > 1 and isinstance(sampler, Persistent), sampler, 0
    if resuming:
        plainly, times = sampler.plainly(places.bench.policy, places.constraints)
        sampler = sampler.persistent(places.bench.policy)
    policy, frames, *_ = places.arguments(wanted)

    def begun(x: Any, goes_on: bool) -> Start | None:
        return start(x, goes_on, LEVELS) if resuming else None

    def encode(plans: Any) -> Any:
        return vectors(policy, frames, plans)

    noise = np.zeros((chunk, places.bench.policy.spec.dim), np.float32)
    for first in range(0, len(wanted), chunk):
        block = wanted[first : first + chunk]
        number = [-times] * len(block)
        part = draw(places, plainly, block, chunk, number, begun(noise, False), times > 0)
        parts.append([np.asarray(leaf)[: len(block)] for leaf in jax.tree.leaves(part)])
    joined = [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]
    first_draws = jax.tree.unflatten(jax.tree.structure(part), joined)

    def again(plans: np.ndarray, numbers: np.ndarray, x: np.ndarray, goes_on: bool, alone: bool) -> Attempt:
        attempts, draws = [int(a) for a in numbers], plainly if alone else sampler
        return draw(places, draws, [wanted[i] for i in plans], len(plans), attempts, begun(x, goes_on), alone)

    hopeless = most if total < np.inf else HOPELESS
    block = min(chunk, BLOCK)
    return persist(first_draws, again, encode, most, made=1 - times, block=block, total=total, hopeless=hopeless)


def move(places: Places, begun: Attempt, wanted: Sequence[Trial], chunk: int, moves: int) -> Attempt:
    """Plans after so many moves each, as by `sample(moves=moves)`."""
    parts = []
    for first in range(0, len(wanted), chunk):
        rows = slice(first, first + chunk)
        part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], begun.solution)
        parts.append(_move_block(places, part, wanted[rows], chunk, moves))
    return replace(begun, solution=jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


def _move_block(places: Places, begun: Solution, block: Sequence[Trial], size: int, moves: int) -> Solution:
    """The plans of a block, which is padded to a size."""
    count, fill = len(block), size - len(block)
    plainly = mover(places.bench.policy)
    policy, frames, constraints, keys, bounds = places.arguments([*block, *[block[-1]] * fill])

    def propose(start: Start, keys: jax.Array) -> Solution:
        return program(policy, frames, constraints, keys, bounds, plainly, start, LEVELS).solution

    def encode(plans: Any) -> Any:
        return vectors(policy, frames, plans)

    now = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], fill, axis=0)]), begun)
    after = moved(now, propose, encode, keys, moves, LEVELS)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], after)


def own_attempts(bench: Bench, sampler: Sampler) -> int:
    """As many as the sampler asks for."""
    return sampler.usual_attempts() if isinstance(sampler, Persistent) else 1


def run(
    bench: Bench,
    sampler: Sampler,
    wanted: Sequence[Trial],
    chunk: int,
    most: int | None = None,
    total: float = np.inf,
    moves: int = 0,
) -> Outcome:
    """All trials, judged; `most` and `total` as in `attempted`, by default the sampler's own attempts, and so many moves afterwards."""
    most = own_attempts(bench, sampler) if most is None else most
    places = Places.of(bench, wanted)
    made = attempted(places, sampler, wanted, chunk, most, total)
    if moves:
        made = move(places, made, wanted, chunk, moves)
    solution = made.solution
    policy, frames, *_ = places.arguments(wanted)
    x = np.asarray(vectors(policy, frames, solution.plans))
    feasible = []
    for i, t in enumerate(wanted):
        plan, aux = jax.tree.map(lambda leaf, i=i: leaf[i], (solution.plans, solution.aux))
        feasible.append(bench.judged(t.dial, t.number, plan, aux))
    stats = solution.stats
    return Outcome(
        claimed=np.asarray(solution.feasible),
        accepted=np.asarray(made.accepted),
        feasible=np.array(feasible),
        on_prior=bench.support(x),
        vectors=x,
        evaluations=stats.evaluations,
        attempts=stats.attempts,
        moves=stats.moves,
        energy=stats.control_energy,
        terminal_move=stats.terminal_move,
    )
