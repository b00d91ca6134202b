"""Jacobians as Gauss-Newton uses them: the products J' W J, J' r and J p, without the zeros that structure guarantees.

Along a trajectory the unknowns are H knots of A numbers each, and a row depends on a few neighbouring knots only: a collision on one,
a velocity on two, an acceleration on three. `Window` holds such rows as blocks; with w knots to a row and m rows to each of R groups,
J' W J costs R m (w A)^2 instead of R m (H A)^2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ROUNDING = 1e-7


class Jacobian(Protocol):
    """d values / d unknowns, for m values and n unknowns."""

    def solve(self, weight: Float[Array, "m"], ridge: Float[Array, "n"], right: Float[Array, "n"]) -> Float[Array, "n"]:
        """(J' diag(weight)^2 J + diag(ridge))^-1 right, with `ROUNDING` times the largest diagonal element added to the ridge."""
        ...

    def pull(self, values: Float[Array, "m"]) -> Float[Array, "n"]:
        """J' values."""
        ...

    def push(self, step: Float[Array, "n"]) -> Float[Array, "m"]:
        """J step."""
        ...

    def squares(self, chosen: np.ndarray) -> Float[Array, "n"]:
        """The diagonal of J' J, over some rows only."""
        ...

    def dense(self) -> Float[Array, "n m"]:
        """J', whole."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Dense:
    """A Jacobian without structure.

    Attributes:
      columns: J', one row per unknown.
    """

    columns: Float[Array, "n m"]

    def solve(self, weight: Float[Array, "m"], ridge: Float[Array, "n"], right: Float[Array, "n"]) -> Float[Array, "n"]:
        weighted = self.columns * weight
        return _solve(weighted @ weighted.T, ridge, right)

    def pull(self, values: Float[Array, "m"]) -> Float[Array, "n"]:
        return self.columns @ values

    def push(self, step: Float[Array, "n"]) -> Float[Array, "m"]:
        return step @ self.columns

    def squares(self, chosen: np.ndarray) -> Float[Array, "n"]:
        return jnp.sum(jnp.where(chosen, self.columns, 0.0) ** 2, axis=1)

    def dense(self) -> Float[Array, "n m"]:
        return self.columns


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Window:
    """Rows that each look at a few neighbouring knots.

    Attributes:
      blocks: derivatives of the m rows of each of R groups by the A numbers of each of the group's w knots.
      first: knot that the first group starts with; group r starts with knot first + r.
    """

    blocks: Float[Array, "R m w A"]
    first: int = field(default=0, metadata=dict(static=True))

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    def knots(self, i: int) -> slice:
        """Knot i of every group."""
        return slice(self.first + i, self.first + i + self.blocks.shape[0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Knots:
    """A Jacobian by the knots of a path, its rows in pieces.

    Attributes:
      pieces: windows, or dense J' (H A, m) where a row looks at the whole path, in the order of the stacked rows.
      horizon, width: H and A.
    """

    pieces: tuple[Window | Float[Array, "n k"], ...]
    horizon: int = field(metadata=dict(static=True))
    width: int = field(metadata=dict(static=True))

    @property
    def _sizes(self) -> list[int]:
        return [piece.size if isinstance(piece, Window) else piece.shape[1] for piece in self.pieces]

    def _split(self, rows: Float[Array, "m"]) -> list[Array]:
        ends = np.cumsum(self._sizes)
        parts = [rows[end - size : end] for size, end in zip(self._sizes, ends, strict=True)]
        return [
            part.reshape(piece.blocks.shape[:2]) if isinstance(piece, Window) else part
            for piece, part in zip(self.pieces, parts, strict=True)
        ]

    def solve(self, weight: Float[Array, "m"], ridge: Float[Array, "n"], right: Float[Array, "n"]) -> Float[Array, "n"]:
        H, A = self.horizon, self.width
        if all(isinstance(piece, Window) and piece.blocks.shape[2] == 1 for piece in self.pieces):
            own = self._band(weight)[0]  # knots do not meet: H small systems
            ridge, right = ridge.reshape(H, A), right.reshape(H, A)
            return jax.vmap(_solve)(own, ridge, right).reshape(-1)
        return _solve(self.gram(weight), ridge, right)

    def gram(self, weight: Float[Array, "m"]) -> Float[Array, "n n"]:
        """J' diag(weight)^2 J."""
        H, A = self.horizon, self.width
        out = jnp.zeros((H, A, H, A))
        for d, blocks in enumerate(self._band(weight)):
            rows = np.arange(d, H)
            out = out.at[rows, :, rows - d, :].set(blocks[d:])
            if d:
                out = out.at[rows - d, :, rows, :].set(jnp.swapaxes(blocks[d:], 1, 2))
        out = out.reshape(H * A, H * A)
        for piece, w in zip(self.pieces, self._split(weight), strict=True):
            if not isinstance(piece, Window):
                weighted = piece * w
                out = out + weighted @ weighted.T
        return out

    def _band(self, weight: Float[Array, "m"]) -> list[Float[Array, "H A A"]]:
        """What the windows add to the blocks of J' W^2 J: element h of the list's element d is block (h, h - d)."""
        H, A = self.horizon, self.width
        widest = max((piece.blocks.shape[2] for piece in self.pieces if isinstance(piece, Window)), default=0)
        band = [jnp.zeros((H, A, A)) for _ in range(widest)]
        for piece, w in zip(self.pieces, self._split(weight), strict=True):
            if isinstance(piece, Window):
                weighted = piece.blocks * w[:, :, None, None]
                for i in range(weighted.shape[2]):
                    for j in range(i, weighted.shape[2]):
                        product = jnp.einsum("rma,rmb->rab", weighted[:, :, j], weighted[:, :, i])
                        band[j - i] = band[j - i].at[piece.knots(j)].add(product)
        return band

    def pull(self, values: Float[Array, "m"]) -> Float[Array, "n"]:
        out = jnp.zeros((self.horizon, self.width))
        dense = jnp.zeros(self.horizon * self.width)
        for piece, v in zip(self.pieces, self._split(values), strict=True):
            if not isinstance(piece, Window):
                dense = dense + piece @ v
                continue
            for i in range(piece.blocks.shape[2]):
                out = out.at[piece.knots(i)].add(jnp.einsum("rma,rm->ra", piece.blocks[:, :, i], v))
        return out.reshape(-1) + dense

    def push(self, step: Float[Array, "n"]) -> Float[Array, "m"]:
        knots = step.reshape(self.horizon, self.width)
        out = []
        for piece in self.pieces:
            if isinstance(piece, Window):
                each = [
                    jnp.einsum("rma,ra->rm", piece.blocks[:, :, i], knots[piece.knots(i)])
                    for i in range(piece.blocks.shape[2])
                ]
                out.append(sum(each[1:], each[0]).reshape(-1))
            else:
                out.append(step @ piece)
        return jnp.concatenate(out)

    def squares(self, chosen: np.ndarray) -> Float[Array, "n"]:
        out = jnp.zeros((self.horizon, self.width))
        dense = jnp.zeros(self.horizon * self.width)
        for piece, use in zip(self.pieces, self._split(jnp.asarray(chosen, jnp.float32)), strict=True):
            if not isinstance(piece, Window):
                dense = dense + piece**2 @ use
                continue
            for i in range(piece.blocks.shape[2]):
                out = out.at[piece.knots(i)].add(jnp.einsum("rma,rm->ra", piece.blocks[:, :, i] ** 2, use))
        return out.reshape(-1) + dense

    def dense(self) -> Float[Array, "n m"]:
        return jax.vmap(self.push)(jnp.eye(self.horizon * self.width))


def _solve(A: Float[Array, "n n"], ridge: Float[Array, "n"], right: Float[Array, "n"]) -> Float[Array, "n"]:
    A = A + jnp.diag(ridge + ROUNDING * jnp.max(jnp.diagonal(A)))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(A, symmetrize_input=False), True), right)
