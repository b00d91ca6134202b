"""Where the descents of inverse kinematics start.

A bank of random postures is compared with each target, the nearest of each of several groups is a guess. Two things make a guess good:

- The arm's first joint is turned to where the tool comes nearest to the target. With (p, R) the bank's tool and (w, W) the target, both
  seen along the joint's axis, the likeness -|w - Rz(a) p|^2 / l^2 - |W - Rz(a) R|_F^2 / 2 is c + A cos a + B sin a, largest at
  a = atan2(B, A), where it is c + sqrt(A^2 + B^2).
- The bank keeps to the middle of the joint ranges: a descent that starts near a limit often ends at it.

When these are used up, postures of the whole ranges follow, in an order that differs from pose to pose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffopt.robots.chain import first_axis, moving
from diffopt.robots.descent import LENGTH
from diffopt.robots.embodiment import Embodiment

GROUPS, EACH = 8, 64
MIDDLE = 0.7  # share of the ranges


class Bank(NamedTuple):
    """Postures: `middle` (groups first), the tools at them seen along the first axis, as in `seen`, and `wide` ones."""

    middle: Float[Array, "A G E"]
    tools: Float[Array, "12 G E"]
    wide: Float[Array, "A W"]


class Nearest(NamedTuple):
    """Per group and pose, the member of the bank that is nearest, and the turn of the first joint that brings it there [rad]."""

    member: Int[Array, "G C"]
    turn: Float[Array, "G C"]


def bank(robot: Embodiment, key: Any) -> Bank:
    """A bank of random postures; ranges without an end are taken as half a turn (or 1 m) about the home posture."""
    hinge = np.array([robot.kinematics.joint(name).type == "hinge" for name in robot.arm])
    far = jnp.where(hinge, np.pi, 1.0)
    lower = jnp.where(jnp.isfinite(robot.lower), robot.lower, robot.home - far)
    upper = jnp.where(jnp.isfinite(robot.upper), robot.upper, robot.home + far)
    near, wide = jax.random.split(key)
    share = jax.random.uniform(near, (len(robot.arm), GROUPS * EACH), minval=0.5 - MIDDLE / 2, maxval=0.5 + MIDDLE / 2)
    middle = lower[:, None] + (upper - lower)[:, None] * share
    anywhere = jax.random.uniform(wide, (len(robot.arm), GROUPS * EACH))
    tool = moving(robot, middle)
    tools = seen(robot, jnp.concatenate([tool.position, *tool.columns]))
    shape = (GROUPS, EACH)
    wide = lower[:, None] + (upper - lower)[:, None] * anywhere
    return Bank(middle=middle.reshape(-1, *shape), tools=tools.reshape(12, *shape), wide=wide)


def seen(robot: Embodiment, pose: Float[Array, "12 L"]) -> Float[Array, "12 L"]:
    """Poses (position, columns) in the frame of the base, seen from a point on the first joint's axis in a frame with that axis as z."""
    axis = first_axis(robot)
    if axis is None:
        return pose
    R, p = axis
    pose = pose - jnp.concatenate([p, np.zeros(9, np.float32)])[:, None]
    return jnp.concatenate([R.T @ pose[i : i + 3] for i in range(0, 12, 3)])


def nearest(robot: Embodiment, bank: Bank, target: Float[Array, "12 C"]) -> Nearest:
    """The nearest of each group for every target (in the frame of the base)."""
    w = seen(robot, target)
    turned = first_axis(robot) is not None
    weight = np.array([1 / LENGTH**2] + [0.5] * 3)  # of position and of each column, in the squared distance

    def step(best, item):
        index, p = item  # p: (12, G)
        x, y, z = ([p[i + k][:, None] for i in range(0, 12, 3)] for k in range(3))
        u, v, t = ([w[i + k] for i in range(0, 12, 3)] for k in range(3))
        c = sum(2 * m * t[i] * z[i] for i, m in enumerate(weight)) - weight[0] * (x[0] ** 2 + y[0] ** 2 + z[0] ** 2)
        A = sum(2 * m * (u[i] * x[i] + v[i] * y[i]) for i, m in enumerate(weight))
        B = sum(2 * m * (v[i] * x[i] - u[i] * y[i]) for i, m in enumerate(weight))
        like = c + (jnp.sqrt(A * A + B * B) if turned else A)
        closer = like > best[0]
        return tuple(jnp.where(closer, new, old) for new, old in zip((like, index, A, B), best, strict=True)), None

    shape = (GROUPS, target.shape[1])
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape)
    (like, member, A, B), _ = jax.lax.scan(step, start, (jnp.arange(EACH), jnp.moveaxis(bank.tools, -1, 0)))
    # The likest of all comes first; the order of the others matters little.
    best = jnp.argmax(like, axis=0)
    order = jnp.where(
        np.arange(GROUPS)[:, None] == 0,
        best,
        jnp.where(np.arange(GROUPS)[:, None] == best, 0, np.arange(GROUPS)[:, None]),
    )
    member, A, B = (jnp.take_along_axis(v, order, axis=0) for v in (member + EACH * np.arange(GROUPS)[:, None], A, B))
    return Nearest(member=member, turn=jnp.arctan2(B, A) if turned else jnp.zeros(shape))


def guess(
    robot: Embodiment, bank: Bank, near: Nearest, pose: Int[Array, "L"], attempt: Int[Array, "L"]
) -> Float[Array, "A L"]:
    """The guesses of these attempts at these poses."""
    row = jnp.minimum(attempt, GROUPS - 1)
    middle = bank.middle.reshape(len(robot.arm), -1)[:, near.member[row, pose]]
    first = middle[0] + near.turn[row, pose]
    centre = 0.5 * (robot.lower[0] + robot.upper[0])
    centre = jnp.where(jnp.isfinite(centre), centre, robot.home[0])
    first = first - 2 * np.pi * jnp.round((first - centre) / (2 * np.pi))
    middle = middle.at[0].set(jnp.where(first_axis(robot) is not None, first, middle[0]))
    wide = bank.wide[:, (attempt + 211 * pose) % bank.wide.shape[1]]
    return jnp.where(attempt < GROUPS, middle, wide)
