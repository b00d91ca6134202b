"""Forward kinematics compiled from a `mujoco.MjModel`.

The bodies of a model are reduced to its links, one per joint, whose frames have the joint's axis as z. With X_k the constant pose of
link k in its parent at the joint's zero and M_k(q) the motion of the joint, the pose of a link is

    T_k = T_parent(k) X_k M_k(q_k),

and a body is a constant away from a link. All X_k M_k are formed at once, elementwise; then one `scan` over the depth of the tree
multiplies them up along every path from the root to a leaf (the shared part of several paths is computed several times, which costs
nothing, as the lanes would be idle). Unrolling the tree instead is faster by a little for a bare arm, but the compiler then fuses and
repeats the chain without end: 15 s to compile an arm with a hand, against a fraction of a second.

Conventions are MuJoCo's (`mj_kinematics`): generalised positions `qpos` in model order, angles relative to `qpos0`, body frames
in the world, quaternions w x y z.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.robots import couplings as _couplings
from diffopt.robots.couplings import Coupling

if TYPE_CHECKING:
    import mujoco

_JOINT_TYPES = ("free", "ball", "slide", "hinge")  # the order of mujoco.mjtJoint
_NQ = {"free": 7, "ball": 4, "slide": 1, "hinge": 1}
_NV = {"free": 6, "ball": 3, "slide": 1, "hinge": 1}

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Frames:
    """Poses of all bodies and, per degree of freedom, the axis that it moves along or about.

    Attributes:
      position: origins of the body frames in the world [m].
      rotation: rotation matrices R_world_body.
      axis: per degree of freedom, unit axis in the world.
      anchor: per degree of freedom, a point on that axis in the world [m] (not meaningful for translations).
      follow: derivative of the followers (see `couplings`) of an arm by its joints; None where it has none.
    """

    position: Float[Array, "nbody 3"]
    rotation: Float[Array, "nbody 3 3"]
    axis: Float[Array, "nv 3"]
    anchor: Float[Array, "nv 3"]
    follow: Float[Array, "F A"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Kinematics:
    """The kinematic tree of a robot; hashable, without arrays, so it is static under `jit`.

    Limits are -inf/inf where the model has none, and have one entry per element of qpos. `couplings` says which joints follow others;
    `fk` places the bodies at whatever positions it is given, `complete` puts the followers where they belong.
    """

    bodies: tuple[Body, ...] = field(metadata=dict(static=True))
    nq: int = field(metadata=dict(static=True))
    nv: int = field(metadata=dict(static=True))
    lower: Vector = field(metadata=dict(static=True))
    upper: Vector = field(metadata=dict(static=True))
    qpos0: Vector = field(metadata=dict(static=True))
    couplings: tuple[Coupling, ...] = field(default=(), metadata=dict(static=True))

    @staticmethod
    def from_model(model: mujoco.MjModel, *, tendons: bool = True) -> Kinematics:
        """Read the tree of a compiled MuJoCo model.

        Args:
          tendons: whether joints that share a motor through a fixed tendon are taken to move together.
        """
        from diffopt.robots import loops

        bodies = []
        lower, upper = np.full(model.nq, -np.inf), np.full(model.nq, np.inf)
        for b in range(model.nbody):
            joints = []
            for j in range(model.body_jntadr[b], model.body_jntadr[b] + model.body_jntnum[b]):
                q = int(model.jnt_qposadr[j])
                kind = _JOINT_TYPES[model.jnt_type[j]]
                if model.jnt_limited[j] and kind in ("hinge", "slide"):
                    lower[q], upper[q] = model.jnt_range[j]
                joints.append(
                    Joint(
                        name=model.joint(j).name,
                        type=kind,
                        qpos=q,
                        dof=int(model.jnt_dofadr[j]),
                        anchor=_floats(model.jnt_pos[j]),
                        axis=_floats(model.jnt_axis[j]),
                        reference=float(model.qpos0[q]),
                    )
                )
            bodies.append(
                Body(
                    name=model.body(b).name,
                    parent=int(model.body_parentid[b]),
                    position=_floats(model.body_pos[b]),
                    rotation=_rows(_matrix_of_quaternion(model.body_quat[b])),
                    joints=tuple(joints),
                )
            )
        tree = Kinematics(
            bodies=tuple(bodies),
            nq=int(model.nq),
            nv=int(model.nv),
            lower=_floats(lower),
            upper=_floats(upper),
            qpos0=_floats(model.qpos0),
        )
        read = _couplings.from_model(model, tendons=tendons)
        return replace(tree, couplings=_couplings.ordered((*read, *loops.from_model(model, tree, read))))

    @property
    def body_names(self) -> tuple[str, ...]:
        return tuple(body.name for body in self.bodies)

    @property
    def joints(self) -> tuple[Joint, ...]:
        return tuple(joint for body in self.bodies for joint in body.joints)

    @property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    def body(self, name: str) -> int:
        """Index of the body `name`; a KeyError lists the bodies there are."""
        return _index(name, self.body_names, "body")

    def joint(self, name: str) -> Joint:
        """The joint `name`; a KeyError lists the joints there are."""
        return self.joints[_index(name, self.joint_names, "joint")]

    def complete(self, qpos: Float[Array, "*batch nq"]) -> Float[Array, "*batch nq"]:
        """`qpos` with all followers put where their couplings want them; NumPy in, NumPy out."""
        return _couplings.complete(self.couplings, qpos)

    def ancestors(self, body: int) -> tuple[int, ...]:
        """Degrees of freedom that move `body`, in order."""
        dofs: list[int] = []
        while body > 0:
            for joint in self.bodies[body].joints:
                dofs += range(joint.dof, joint.dof + _NV[joint.type])
            body = self.bodies[body].parent
        return tuple(sorted(dofs))

    def fk(self, qpos: Float[Array, "nq"], only: Iterable[int] | None = None) -> Frames:
        """Poses of all bodies in the world at `qpos` ([m], [rad], unit quaternions), as `mj_kinematics`.

        With `only`, what is above these bodies is computed, and other bodies and degrees of freedom are left at the world's frame.
        """
        if qpos.shape != (self.nq,):
            raise ValueError(f"qpos has shape {qpos.shape}; this robot has nq={self.nq}: {', '.join(self.joint_names)}")
        return self._fk(qpos, None if only is None else tuple(only))

    @partial(jax.jit, static_argnums=(0, 2))  # traced once, wherever it is used
    def _fk(self, qpos: Float[Array, "nq"], only: tuple[int, ...] | None) -> Frames:
        tree = self._tree if only is None else _Tree.of(self.bodies, frozenset(only))
        if not tree.links:
            links_p, links_R = jnp.zeros((1, 3), qpos.dtype), jnp.eye(3, dtype=qpos.dtype)[None]
        else:
            links_p, links_R = _compose(tree, *_local_poses(tree, qpos))
        R, p = links_R[tree.body_link], links_p[tree.body_link]
        rotation = sum(R[:, :, k, None] * tree.body_rotation[:, None, k, :] for k in range(3))
        position = p + sum(R[:, :, k] * tree.body_position[:, None, k] for k in range(3))
        if self.nv == 0:
            empty = jnp.zeros((0, 3), qpos.dtype)
            return Frames(position=position, rotation=rotation, axis=empty, anchor=empty)
        columns = jnp.swapaxes(links_R, -1, -2).reshape(-1, 3)  # row 3 k + i: axis i of link k
        world = jnp.concatenate([columns, jnp.eye(3, dtype=qpos.dtype)])
        return Frames(position=position, rotation=rotation, axis=world[tree.dof_axis], anchor=links_p[tree.dof_link])

    @cached_property
    def _tree(self) -> _Tree:
        return _Tree.of(self.bodies, None)

    def chain(self, body: int) -> tuple[tuple[Link, ...], np.ndarray, np.ndarray]:
        """The links between the world and `body`, in order, and the constant pose (rotation, position [m]) of the body in the last."""
        tree = _Tree.of(self.bodies, frozenset({body}))
        links = tuple(Link(joint, tree.rotation[k], tree.position[k]) for k, joint in enumerate(tree.links, start=1))
        return links, tree.body_rotation[body], tree.body_position[body]

    def jacobian(self, frames: Frames, point: Float[Array, "3"], body: int) -> Float[Array, "6 nv"]:
        """Jacobian of a point fixed to `body` ([m] rows 0-2, [rad] rows 3-5) by the generalised velocities, as `mj_jac`."""
        rotational = np.zeros(self.nv, bool)
        for joint in self.joints:
            first = joint.dof + (3 if joint.type == "free" else 0)
            rotational[first : joint.dof + _NV[joint.type]] = joint.type != "slide"
        moves = np.zeros(self.nv, bool)
        moves[list(self.ancestors(body))] = True
        turn = frames.axis * (rotational & moves)[:, None]
        shift = frames.axis * (~rotational & moves)[:, None]
        linear = jnp.cross(turn, point - frames.anchor) + shift
        return jnp.concatenate([linear.T, turn.T])


class Link(NamedTuple):
    """A joint with the constant pose of its link in the one before: its axis is the third column of the rotation."""

    joint: Joint
    rotation: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class _Tree:
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
    def of(bodies: tuple[Body, ...], only: frozenset[int] | None) -> _Tree:
        """The tree of `bodies`, or of what is above those whose index is in `only`."""
        needed = set(range(len(bodies))) if only is None else set()
        for b in only or ():
            while b > 0:
                needed.add(b)
                b = bodies[b].parent
        links: list[Joint] = []
        parent, constants = [0], [(np.eye(3), np.zeros(3))]
        where = [(0, np.eye(3), np.zeros(3))] * len(bodies)  # per body: link, rotation, position
        nv = sum(_NV[joint.type] for body in bodies for joint in body.joints)
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
                for i in range(_NV[joint.type]):
                    axis = 2 if _NV[joint.type] == 1 else i % 3
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
        return _Tree(
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


def _local_poses(tree: _Tree, qpos: Float[Array, "nq"]):
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


def _compose(tree: _Tree, position: Float[Array, "K 3"], rotation: Float[Array, "K 3 3"]):
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


def _matrix_of_quaternion(quaternion) -> np.ndarray:
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    matrix = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    exact = np.round(matrix)  # axis-aligned mounts become exact, so their zeros drop out of the compiled chain
    return np.where(np.abs(matrix - exact) < 1e-12, exact, matrix)


def _frame_with_third_axis(z: np.ndarray) -> np.ndarray:
    if abs(z[2]) > 1 - 1e-12:
        return np.diag([1.0, np.sign(z[2]), np.sign(z[2])])
    helper = np.eye(3)[int(np.argmin(np.abs(z)))]
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _rows(matrix: np.ndarray) -> tuple[Vector, Vector, Vector]:
    a, b, c = (_floats(row) for row in matrix)
    return a, b, c


def _floats(values) -> Vector:
    return tuple(float(v) for v in values)


def _index(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise KeyError(f"no {what} {name!r}; there are: {', '.join(n or '(unnamed)' for n in names)}")
    return names.index(name)
