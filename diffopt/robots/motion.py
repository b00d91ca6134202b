"""How a robot moves with its arm's joints.

A point c fixed to a body that joint j turns about the axis a_j through o_j moves by a_j x (c - o_j) per radian, and its component
along a direction n is, in Pluecker coordinates, a product of something of the joint and something of the point:

    n . (a_j x (c - o_j)) = a_j . (c x n) - (a_j x o_j) . n,          a slide: a_j . n.

An arm whose joints have followers (see `couplings`) has a row for each of them after its own, and F = d followers / d joints, with
which the chain rule adds what they do to what their leaders do.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose, rotation_vector
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Frames, Joint

Screws = (
    tuple[Float[Array, "D 3"], Float[Array, "D 3"]]
    | tuple[Float[Array, "D 3"], Float[Array, "D 3"], Float[Array, "F A"]]
)


def screws(robot: Embodiment, frames: Frames) -> Screws:
    """Per arm joint, then per follower of one, the factors (of c x n, of n) in the frame of the base; and F if there are followers.

    Args:
      frames: from `robot.frames`.
    """
    joints = _joints(robot)
    dofs = np.array([j.dof for j in joints], int)
    turns = np.array([j.type == "hinge" for j in joints])[:, None]
    axis, anchor = frames.axis[dofs], frames.anchor[dofs]
    rows = jnp.where(turns, axis, 0.0), jnp.where(turns, jnp.cross(anchor, axis), axis)
    return rows if frames.follow is None else (*rows, frames.follow)


def screws_of(robot: Embodiment, frames: Frames, body: int) -> tuple[Float[Array, "A 3"], Float[Array, "A 3"]]:
    """The screws by which each arm joint moves one body, its followers counted in: angular part, and velocity of the base's origin."""
    moment, normal, *follow = screws(robot, frames)
    moved = moved_by(robot, (body,)).T
    moment, normal = moment * moved, normal * moved
    if not follow:
        return moment, normal
    return _chain(moment.T, follow[0]).T, _chain(normal.T, follow[0]).T


def body_motion(
    robot: Embodiment, joints: Float[Array, "A"], body: str | None = None
) -> tuple[Pose, Float[Array, "A 3"], Float[Array, "A 3"]]:
    """T_world_body of a body (default: the tool), and per joint of the arm its angular velocity and that of its origin, in the world."""
    index = robot.kinematics.body(robot.tool if body is None else body)
    frames = robot.frames(joints, only=(index,))
    position, rotation = frames.position[index], frames.rotation[index]
    turning, moving = screws_of(robot, frames, index)
    moving = moving + jnp.cross(turning, position)
    out = robot.base.rotation.T
    return robot.base @ Pose(position=position, rotation=rotation), turning @ out, moving @ out


def moved_by(robot: Embodiment, bodies: tuple[int, ...]) -> np.ndarray:
    """Whether each row of the screws (columns) moves each body (rows), as 0.0 or 1.0."""
    dofs = [joint.dof for joint in _joints(robot)]
    above = {b: robot.kinematics.ancestors(b) for b in set(bodies)}
    table = [[float(d in above[b]) for d in dofs] for b in bodies]
    return np.array(table, np.float32).reshape(len(bodies), len(dofs))


def along(screws: Screws, moved, centers: Float[Array, "3 P"], normals: Float[Array, "3 P"]) -> Float[Array, "P A"]:
    """Derivative of normal . centre by the arm's joints, for points fixed to bodies with rows `moved` (P, D)."""
    c, n = centers, normals
    moment = (c[1] * n[2] - c[2] * n[1], c[2] * n[0] - c[0] * n[2], c[0] * n[1] - c[1] * n[0])
    of_moment, of_normal, *follow = screws
    columns = [
        sum(of_moment[j, i] * moment[i] + of_normal[j, i] * n[i] for i in range(3)) for j in range(of_moment.shape[0])
    ]
    own = jnp.stack(columns, axis=-1) * moved
    return _chain(own, follow[0]) if follow else own


def follow(
    robot: Embodiment,
    joints: Float[Array, "A"],
    path: Pose,
    *,
    longest: Any = 1.0,
    steps: int = 2,
    damping: float = 0.05,
) -> Float[Array, "H A"]:
    """Differential inverse kinematics along a path: at each knot some damped least-squares steps from where the last knot ended,

        dq = J' (J J' + damping^2)^-1 e,      e = (position error [m], rotation error [rad]),

    within the joint limits; what a resolved-rate controller would do (Wampler 1986).

    Args:
      joints: where to start [rad].
      path: T_world_tool at the knots, stacked.
      longest: largest change of each joint from knot to knot [rad]; one number or (A,).
      steps: per knot.
      damping: lambda [m, rad].
    """

    def knot(q: Float[Array, "A"], wanted: Pose) -> tuple[Float[Array, "A"], Float[Array, "A"]]:
        before = q
        for _ in range(steps):
            q = q + resolved(robot, q, wanted, damping)
            q = jnp.clip(jnp.clip(q, before - longest, before + longest), robot.lower, robot.upper)
        return q, q

    return jax.lax.scan(knot, joints, path)[1]


def resolved(robot: Embodiment, joints: Float[Array, "A"], wanted: Pose, damping: Any = 0.05) -> Float[Array, "A"]:
    """The damped least-squares step dq of `follow` from one posture towards T_world_tool = `wanted` [rad]."""
    tool, goal = robot.kinematics.body(robot.tool), robot.base.inverse() @ wanted
    frames = robot.frames(joints, only=(tool,))
    position, rotation = frames.position[tool], frames.rotation[tool]
    turning, moving = screws_of(robot, frames, tool)
    J = jnp.concatenate([moving + jnp.cross(turning, position), turning], axis=1).T
    error = jnp.concatenate([goal.position - position, rotation @ rotation_vector(rotation.T @ goal.rotation)])
    return J.T @ jnp.linalg.solve(J @ J.T + damping**2 * jnp.eye(6), error)


def _joints(robot: Embodiment) -> list[Joint]:
    return [robot.kinematics.joint(name) for name in (*robot.arm, *robot.arm_followers)]


def _chain(by_all: Float[Array, "P D"], follow: Float[Array, "F A"]) -> Any:
    arm = follow.shape[1]
    return by_all[:, :arm] + by_all[:, arm:] @ follow
