"""Trials of samplers on the problems of `benches`: what `experiments.compare` compares, times and tunes.

A trial is an instance and a key. All methods get the same trials, constraints and prior, and one program serves all instances. A trial
succeeds if the returned plan is feasible by the independent judge and on the prior, by a density that NumPy computes in double precision.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffopt
from diffopt.policies.base import Context
from diffopt.samplers import Sampler
from experiments.benches import FOLDER, Bench, stack

RETRY = 100_003  # between the keys of two rounds of the same trial


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
      claimed: whether the sampler's own status is feasible.
      feasible, on_prior: by the judge; by the density.
      vectors: the plans, normalised.
      evaluations, energy, terminal_move: see `Stats`.
    """

    claimed: np.ndarray
    feasible: np.ndarray
    on_prior: np.ndarray
    vectors: np.ndarray
    evaluations: np.ndarray
    energy: np.ndarray
    terminal_move: np.ndarray

    @property
    def success(self) -> np.ndarray:
        return self.feasible & self.on_prior

    @staticmethod
    def join(parts: Sequence[Outcome]) -> Outcome:
        return Outcome(**{k: np.concatenate([getattr(p, k) for p in parts]) for k in Outcome.__dataclass_fields__})


@jax.jit
def _program(policy, frames, constraints, keys, sampler):
    def one(frame, constraints, key):
        bound = replace(policy, context=Context(frame=frame))
        result = diffopt.sample(bound, constraints, key=key, sampler=sampler)
        vectors = jax.vmap(bound.encode)(result.plans)
        return jax.tree.map(lambda leaf: leaf[0], (replace(result, warm=None), vectors))

    return jax.vmap(one)(frames, constraints, keys)


def arguments(bench: Bench, block: Sequence[Trial]) -> tuple[Any, ...]:
    """What the program takes beside the sampler."""
    frames = stack([bench.frame(t.dial, t.number) for t in block])
    constraints = stack([bench.constraints(t.dial, t.number) for t in block])
    keys = jnp.stack([jax.random.fold_in(jax.random.key(t.key), t.number) for t in block])
    return replace(bench.policy, context=Context()).bound(), frames, constraints, keys


def run(bench: Bench, sampler: Sampler, wanted: Sequence[Trial], chunk: int) -> Outcome:
    """All trials, `chunk` at a time in one call."""
    parts = []
    for first in range(0, len(wanted), chunk):
        block = list(wanted[first : first + chunk])
        padded = block + [block[-1]] * (chunk - len(block))
        solution, vectors = jax.tree.map(np.asarray, _program(*arguments(bench, padded), sampler))
        judged = []
        for i, t in enumerate(block):
            plan, aux = jax.tree.map(lambda leaf, i=i: leaf[i], (solution.plans, solution.aux))
            judged.append(bench.judged(t.dial, t.number, plan, aux))
        n = len(block)
        parts.append(
            Outcome(
                claimed=np.asarray(solution.feasible)[:n],
                feasible=np.array(judged),
                on_prior=bench.support(vectors[:n]),
                vectors=vectors[:n],
                evaluations=solution.stats.evaluations[:n],
                energy=solution.stats.control_energy[:n],
                terminal_move=solution.stats.terminal_move[:n],
            )
        )
    return Outcome.join(parts)


def retried(bench: Bench, sampler: Sampler, wanted: Sequence[Trial], chunk: int, rounds: int) -> Outcome:
    """As `run`, but whatever is not claimed feasible or not on the prior is drawn again, up to `rounds` draws in all.

    The sampler's own status decides, and the density of the prior, which any policy here knows: the judge is not asked.
    """
    first = run(bench, sampler, wanted, chunk)
    out = {name: np.array(getattr(first, name)) for name in Outcome.__dataclass_fields__}
    for again in range(1, rounds):
        missing = np.flatnonzero(~(out["claimed"] & out["on_prior"]))
        if not len(missing):
            break
        more = run(bench, sampler, [replace(wanted[i], key=wanted[i].key + RETRY * again) for i in missing], chunk)
        better = more.claimed & more.on_prior
        out["evaluations"][missing] += more.evaluations
        for name in out.keys() - {"evaluations"}:
            out[name][missing[better]] = getattr(more, name)[better]
    return Outcome(**out)


def seconds(bench: Bench, sampler: Sampler, block: Sequence[Trial], repeats: int = 5) -> tuple[float, float]:
    """Wall-clock of a plan, all of the block drawn in one call, median over repeats; and of compiling."""
    given = (*arguments(bench, block), sampler)
    start = time.perf_counter()
    program = _program.lower(*given).compile()
    compiled = time.perf_counter() - start
    jax.block_until_ready(program(*given))
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*given))
        spent.append((time.perf_counter() - start) / len(block))
    return float(np.median(spent)), compiled


def kept(kind: str, problem: str) -> Path:
    """The file of tuned values, or of times, of a problem."""
    return FOLDER / f"{kind}-{problem}.json"


def read(path: Path, key: str) -> dict[str, Any]:
    """A part of such a file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8"))[key] if path.exists() else {}


def method(entry: Mapping[str, Any], tuned: Mapping[str, Any]) -> Sampler:
    """A sampler of the configuration's methods: its name, its options, and unless given the tuned value of its main one."""
    options = dict(entry)
    name = options.pop("name")
    card = diffopt.samplers.describe(name)
    if card.strength is not None and card.strength[0] not in options and name in tuned:
        options[card.strength[0]] = type(card.strength[1][0])(tuned[name])
    return diffopt.samplers.load(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def described(sampler: Sampler) -> str:
    """A sampler's plain options, as they stand in results."""
    fields = {k: getattr(sampler, k) for k in sampler.__dataclass_fields__}  # type: ignore[attr-defined]
    return ", ".join(f"{k}={v}" for k, v in fields.items() if isinstance(v, (int, float, str, tuple, type(None))))
