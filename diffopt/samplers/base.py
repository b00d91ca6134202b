"""What a sampler is: a rule for choosing the controls of the reverse process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.solution import Stats


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Draw:
    """One sampled plan, before it is judged.

    Attributes:
      x: the clean normalised vector.
      aux: auxiliary unknowns that go with it.
      settled: whether the solver had stopped making progress (True where none ran).
      stats: costs.
      warm: what a next call may start from.
    """

    x: Float[Array, "n"]
    aux: dict[str, Array]
    settled: Bool[Array, ""]
    stats: Stats
    warm: Any


@runtime_checkable
class Sampler(Protocol):
    """Draws one plan; unbatched, pure, and a pytree whose numbers may change without a retrace."""

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: Any) -> Draw: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Start:
    """From where a draw goes.

    Attributes:
      x: a clean normalised vector, to which the noise of the level is added.
      level: that level; the highest for pure noise, whatever x is.
    """

    x: Float[Array, "n"]
    level: Int[Array, ""]


def begun_at(x: Float[Array, "*B n"], level: Any) -> Start:
    """A start whose numbers have one type, so that one program serves all levels."""
    return Start(x=jnp.nan_to_num(x), level=jnp.asarray(level, jnp.int32))


def level_of(share: float, count: int) -> int:
    """The level at a share of `count` levels, at least the first."""
    return max(1, round(share * count))


class Started(Protocol):
    """A sampler that takes a start beside what a `Sampler` takes."""

    def __call__(
        self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: Any, start: Start | None = None
    ) -> Draw: ...


@runtime_checkable
class Persistent(Started, Protocol):
    """A sampler that has plans drawn again by itself."""

    def usual_attempts(self) -> int:
        """How often a plan is drawn at most."""
        ...

    def persistent(self, policy: Policy) -> Persistent:
        """What draws a plan that may be drawn again."""
        ...

    def plainly(self, policy: Policy, constraints: ConstraintSet) -> tuple[Started, int]:
        """What draws a plan that may be drawn again and is left to the policy, and how often that is tried before others; 0 for not at all.

        What it returns holds the same numbers as a draw of `persistent`.
        """
        ...


def stats(
    *, evaluations: int = 0, iterations: int = 0, control_energy=0.0, terminal_move=0.0, acceptance: Any = None
) -> Stats:
    """`Stats` from plain numbers; without an acceptance, `sample` puts the verdict on the plan there."""
    share: Any = None if acceptance is None else jnp.asarray(acceptance, jnp.float32)
    return Stats(
        evaluations=jnp.asarray(evaluations, jnp.int32),
        iterations=jnp.asarray(iterations, jnp.int32),
        control_energy=jnp.asarray(control_energy, jnp.float32),
        terminal_move=jnp.asarray(terminal_move, jnp.float32),
        acceptance=share,
        attempts=jnp.ones((), jnp.int32),
        moves=jnp.zeros((), jnp.int32),
    )


def unconstrained(process: ReverseProcess, key: Array) -> tuple[Float[Array, "n"], Float[Array, ""]]:
    """A plain sample and the energy of its noise, 1/2 sum |noise|^2."""
    init_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (process.count, process.dim))
    acting = process.std[:0:-1, None] > 0
    return process.rollout(process.prior(init_key), noise), 0.5 * jnp.sum(jnp.where(acting, noise, 0.0) ** 2)
