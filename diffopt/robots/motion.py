"""How the spheres of a robot move with its arm's joints.

A point c fixed to a body that joint j turns about the axis a_j through o_j moves by a_j x (c - o_j) per radian, and its component
along a direction n is, in Pluecker coordinates, a product of something of the joint and something of the point:

    n . (a_j x (c - o_j)) = a_j . (c x n) - (a_j x o_j) . n,          a slide: a_j . n.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Frames

Screws = tuple[Float[Array, "A 3"], Float[Array, "A 3"]]


def screws(robot: Embodiment, frames: Frames) -> Screws:
    """Per arm joint the factors (of c x n, of n) in the frame of the base."""
    joints = [robot.kinematics.joint(name) for name in robot.arm]
    dofs = np.array([j.dof for j in joints], int)
    turns = np.array([j.type == "hinge" for j in joints])[:, None]
    axis, anchor = frames.axis[dofs], frames.anchor[dofs]
    return jnp.where(turns, axis, 0.0), jnp.where(turns, jnp.cross(anchor, axis), axis)


def moved_by(robot: Embodiment, bodies: tuple[int, ...]) -> np.ndarray:
    """Whether each arm joint (columns) moves each body (rows), as 0.0 or 1.0."""
    dofs = [robot.kinematics.joint(name).dof for name in robot.arm]
    above = {b: robot.kinematics.ancestors(b) for b in set(bodies)}
    table = [[float(d in above[b]) for d in dofs] for b in bodies]
    return np.array(table, np.float32).reshape(len(bodies), len(dofs))


def along(screws: Screws, moved, centers: Float[Array, "3 P"], normals: Float[Array, "3 P"]) -> Float[Array, "P A"]:
    """Derivative of normal . centre by the arm's joints, for points fixed to bodies with rows `moved` (P, A)."""
    c, n = centers, normals
    moment = (c[1] * n[2] - c[2] * n[1], c[2] * n[0] - c[0] * n[2], c[0] * n[1] - c[1] * n[0])
    of_moment, of_normal = screws
    columns = [
        sum(of_moment[j, i] * moment[i] + of_normal[j, i] * n[i] for i in range(3)) for j in range(of_moment.shape[0])
    ]
    return jnp.stack(columns, axis=-1) * moved
