"""Rows of constraints in units of their tolerance, and their derivatives by the joints that realise the plan.

Every constraint is asked for as much as it knows: for blocks of neighbouring knots (`Windowed`), for blocks of single knots
(`AtEveryKnot`), for its Jacobian (`JointsLinear`); what knows nothing is differentiated along with the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints import AtEveryKnot, Constraint, JointsLinear, Windowed
from diffopt.solvers import Dense, Jacobian, Knots, Window

Piece = Window | Array  # rows of a Jacobian: of a path, by knots; or J' (n, m)
SMALLEST_SCALE = 1e-2  # of a row whose tolerance is smaller [the row's units]


def by_joints(
    k: Constraint, plan: Any, rate: Any, aux: dict[str, Array], context: Any
) -> tuple[Float[Array, "m"], list[Piece]]:
    """The scaled rows of a constraint at a realised plan, and their derivatives by the joints.

    Args:
      rate: how the plan, or each knot of a path, moves with its joints; see `JointsRealised`.
    """
    scaled = (lambda rows: rows) if k.kind == "cost" else partial(scale, k)
    if isinstance(k, Windowed):
        rows, windows = k.windows(plan, aux, context)
        return jnp.ravel(scaled(rows)), [_window(first, blocks, scaled) for first, blocks in windows]
    if isinstance(k, AtEveryKnot):
        rows, blocks = k.blocks(plan, rate, aux, context)
        return jnp.ravel(scaled(rows)), [_window(0, blocks[:, :, None], scaled)]
    joints = aux["joints"]
    if isinstance(k, JointsLinear):
        rows, J = k.jacobian(plan, aux, context)
        columns = scaled(jnp.moveaxis(J.reshape(*rows.shape, joints.size), -1, 0))
        return jnp.ravel(scaled(rows)), [columns.reshape(joints.size, -1)]

    def residual(plan: Any, joints: Array) -> Float[Array, "m"]:
        return jnp.ravel(scaled(k.residual(plan, aux | {"joints": joints}, context)))

    if joints.ndim == 2:  # one knot at a time
        H, A = joints.shape

        def alone(leaf: Float[Array, "A H ..."]) -> Float[Array, "HA H ..."]:
            mask = jnp.eye(H).reshape(H, 1, H, *(1,) * (leaf.ndim - 2))
            return (mask * leaf[None]).reshape(H * A, *leaf.shape[1:])

        rate = jax.tree.map(alone, rate)
    units = jnp.eye(joints.size).reshape(joints.size, *joints.shape)
    rows, columns = jax.vmap(lambda t, e: jax.jvp(residual, (plan, joints), (t, e)), out_axes=(None, 0))(rate, units)
    return rows, [columns]


def _window(first: int, blocks: Float[Array, "r m w A"], scaled: Callable[[Array], Array]) -> Window:
    return Window(blocks=jnp.moveaxis(scaled(jnp.moveaxis(blocks, 1, -1)), -1, 1), first=first)


def jacobian_of(pieces: list[Piece], joints: Array) -> Jacobian:
    """The Jacobian of stacked pieces by the joints of one configuration (A,) or of a path (H, A)."""
    if joints.ndim == 2:
        return Knots(pieces=tuple(pieces), horizon=joints.shape[0], width=joints.shape[1])
    return Dense(columns=jnp.concatenate(pieces, axis=1))


def scale(constraint: Constraint, rows: Float[Array, "... m"]) -> Float[Array, "... m"]:
    """Rows in units of their tolerance, or of `SMALLEST_SCALE` where that is larger."""
    return rows / jnp.maximum(jnp.asarray(constraint.tolerance, rows.dtype), SMALLEST_SCALE)
