"""The links of a tree of bodies, one per joint, and their poses.

Link 0 is the world; the frame of link k > 0 has the axis of its joint as z. Every body is a constant away from a link. Poses are
composed by one `scan` over the depth of the tree along all paths from the root to a leaf at once (see `kinematics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DOFS = {"free": 6, "ball": 3, "slide": 1, "hinge": 1}

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Joint:
    """One joint: name, type, first index in qpos and qvel, anchor [m] and unit axis in the body frame, reference position."""

    name: str
    type: str
    qpos: int
    dof: int
    anchor: Vector
    axis: Vector
    reference: float


@dataclass(frozen=True)
class Body:
    """One body: name, parent, fixed pose in the parent's frame (position [m], rotation matrix by rows), its joints."""

    name: str
    parent: int
    position: Vector
    rotation: tuple[Vector, Vector, Vector]
    joints: tuple[Joint, ...]


@dataclass(frozen=True)
class Tree:
    """Constants of the links of a tree: link 0 is the world, link k > 0 is moved by `links[k - 1]`.

    Attributes:
      links: the joints, in the order of the links.
      rotation, position: constant pose X of each link in its parent link.
      path: link at each depth (rows) of each path from the root to a leaf (columns); 0 beyond its end.
      place: row of the flattened `path` where each link is found.
      body_link, body_rotation, body_position: per body its link, and its constant pose in that.
      dof_link: per degree of freedom its link.
      dof_axis: per degree of freedom, the row of [axes of link 0, of link 1, ..., of the world] that it moves along or about.
    """

    links: tuple[Joint, ...]
    rotation: np.ndarray
    position: np.ndarray
    path: np.ndarray
    place: np.ndarray
    body_link: np.ndarray
    body_rotation: np.ndarray
    body_position: np.ndarray
    dof_link: np.ndarray
    dof_axis: np.ndarray

    @staticmethod
    def of(bodies: tuple[Body, ...], only: frozenset[int] | None) -> Tree:
        """The tree of `bodies`, or of what is above those whose index is in `only`."""
        needed = set(range(len(bodies))) if only is None else set()
        for b in only or ():
            while b > 0:
                needed.add(b)
                b = bodies[b].parent
        links: list[Joint] = []
        parent, constants = [0], [(np.eye(3), np.zeros(3))]
        where = [(0, np.eye(3), np.zeros(3))] * len(bodies)  # per body: link, rotation, position
        nv = sum(DOFS[joint.type] for body in bodies for joint in body.joints)
        dof_link, dof_axis = np.zeros(nv, int), np.zeros(nv, int)
        for b, body in enumerate(bodies):
            if b == 0 or b not in needed:
                continue
            link, R, p = where[body.parent]
            R, p = R @ np.array(body.rotation), R @ np.array(body.position) + p
            for joint in body.joints:
                A = _frame_with_third_axis(np.array(joint.axis)) if joint.type in ("hinge", "slide") else np.eye(3)
                anchor = np.array(joint.anchor)
                if joint.type == "free":
                    link, R, p, anchor = 0, np.eye(3), np.zeros(3), np.zeros(3)
                links.append(joint)
                parent.append(link)
                constants.append((R @ A, R @ anchor + p))
                link, R, p = len(links), A.T, -A.T @ anchor
                for i in range(DOFS[joint.type]):
                    axis = 2 if DOFS[joint.type] == 1 else i % 3
                    dof_link[joint.dof + i] = link
                    dof_axis[joint.dof + i] = -3 + i if joint.type == "free" and i < 3 else 3 * link + axis
            where[b] = (link, R, p)
        dof_axis = np.where(dof_axis < 0, 3 * (len(links) + 1) + 3 + dof_axis, dof_axis)
        leaves = [k for k in range(1, len(links) + 1) if k not in parent]
        paths = []
        for leaf in leaves:
            path = [leaf]
            while parent[path[0]] > 0:
                path.insert(0, parent[path[0]])
            paths.append(path)
        table = np.zeros((max(map(len, paths), default=0), len(paths)), int)
        place = np.zeros(len(links) + 1, int)
        for lane, path in enumerate(paths):
            for depth, link in enumerate(path):
                table[depth, lane] = link
                place[link] = depth * len(paths) + lane
        return Tree(
            links=tuple(links),
            rotation=np.array([R for R, _ in constants], np.float32),
            position=np.array([p for _, p in constants], np.float32),
            path=table,
            place=place,
            body_link=np.array([link for link, _, _ in where]),
            body_rotation=np.array([R for _, R, _ in where], np.float32),
            body_position=np.array([p for _, _, p in where], np.float32),
            dof_link=dof_link,
            dof_axis=dof_axis,
        )


