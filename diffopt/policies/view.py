"""How a hand sees an object: from points on its fingers and palm to the surface, in the wrist's frame.

A `Foot` field holds, on a grid about the object, the foot of every node: the mean of the surface points with weights

    w_i ~ exp(-|p_i - node|^2 / (2 h^2)).

About a plane this is a Gaussian mean over the plane, centred below the node, so the offset from the node to its foot has the right length
however sparse the points are, where the distance to the nearest point has not. Between nodes the foot is interpolated; beyond the grid
it is that of the nearest place on the grid. `HandView` knows where the hand's points are for given joints: it is data, so that
policies need no robot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

GRID = 20  # nodes per axis
BORDER = 0.03  # [m] the grid ends this far outside the object
SMOOTHING = 0.004  # [m] h
FEATURES = 5  # per point


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Foot:
    """The foot on the surface of any point near an object.

    Attributes:
      cells: for every cell of the grid, z fastest, the feet of its 8 corners [m, object frame], side by side: one read finds them all.
        Those of several objects may stand one after the other.
      first: row of this object's first cell.
      lower: the grid's first node [m, object frame].
      step: distance between nodes along each axis [m].
    """

    cells: Float[Array, "T 24"]
    first: Int[Array, ""]
    lower: Float[Array, "3"]
    step: Float[Array, "3"]

    @staticmethod
    @jax.jit
    def of(points: Float[Array, "N 3"]) -> Foot:
        """The field of an object given by points of its surface [m, object frame]."""
        lower, upper = points.min(0) - BORDER, points.max(0) + BORDER
        step = (upper - lower) / (GRID - 1)
        index = jnp.stack(jnp.meshgrid(*[jnp.arange(GRID)] * 3, indexing="ij"), axis=-1)

        def slab(index):
            nodes = lower + index.reshape(-1, 3) * step
            squared = jnp.sum(nodes**2, -1)[:, None] - 2 * nodes @ points.T + jnp.sum(points**2, -1)[None]
            closeness = (jnp.min(squared, axis=1, keepdims=True) - squared) / (2 * SMOOTHING**2)
            weights = jnp.exp(closeness)
            return (weights @ points) / jnp.sum(weights, axis=1, keepdims=True)

        nodes = jax.lax.map(slab, index).reshape(GRID, GRID, GRID, 3)
        ends = (slice(0, -1), slice(1, None))
        cells = jnp.concatenate([nodes[x, y, z] for x, y, z in product(ends, repeat=3)], axis=-1)
        return Foot(cells=cells.reshape(-1, 24), first=jnp.zeros((), jnp.int32), lower=lower, step=step)

    def __call__(self, points: Float[Array, "K 3"]) -> Float[Array, "K 3"]:
        """Feet of `points` [m, object frame], trilinear between the nodes."""
        place = jnp.clip((points - self.lower) / self.step, 0.0, GRID - 1.0)
        cell = jnp.clip(jax.lax.stop_gradient(place).astype(jnp.int32), 0, GRID - 2)
        row = self.first + (cell[:, 0] * (GRID - 1) + cell[:, 1]) * (GRID - 1) + cell[:, 2]
        corners = self.cells[row].astype(points.dtype).reshape(-1, 2, 2, 2, 3)
        share = place - cell
        for axis in range(3):
            upper = share[:, axis].reshape(-1, *[1] * (corners.ndim - 2))
            corners = corners[:, 0] * (1 - upper) + corners[:, 1] * upper
        return corners


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class HandView:
    """Points from which a hand looks: some fixed to its wrist, some to the links of its fingers, which are chains of D hinges about z.

    Attributes:
      rotation, position: pose of every hinge, at angle zero, in the hinge before it (the first: in the wrist) [m].
      tips: points fixed to the hinges [m, hinge frame].
      fixed: points fixed to the wrist [m].
      radius: of every point, first the fixed ones: distance to the surface at which there is contact [m].
      depth: the hinge that moves each of the P points of a finger.
    """

    rotation: Float[Array, "F D 3 3"]
    position: Float[Array, "F D 3"]
    tips: Float[Array, "F P 3"]
    fixed: Float[Array, "W 3"]
    radius: Float[Array, "W+F*P"]
    depth: tuple[int, ...] = field(metadata=dict(static=True))

    @property
    def count(self) -> int:
        """Number of features of a look: the fingers look twice, as they are and opened."""
        fingers = self.tips.shape[0] * self.tips.shape[1]
        return FEATURES * (self.fixed.shape[0] + 2 * fingers)

    def points(self, joints: Float[Array, "F*D"]) -> Float[Array, "F*P 3"]:
        """The fingers' points in the wrist's frame [m]."""
        fingers, depth = self.position.shape[:2]
        angle = joints.reshape(fingers, depth)
        cos, sin = jnp.cos(angle)[..., None], jnp.sin(angle)[..., None]
        p = jnp.zeros((fingers, 3))
        R = tuple(jnp.broadcast_to(axis, (fingers, 3)) for axis in np.eye(3, dtype=np.float32))  # columns
        out: list[Array] = [p] * len(self.depth)
        for d in range(depth):
            p = p + _turn(R, self.position[:, d])
            x, y, z = (_turn(R, self.rotation[:, d, :, k]) for k in range(3))
            R = (cos[:, d] * x + sin[:, d] * y, cos[:, d] * y - sin[:, d] * x, z)
            for i, level in enumerate(self.depth):
                if level == d:
                    out[i] = p + _turn(R, self.tips[:, i])
        return jnp.stack(out, axis=1).reshape(-1, 3)

    def look(
        self,
        position: Float[Array, "3"],
        rotation: Float[Array, "3 3"],
        joints: Float[Array, "F*D"],
        squeeze: Float[Array, "F*D"],
        foot: Foot,
    ) -> Float[Array, "C"]:
        """What the hand sees of the object from a grasp in the object's frame [m, rad]: per point the direction of the surface in the
        wrist's frame, the clearance, near and in detail, and the distance, far and coarse."""
        points = jnp.concatenate([self.fixed, self.points(joints), self.points(joints - squeeze)])
        radius = jnp.concatenate([self.radius, self.radius[self.fixed.shape[0] :]])
        R = tuple(rotation[:, k] for k in range(3))
        seen = position + _turn(R, points)
        offset = foot(seen) - seen
        distance = jnp.sqrt(jnp.sum(offset**2, axis=-1, keepdims=True) + 1e-8)
        back = tuple(rotation[k] for k in range(3))
        clearance = distance - radius[:, None]
        features = [_turn(back, offset) / distance, jnp.tanh(clearance / 0.006), jnp.log1p(distance / 0.02) - 0.7]
        return jnp.concatenate(features, axis=-1).reshape(-1)


def _turn(columns, points: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """R p from the columns of R, elementwise."""
    return columns[0] * points[..., 0:1] + columns[1] * points[..., 1:2] + columns[2] * points[..., 2:3]
