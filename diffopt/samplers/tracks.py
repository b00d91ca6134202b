"""What a correction carries from level to level, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Starting points of the correction, carried from level to level; leaves have a leading axis of T tracks.

    Attributes:
      z: the unknowns, a dict by name; the vector is "x" where it is not eliminated.
      warm: what the solver carries.
    """

    z: dict[str, Float[Array, "T m"]]
    warm: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the solver says about each of T tracks.

    Attributes:
      cost, violation: at its last step, as it predicts them; violations in tolerances.
      settled: whether it had stopped making progress.
      iterations: steps so far.
    """

    cost: Float[Array, "T"]
    violation: Float[Array, "T"]
    settled: Bool[Array, "T"]
    iterations: Int[Array, "T"]

    @staticmethod
    def none(tracks: Tracks) -> Progress:
        """Before the first step."""
        (number, *_), dtype = next((values.shape, values.dtype) for values in tracks.z.values())
        return Progress(
            cost=jnp.zeros(number, dtype),
            violation=jnp.full(number, jnp.inf, dtype),
            settled=jnp.zeros(number, bool),
            iterations=jnp.zeros(number, jnp.int32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Corrected:
    """The result of a correction.

    Attributes:
      reference: encode(decode(c)).
      x: the corrected vector.
      aux: its auxiliary unknowns.
      tracks: where the next correction starts.
      satisfied: whether the set reports the decoded plan as satisfied.
      settled: whether the solver of the chosen track had stopped making progress.
      iterations: steps over all tracks.
    """

    reference: Float[Array, "n"]
    x: Float[Array, "n"]
    aux: dict[str, Array]
    tracks: Tracks
    satisfied: Bool[Array, ""]
    settled: Bool[Array, ""]
    iterations: Int[Array, ""]