def local_poses(tree: Tree, qpos: Float[Array, "nq"]):
    """X_k M_k(q_k) of all links (0 is the world): positions (links, 3) and rotations (links, 3, 3)."""
    hinge = np.array([0.0] + [float(j.type == "hinge") for j in tree.links], np.float32)
    slide = np.array([0.0] + [float(j.type == "slide") for j in tree.links], np.float32)
    reference = np.array([0.0] + [j.reference if j.type in ("hinge", "slide") else 0.0 for j in tree.links], np.float32)
    value = qpos[np.array([0] + [j.qpos for j in tree.links])] - reference
    c, s = jnp.cos(value * hinge)[:, None], jnp.sin(value * hinge)[:, None]
    x, y, z = (tree.rotation[:, :, i] for i in range(3))
    R = jnp.stack([c * x + s * y, c * y - s * x, jnp.broadcast_to(z, (*c.shape[:-1], 3))], axis=-1)
    p = tree.position + z * (value * slide)[:, None]
    for k, joint in enumerate(tree.links, start=1):
        if joint.type == "ball":
            R = R.at[k].set(tree.rotation[k] @ _matrix(qpos[joint.qpos : joint.qpos + 4]))
        elif joint.type == "free":
            R = R.at[k].set(_matrix(qpos[joint.qpos + 3 : joint.qpos + 7]))
            p = p.at[k].set(qpos[joint.qpos : joint.qpos + 3])
    return p, R


def compose(tree: Tree, position: Float[Array, "K 3"], rotation: Float[Array, "K 3 3"]):
    """Poses of all links in the world from their poses in their parents."""

    def step(pose, local):
        p, R = pose  # (3, lanes), (3, 3, lanes)
        t, L = local
        p = p + sum(R[:, k] * t[k] for k in range(3))
        R = sum(R[:, k, None] * L[None, k] for k in range(3))
        return (p, R), (p, R)

    lanes = tree.path.shape[1]
    t = jnp.moveaxis(position[tree.path], 1, -1)  # (depth, 3, lanes)
    L = jnp.moveaxis(rotation[tree.path], 1, -1)
    start = (
        jnp.zeros((3, lanes), position.dtype),
        jnp.broadcast_to(jnp.eye(3, dtype=position.dtype)[..., None], (3, 3, lanes)),
    )
    _, (p, R) = jax.lax.scan(step, start, (t, L))
    p = jnp.moveaxis(p, -1, 1).reshape(-1, 3)[tree.place]
    R = jnp.moveaxis(R, -1, 1).reshape(-1, 3, 3)[tree.place]
    world = np.arange(len(tree.place)) == 0
    return jnp.where(world[:, None], 0.0, p), jnp.where(world[:, None, None], np.eye(3, dtype=np.float32), R)


def _matrix(quaternion: Float[Array, "4"]) -> Float[Array, "3 3"]:
    """Rotation matrix of a quaternion (w x y z), normalised first."""
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )


def _frame_with_third_axis(z: np.ndarray) -> np.ndarray:
    if abs(z[2]) > 1 - 1e-12:
        return np.diag([1.0, np.sign(z[2]), np.sign(z[2])])
    helper = np.eye(3)[int(np.argmin(np.abs(z)))]
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)
