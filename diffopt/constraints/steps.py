"""Rows that look at neighbouring steps of a path, of which the first were before it began."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def with_past(past: Float[Array, "P A"] | None, joints: Float[Array, "H A"]) -> Float[Array, "P+H A"]:
    """The joints of the steps before the path, if there are any, and of its knots [rad]."""
    return joints if past is None else jnp.concatenate([past, joints])


def windows(
    blocks: Float[Array, "R m w A"], past: Float[Array, "P A"] | None
) -> tuple[tuple[int, Float[Array, "r m w A"]], ...]:
    """Derivatives of R groups of rows by w steps each, as `Windowed` wants them: by knots of the path alone.

    Args:
      blocks: group r looks at the w steps from step r of `with_past`.
    """
    before = 0 if past is None else len(past)
    early: tuple[tuple[int, Any], ...] = tuple((0, blocks[r : r + 1, :, before - r :]) for r in range(before))
    return (*early, (0, blocks[before:]))
