"""Signed distances on a grid, for surroundings that are no primitives: meshes, heightfields, point clouds.

The distance d to a set S is kept at the nodes of a grid of spacing h and interpolated trilinearly, written I d, so that a look-up costs
the same however many triangles or points S has. What is kept is a lower bound of d: d is the least of the distances |x - y| to the points
y of S, and the second derivatives of each are at most 1 / |x - y|. Where |x - y| >= rho in all of a cell, d - |x|^2 / (2 rho) is therefore
concave there, and what interpolation adds to it is at most what it adds to the square; and d changes by at most one per metre anyway:

    I d(x) - d(x) <= e = min(3 h^2 / (8 rho),  sqrt(3)/2 h)

The largest e of the cells around a node is subtracted there beforehand, so that what is looked up is never more than d. It is less by e
at flat faces, and by at most sqrt(3) h at the worst, where two surfaces are equally far. Within S (d < 0) e is sqrt(3)/2 h.

Beyond the grid, with c the nearest point of its box, and S within the box, the angle at c to any point of S is not acute, and so

    d(x)^2 >= |x - c|^2 + d(c)^2,

whose right side is what is returned there, squared; it joins the inside continuously.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry.pose import Pose

MOST_NODES = 20_000_000
_ROUNDING = 1e-6  # [m], of single precision


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Field:
    """A signed distance, sampled; a pytree. Fields with as many nodes along each axis do not retrace.

    Attributes:
      values: lower bounds of the distance at the nodes [m].
      origin: node (0, 0, 0) in the field's own frame [m].
      spacing: h [m].
      position, rotation: T_world_field.
    """

    values: Float[Array, "X Y Z"]
    origin: Float[Array, "3"]
    spacing: Float[Array, ""]
    position: Float[Array, "3"]
    rotation: Float[Array, "3 3"]

    @staticmethod
    def of(
        distance: Float[np.ndarray, "X Y Z"],
        origin,
        spacing: float,
        reach: Float[np.ndarray, "X Y Z"] | None = None,
    ) -> Field:
        """A field from exact distances at the nodes, in double precision.

        Args:
          distance: signed distances [m], negative within the set.
          origin: of node (0, 0, 0) [m].
          spacing: h [m].
          reach: how far the points are whose distance this is [m]; default `distance`. (It differs for balls: the distance to a ball is
            that to its centre less a radius, and bends as that to the centre.)
        """
        distance = np.asarray(distance, float)
        reach = distance if reach is None else np.asarray(reach, float)
        if distance.ndim != 3 or min(distance.shape) < 2:
            raise ValueError(
                f"distances of shape {distance.shape}; a field has at least two nodes along each of three axes"
            )
        corners = [reach[s] for s in _corners()]
        rho = np.maximum(reduce(np.minimum, corners) - np.sqrt(3) / 2 * spacing, 1e-9)
        error = np.minimum(3 * spacing**2 / (8 * rho), np.sqrt(3) / 2 * spacing)
        worst = np.zeros(distance.shape)
        for s in _corners():
            worst[s] = np.maximum(worst[s], error)
        return Field(
            values=jnp.asarray(distance - worst - _ROUNDING, jnp.float32),
            origin=jnp.asarray(origin, jnp.float32),
            spacing=jnp.asarray(spacing, jnp.float32),
            position=jnp.zeros(3),
            rotation=jnp.eye(3),
        )

    @property
    def most_below(self) -> Float[Array, ""]:
        """How far a look-up within the grid may at most be below the distance [m]: sqrt(3) h."""
        return np.sqrt(3).astype(np.float32) * self.spacing

    def at(self, pose: Pose) -> Field:
        """The field where `pose` (T_world_field) puts it."""
        return replace(self, position=jnp.asarray(pose.position), rotation=jnp.asarray(pose.rotation))

    def transform(self, position: Float[Array, "3"], rotation: Float[Array, "3 3"]) -> Field:
        """The field moved by x -> rotation x + position."""
        return replace(self, position=rotation @ self.position + position, rotation=rotation @ self.rotation)

    def distance(self, points: Float[Array, "3 P"]) -> Float[Array, "P"]:
        """Lower bounds of the signed distance of points in the world [m]; differentiable."""
        return self._look_up(points)[0]

    def distance_and_gradient(self, points: Float[Array, "3 P"]) -> tuple[Float[Array, "P"], Float[Array, "3 P"]]:
        """As `distance`, and its derivative by the points; not of length one close to the surface, where what was subtracted varies."""
        d, local = self._look_up(points)
        return d, jnp.stack([sum(self.rotation[i, j] * local[j] for j in range(3)) for i in range(3)])

    def _look_up(self, points):
        """The value, and the gradient in the field's frame."""
        offset = [points[i] - self.position[i] for i in range(3)]
        local = [sum(self.rotation[j, i] * offset[j] for j in range(3)) for i in range(3)]
        shape = self.values.shape
        cell, part, beyond = [], [], []
        for i in range(3):
            u = (local[i] - self.origin[i]) / self.spacing
            inside = jnp.clip(u, 0, shape[i] - 1)
            k = jnp.clip(jnp.floor(jax.lax.stop_gradient(inside)).astype(jnp.int32), 0, shape[i] - 2)
            cell.append(k)
            part.append(inside - k)
            beyond.append((u - inside) * self.spacing)
        first = (cell[0] * shape[1] + cell[1]) * shape[2] + cell[2]
        flat = self.values.reshape(-1)
        v = [flat[first + (a * shape[1] + b) * shape[2] + c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        x, y, z = part
        # Along x, then y, then z; of each the difference, too.
        along_x = [(v[4 + i] - v[i]) for i in range(4)]
        at_x = [v[i] + x * along_x[i] for i in range(4)]
        along_y = [at_x[2] - at_x[0], at_x[3] - at_x[1]]
        at_y = [at_x[0] + y * along_y[0], at_x[1] + y * along_y[1]]
        value = at_y[0] + z * (at_y[1] - at_y[0])
        slope_x = _mix(_mix(along_x[0], along_x[2], y), _mix(along_x[1], along_x[3], y), z)
        slopes = [slope_x, _mix(along_y[0], along_y[1], z), at_y[1] - at_y[0]]
        square = sum(e * e for e in beyond)
        outside = square > 0
        near = jnp.maximum(value, 0)
        far = jnp.sqrt(jnp.where(outside, square + near * near, 1.0))
        gradient = [
            jnp.where(outside, (e + jnp.where(e == 0, near * s / self.spacing, 0.0)) / far, s / self.spacing)
            for e, s in zip(beyond, slopes, strict=True)
        ]
        return jnp.where(outside, far, value), gradient


def grid(lower, upper, spacing: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The origin, and the coordinates of the nodes along each axis, of a grid that holds a box [m].

    Raises:
      ValueError: the box is empty, or takes more than `MOST_NODES` nodes.
    """
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    if not (spacing > 0 and np.all(np.isfinite(lower)) and np.all(upper > lower)):
        raise ValueError(f"no grid from {lower} to {upper} with spacing={spacing} [m]")
    counts = np.ceil((upper - lower) / spacing - 1e-9).astype(int) + 1
    if np.prod(counts.astype(float)) > MOST_NODES:
        coarser = spacing * (np.prod(counts.astype(float)) / MOST_NODES) ** (1 / 3)
        raise ValueError(
            f"a grid of {' x '.join(map(str, counts))} nodes from {lower} to {upper} [m]; at most {MOST_NODES} are kept: "
            f"take spacing={coarser:.2g} or a smaller box"
        )
    return lower, [lo + spacing * np.arange(n) for lo, n in zip(lower, counts, strict=True)]


def _mix(a, b, t):
    return a + t * (b - a)


def _corners() -> list[tuple[slice, slice, slice]]:
    """The eight corners of all cells, as slices of the nodes."""
    ends = (slice(None, -1), slice(1, None))
    return [(a, b, c) for a in ends for b in ends for c in ends]
