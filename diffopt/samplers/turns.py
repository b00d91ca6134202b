"""What draws a plan that may be drawn again: several settings of a sampler, in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffopt.policies.base import Policy
from diffopt.samplers.base import Sampler


@runtime_checkable
class Persistent(Protocol):
    """A sampler that has plans drawn again by itself."""

    def usual_attempts(self) -> int:
        """How often a plan is drawn at most."""
        ...

    def persistent(self, policy: Policy, most: int) -> Turns:
        """What draws a plan that is drawn up to `most` times."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Turns:
    """Settings of one sampler that take turns, and differ in numbers only, so that one program runs them all.

    Attributes:
      samplers: the settings.
      lengths: how many attempts in a row each makes; after the last one it is the turn of the first again.
    """

    samplers: tuple[Sampler, ...]
    lengths: tuple[int, ...] = field(default=(1,), metadata=dict(static=True))

    @staticmethod
    def of(sampler: Sampler, policy: Policy, most: int) -> Turns:
        """Those of a sampler that is asked for up to `most` draws a plan."""
        if isinstance(sampler, Persistent):
            return sampler.persistent(policy, most)
        return Turns(samplers=(sampler,))

    def turn(self, number: Any) -> Any:
        """In which turn an attempt is made; both are counted from 0."""
        xp, rounds = jnp if isinstance(number, jax.Array) else np, number // sum(self.lengths)
        within = xp.searchsorted(xp.asarray(np.cumsum(self.lengths)), number % sum(self.lengths), side="right")
        return rounds * len(self.samplers) + within

    def at(self, turn: Any) -> Sampler:
        """Whose turn it is."""
        which = turn % len(self.samplers)
        if not isinstance(which, jax.core.Tracer):
            return self.samplers[int(which)]
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])[which], *self.samplers)
