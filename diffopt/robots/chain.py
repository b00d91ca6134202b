"""The tool's pose and Jacobian of many postures at once.

The same kinematics as `Kinematics.fk`, laid out for a descent over many postures: a lane is one posture, lanes are the last axis of
every array, and the chain of links from the base to the tool is unrolled with its constants (most are 0 and 1 and drop out). With z_j
the axis of joint j and o_j a point on it, in the frame of the base, the tool at p moves by

    dp = z_j x (p - o_j) dq_j,    turn = z_j dq_j        (a slide: dp = z_j dq_j, turn = 0).

Barriers keep the compiler from computing a shared part once per user of it, which without them is most of the work.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.robots.embodiment import Embodiment

Columns = tuple[Float[Array, "3 L"], Float[Array, "3 L"], Float[Array, "3 L"]]
keep = jax.lax.optimization_barrier


class Moving(NamedTuple):
    """The tool in the frame of the base, and how the arm's joints move it.

    Attributes:
      position: [m].
      columns: columns of the rotation matrix.
      linear, angular: its velocity [m] and [rad] per unit of each joint.
    """

    position: Float[Array, "3 L"]
    columns: Columns
    linear: Float[Array, "A 3 L"]
    angular: Float[Array, "A 3 L"]


def moving(robot: Embodiment, q: Float[Array, "A L"]) -> Moving:
    """The tool at the postures q.

    Raises:
      NotImplementedError: if a ball or a free joint lies between the base and the tool.
    """
    links, last_R, last_p = robot.kinematics.chain(robot.kinematics.body(robot.tool))
    values, rates = _values(robot, [link.joint.name for link in links], q)
    sine, cosine = keep(sine_cosine(values))
    ones, zeros = jnp.ones_like(q[0]), jnp.zeros_like(q[0])
    columns = (jnp.stack([ones, zeros, zeros]), jnp.stack([zeros, ones, zeros]), jnp.stack([zeros, zeros, ones]))
    p = jnp.zeros_like(columns[0])
    axes, anchors, turns = [], [], []
    for k, (joint, X, t) in enumerate(links):
        if joint.type not in ("hinge", "slide"):
            raise NotImplementedError(
                f"joint {joint.name!r} of {robot.name!r} is a {joint.type} joint; only hinges and slides"
            )
        p = p + _combine(columns, t)
        x, y, z = (_combine(columns, X[:, j]) for j in range(3))
        if joint.type == "hinge":
            c, s = cosine[k], sine[k]
            columns = (c * x + s * y, c * y - s * x, z)
        else:
            columns, p = (x, y, z), p + z * values[k]
        columns, p = keep((columns, p))
        axes.append(columns[2])
        anchors.append(p)
        turns.append(joint.type == "hinge")
    p = p + _combine(columns, last_p)
    x, y, z = (_combine(columns, last_R[:, j]) for j in range(3))
    axis, anchor = jnp.stack(axes), jnp.stack(anchors)
    hinge = np.array(turns)[:, None, None]
    linear = jnp.where(hinge, _cross(axis, p - anchor), axis)
    angular = jnp.where(hinge, axis, 0.0)
    return Moving(*keep((p, (x, y, z), _by_joints(linear, rates), _by_joints(angular, rates))))


def first_axis(robot: Embodiment) -> tuple[np.ndarray, np.ndarray] | None:
    """The axis of the arm's first joint, as the third column of a rotation matrix, and a point on it [m], both in the frame of the base;
    None if it is not a hinge at the beginning of the chain, or moves others with it."""
    links, _, _ = robot.kinematics.chain(robot.kinematics.body(robot.tool))
    if not links or links[0].joint.type != "hinge" or links[0].joint.name != robot.arm[0] or robot.arm_followers:
        return None
    return links[0].rotation, links[0].position


def sine_cosine(angle: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Sine and cosine to float32 accuracy for a few turns, by Taylor series about the nearest quarter turn (several times faster than the
    library's, which serve all floats)."""
    quarters = jnp.round(angle * (2 / np.pi))
    r = (angle - quarters * np.float32(1.5703125)) - quarters * np.float32(np.pi / 2 - 1.5703125)
    u = r * r
    s = r * (1 + u * (-1 / 6 + u * (1 / 120 + u * (-1 / 5040 + u / 362880))))
    c = 1 + u * (-1 / 2 + u * (1 / 24 + u * (-1 / 720 + u * (1 / 40320 - u / 3628800))))
    n = quarters.astype(jnp.int32)
    odd = (n & 1) == 1
    sine, cosine = jnp.where(odd, c, s), jnp.where(odd, s, c)
    return jnp.where((n & 2) == 2, -sine, sine), jnp.where(((n + 1) & 2) == 2, -cosine, cosine)


def _values(robot: Embodiment, names: list[str], q: Float[Array, "A L"]):
    """Per link, the way its joint has gone from its reference; and by how much each arm joint moves it (None: it is that joint)."""
    k = robot.kinematics
    reference = np.array([k.joint(name).reference for name in names], np.float32)[:, None]
    if all(name in robot.arm for name in names):
        order = np.array([robot.arm.index(name) for name in names])
        rates = (
            None
            if np.array_equal(order, np.arange(len(robot.arm)))
            else np.eye(len(robot.arm), dtype=np.float32)[order]
        )
        return q[order] - reference, None if rates is None else rates[..., None]
    index = np.array([k.joint(name).qpos for name in names])
    values = jax.vmap(lambda one: robot.qpos(one)[index], in_axes=1, out_axes=1)(q)
    return values - reference, jax.vmap(jax.jacfwd(lambda one: robot.qpos(one)[index]), in_axes=1, out_axes=2)(q)


def _by_joints(by_links: Float[Array, "K 3 L"], rates) -> Float[Array, "A 3 L"]:
    if rates is None:
        return by_links
    return sum(by_links[k, None] * rates[k, :, None] for k in range(len(by_links)))


def _combine(columns: Columns, v: np.ndarray) -> Float[Array, "3 L"]:
    """columns @ v for a constant v."""
    terms = [c if x == 1 else -c if x == -1 else c * float(x) for c, x in zip(columns, v, strict=True) if abs(x) > 1e-9]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(columns[0])


def _cross(a: Float[Array, "K 3 L"], b: Float[Array, "K 3 L"]) -> Float[Array, "K 3 L"]:
    parts = [a[:, i] * b[:, j] - a[:, j] * b[:, i] for i, j in ((1, 2), (2, 0), (0, 1))]
    return jnp.stack(parts, axis=1)
