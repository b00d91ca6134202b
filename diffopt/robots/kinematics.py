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
from diffopt.robots.tree import DOFS, Body, Joint, Tree, Vector, compose, local_poses

if TYPE_CHECKING:
    import mujoco

_JOINT_TYPES = ("free", "ball", "slide", "hinge")  # the order of mujoco.mjtJoint


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
                dofs += range(joint.dof, joint.dof + DOFS[joint.type])
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
        tree = self._tree if only is None else Tree.of(self.bodies, frozenset(only))
        if not tree.links:
            links_p, links_R = jnp.zeros((1, 3), qpos.dtype), jnp.eye(3, dtype=qpos.dtype)[None]
        else:
            links_p, links_R = compose(tree, *local_poses(tree, qpos))
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
    def _tree(self) -> Tree:
        return Tree.of(self.bodies, None)

    def chain(self, body: int) -> tuple[tuple[Link, ...], np.ndarray, np.ndarray]:
        """The links between the world and `body`, in order, and the constant pose (rotation, position [m]) of the body in the last."""
        tree = Tree.of(self.bodies, frozenset({body}))
        links = tuple(Link(joint, tree.rotation[k], tree.position[k]) for k, joint in enumerate(tree.links, start=1))
        return links, tree.body_rotation[body], tree.body_position[body]

    def jacobian(self, frames: Frames, point: Float[Array, "3"], body: int) -> Float[Array, "6 nv"]:
        """Jacobian of a point fixed to `body` ([m] rows 0-2, [rad] rows 3-5) by the generalised velocities, as `mj_jac`."""
        rotational = np.zeros(self.nv, bool)
        for joint in self.joints:
            first = joint.dof + (3 if joint.type == "free" else 0)
            rotational[first : joint.dof + DOFS[joint.type]] = joint.type != "slide"
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


def _rows(matrix: np.ndarray) -> tuple[Vector, Vector, Vector]:
    a, b, c = (_floats(row) for row in matrix)
    return a, b, c


def _floats(values) -> Vector:
    return tuple(float(v) for v in values)


def _index(name: str, names: tuple[str, ...], what: str) -> int:
    if name not in names:
        raise KeyError(f"no {what} {name!r}; there are: {', '.join(n or '(unnamed)' for n in names)}")
    return names.index(name)
