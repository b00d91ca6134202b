"""Forward kinematics compiled from a `mujoco.MjModel`.

The tree of MuJoCo bodies is unrolled in Python while tracing, with every constant of the model folded in. A rotation is carried
as its three columns, so that a hinge is two scaled additions of columns,

    R Rz(t) = [c x + s y, -s x + c y, z],        R = [x y z],  c = cos t,  s = sin t,

and a fixed transform is a linear combination with known coefficients. Everything is elementwise: under `vmap` it becomes a few
fused loops over the batch, with no small matrix products and no gathers.

Conventions are MuJoCo's (`mj_kinematics`): generalised positions `qpos` in model order, angles relative to `qpos0`, body frames
in the world, quaternions w x y z.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

if TYPE_CHECKING:
    import mujoco

_JOINT_TYPES = ("free", "ball", "slide", "hinge")  # the order of mujoco.mjtJoint
_NQ = {"free": 7, "ball": 4, "slide": 1, "hinge": 1}
_NV = {"free": 6, "ball": 3, "slide": 1, "hinge": 1}

Vector = tuple[float, ...]
Columns = tuple[Any, Any, Any]


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
    """

    position: Float[Array, "nbody 3"]
    rotation: Float[Array, "nbody 3 3"]
    axis: Float[Array, "nv 3"]
    anchor: Float[Array, "nv 3"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Kinematics:
    """The kinematic tree of a robot; hashable, without arrays, so it is static under `jit`.

    Limits are -inf/inf where the model has none, and have one entry per element of qpos.
    """

    bodies: tuple[Body, ...] = field(metadata=dict(static=True))
    nq: int = field(metadata=dict(static=True))
    nv: int = field(metadata=dict(static=True))
    lower: Vector = field(metadata=dict(static=True))
    upper: Vector = field(metadata=dict(static=True))
    qpos0: Vector = field(metadata=dict(static=True))

    @staticmethod
    def from_model(model: mujoco.MjModel) -> Kinematics:
        """Read the tree of a compiled MuJoCo model."""
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
        return Kinematics(
            bodies=tuple(bodies),
            nq=int(model.nq),
            nv=int(model.nv),
            lower=_floats(lower),
            upper=_floats(upper),
            qpos0=_floats(model.qpos0),
        )

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

    def ancestors(self, body: int) -> tuple[int, ...]:
        """Degrees of freedom that move `body`, in order."""
        dofs: list[int] = []
        while body > 0:
            for joint in self.bodies[body].joints:
                dofs += range(joint.dof, joint.dof + _NV[joint.type])
            body = self.bodies[body].parent
        return tuple(sorted(dofs))

    def fk(self, qpos: Float[Array, "nq"]) -> Frames:
        """Poses of all bodies in the world at `qpos` ([m], [rad], unit quaternions), as `mj_kinematics`."""
        if qpos.shape != (self.nq,):
            raise ValueError(f"qpos has shape {qpos.shape}; this robot has nq={self.nq}: {', '.join(self.joint_names)}")
        positions: list[Any] = []
        rotations: list[Columns] = []
        axes: list[Any] = [None] * self.nv
        anchors: list[Any] = [None] * self.nv
        for i, body in enumerate(self.bodies):
            if i == 0:
                eye = np.eye(3, dtype=np.float32)
                positions.append(jnp.zeros(3, qpos.dtype))
                rotations.append((jnp.asarray(eye[0]), jnp.asarray(eye[1]), jnp.asarray(eye[2])))
                continue
            parent = rotations[body.parent]
            x = positions[body.parent] + _combine(parent, body.position)
            R = _times(parent, body.rotation)
            for joint in body.joints:
                x, R = _move(joint, x, R, qpos, axes, anchors)
            positions.append(x)
            rotations.append(R)
        empty = jnp.zeros((0, 3), qpos.dtype)
        return Frames(
            position=jnp.stack(positions),
            rotation=jnp.stack([jnp.stack(R, axis=-1) for R in rotations]),
            axis=jnp.stack(axes) if axes else empty,
            anchor=jnp.stack(anchors) if anchors else empty,
        )

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


def _move(joint: Joint, x, R: Columns, qpos, axes: list, anchors: list) -> tuple[Any, Columns]:
    """Apply one joint to the pose (x, R) of its body; note axis and anchor of its degrees of freedom."""
    q, d = joint.qpos, joint.dof
    if joint.type == "free":
        x = qpos[q : q + 3]
        R = _columns_of_quaternion(qpos[q + 3 : q + 7])
        for k in range(3):
            axes[d + k], anchors[d + k] = jnp.zeros(3, qpos.dtype).at[k].set(1.0), x
            axes[d + 3 + k], anchors[d + 3 + k] = R[k], x
        return x, R
    anchor = x + _combine(R, joint.anchor) if any(joint.anchor) else x
    if joint.type == "ball":
        R = _product(R, _columns_of_quaternion(qpos[q : q + 4]))
        for k in range(3):
            axes[d + k], anchors[d + k] = R[k], anchor
    else:
        axis = _combine(R, joint.axis)
        axes[d], anchors[d] = axis, anchor
        value = qpos[q] - joint.reference
        if joint.type == "slide":
            return x + axis * value, R
        R = _hinge(R, joint.axis, value)
    return (anchor - _combine(R, joint.anchor) if any(joint.anchor) else anchor), R


def _hinge(R: Columns, axis: Vector, angle) -> Columns:
    """R times the rotation by `angle` about the constant unit `axis`."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    k = int(np.argmax(np.abs(axis)))
    if abs(axis[k]) > 1 - 1e-7:
        s = s * np.sign(axis[k]).astype(np.float32)
        u, v = R[(k + 1) % 3], R[(k + 2) % 3]
        turned = [None, None, None]
        turned[k], turned[(k + 1) % 3], turned[(k + 2) % 3] = R[k], c * u + s * v, c * v - s * u
        return turned[0], turned[1], turned[2]
    align = _frame_with_third_axis(np.asarray(axis))
    x, y, z = _times(R, _rows(align))
    return _times((c * x + s * y, c * y - s * x, z), _rows(align.T))


def _combine(R: Columns, v: Vector):
    """R v for a constant vector v; zero terms are left out."""
    terms = [R[k] if v[k] == 1.0 else R[k] * np.float32(v[k]) for k in range(3) if v[k] != 0.0]
    if not terms:
        return jnp.zeros_like(R[0])
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _times(R: Columns, rows: tuple[Vector, Vector, Vector]) -> Columns:
    """R M for a constant matrix M given by rows."""
    return tuple(_combine(R, tuple(rows[i][j] for i in range(3))) for j in range(3))  # type: ignore[return-value]


def _product(A: Columns, B: Columns) -> Columns:
    return tuple(A[0] * b[0] + A[1] * b[1] + A[2] * b[2] for b in B)  # type: ignore[return-value]


def _columns_of_quaternion(quaternion: Float[Array, "4"]) -> Columns:
    """Columns of the rotation matrix of a quaternion (w x y z), normalised first."""
    w, x, y, z = quaternion / jnp.linalg.norm(quaternion)
    return (
        jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]),
        jnp.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]),
        jnp.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]),
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
