"""Many postures towards their tool poses at once: damped least squares within the joint limits.

Per lane, with e the way from the tool to its target (position in units of `LENGTH`, rotation vector [rad]) and J its Jacobian by the
joints,

    dq = (J^T J + lambda I)^-1 J^T e,        lambda = DAMPING |e|^2 + FLOOR,

the damping of Sugihara (IEEE T-RO 27(5), 2011, eq. 24 without weights), which fades as the target comes near; columns of joints that
stand at a limit and would be pushed beyond it are left out; steps are at most `LONGEST` [rad], and clipped to the limits.

The normal equations are solved by an unrolled Cholesky factorisation over all lanes: calling a library once per lane is many times
slower for so small a matrix.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose
from diffopt.robots.chain import Columns, keep, moving
from diffopt.robots.embodiment import Embodiment

LENGTH = 0.3  # [m], counts as one radian
DAMPING, FLOOR = 0.1, 1e-4
LONGEST = 1.0  # [rad, m]


def descend(robot: Embodiment, q: Float[Array, "A L"], target: Float[Array, "12 L"], steps: int) -> Float[Array, "A L"]:
    """The postures after some steps.

    Args:
      target: position and the columns of the rotation matrix of each lane's target, in the frame of the base.
    """

    def body(q: Float[Array, "A L"], _: None) -> tuple[Float[Array, "A L"], None]:
        return _step(robot, q, target), None

    return jax.lax.scan(body, jnp.clip(q, robot.lower[:, None], robot.upper[:, None]), length=steps)[0]


def towards(robot: Embodiment, tool: Pose, joints: Float[Array, "S A"], steps: int) -> Float[Array, "S A"]:
    """Postures after some steps that bring their tool to one pose T_world_tool."""
    wanted = robot.base.inverse() @ tool
    target = jnp.concatenate([wanted.position, wanted.rotation.T.reshape(9)])
    return descend(robot, joints.T, jnp.broadcast_to(target[:, None], (12, len(joints))), steps).T


def _step(robot: Embodiment, q: Float[Array, "A L"], target: Float[Array, "12 L"]) -> Float[Array, "A L"]:
    tool = moving(robot, q)
    way = keep(jnp.concatenate([(target[:3] - tool.position) / LENGTH, turn_to(tool.columns, target)]))
    J = keep(jnp.concatenate([tool.linear / LENGTH, tool.angular], axis=1))  # (A, 6, L)
    g = sum(J[:, r] * way[r] for r in range(6))
    H = sum(J[:, None, r] * J[None, :, r] for r in range(6))
    damping = DAMPING * sum(way[r] ** 2 for r in range(6)) + FLOOR
    lower, upper = robot.lower[:, None], robot.upper[:, None]
    free = jnp.where(((q <= lower) & (g < 0)) | ((q >= upper) & (g > 0)), 0.0, 1.0)
    g, H, free, damping = keep((g * free, H, free, damping))
    eye = np.eye(q.shape[0], dtype=np.float32)[:, :, None]
    step = solve(keep(H * free[:, None] * free[None, :] + eye * (damping + 1 - free)[:, None]), g)
    step = step * jnp.minimum(1.0, LONGEST / jnp.maximum(jnp.max(jnp.abs(step), axis=0), 1e-9))
    return keep(jnp.clip(q + step, lower, upper))


def turn_to(columns: Columns, target: Float[Array, "12 L"]) -> Float[Array, "3 L"]:
    """The rotation vector that takes the columns to those of the target [rad]; at half a turn, where any axis would do, nearly zero."""
    pairs = list(zip(columns, (target[3:6], target[6:9], target[9:12]), strict=True))
    s = 0.5 * sum(jnp.stack([a[i] * b[j] - a[j] * b[i] for i, j in ((1, 2), (2, 0), (0, 1))]) for a, b in pairs)
    c = 0.5 * (sum(jnp.sum(a * b, axis=0) for a, b in pairs) - 1)
    sine = jnp.sqrt(jnp.sum(s * s, axis=0) + 1e-20)
    return s * (jnp.arctan2(sine, c) / sine)


def solve(H: Float[Array, "n n L"], g: Float[Array, "n L"]) -> Float[Array, "n L"]:
    """H^-1 g of every lane, for symmetric positive definite H."""
    n = g.shape[0]
    L: list[list] = [[None] * n for _ in range(n)]
    inverse, y, x = [], [], [None] * n  # of the diagonal of the factor; its solution; ours
    for i in range(n):
        for j in range(i):
            L[i][j] = keep((H[i, j] - sum(L[i][k] * L[j][k] for k in range(j))) * inverse[j])
        inverse.append(keep(jax.lax.rsqrt(jnp.maximum(H[i, i] - sum(L[i][k] ** 2 for k in range(i)), 1e-12))))
        y.append(keep((g[i] - sum(L[i][k] * y[k] for k in range(i))) * inverse[i]))
    for i in reversed(range(n)):
        x[i] = keep((y[i] - sum(L[j][i] * x[j] for j in range(i + 1, n))) * inverse[i])
    return jnp.stack(x)
