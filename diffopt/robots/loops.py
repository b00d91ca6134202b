"""Closed chains: `connect` and `weld` equalities of a model, as in parallel linkages, solved for the joints that nothing drives.

A loop holds a point (and for a weld, a frame) of one body to one of another,

    p_1(q) - p_2(q) = 0  [m],            weld: also  log(R_2(q)' R_1(q)) = 0  [rad].

Of the joints in a system of loops as many are passive as the loops take freedom away: joints without a motor first, those at the ends of
the tree before those above them. They follow the others, as in `couplings`, to where the loops are closed: beginning at the
model's reference, where the file's loops are closed, the other joints are moved to where they are to be in `STEPS` equal steps, each
followed by a Gauss-Newton step of the passive ones, and `POLISH` more at the end. What is found is the assembly that the mechanism
reaches without being taken apart, as long as the steps are small against its size. Where the loops cannot be closed the residual
remains; `diffopt.constraints.LoopClosure` asks that it be zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import rotation_vector
from diffopt.robots.couplings import Coupling, Term, title

if TYPE_CHECKING:
    import mujoco

    from diffopt.robots.kinematics import Kinematics

STEPS, POLISH = 8, 4
LONGEST = (
    0.5  # of a step of the passive joints [rad, m], so that they stay near where they are when a loop cannot be closed
)
_RIDGE = 1e-6  # share of the mean square of the Jacobian's columns
_SPREAD = 0.3  # of the postures at which ranks are looked at [rad, m]


@dataclass(frozen=True)
class Loop:
    """One equality: the index of either body, and the frame fixed to it that meets the other's (position [m], rotation by rows).

    `turns` says whether it is a weld.
    """

    bodies: tuple[int, int]
    positions: tuple[tuple[float, ...], tuple[float, ...]]
    rotations: tuple[tuple[float, ...], tuple[float, ...]]
    turns: bool
    origin: str


@dataclass(frozen=True)
class System:
    """Loops that share joints, and which of these follow; hashable, static under `jit`.

    Attributes:
      kinematics: the tree, without couplings.
      passive, inputs: indices in qpos of the joints that follow, and of those that they follow.
    """

    kinematics: Kinematics
    loops: tuple[Loop, ...]
    passive: tuple[int, ...]
    inputs: tuple[int, ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.loops, self.passive, self.inputs))

    def __hash__(self) -> int:
        return self._hash

    def residual(self, qpos: Float[Array, "nq"]) -> Float[Array, "m"]:
        """How far the loops are open: per loop p_1 - p_2 in the world's frame [m], then for a weld the turn in the second frame [rad]."""
        return self._open(qpos)[0]

    def solve(self, qpos: Float[Array, "nq"]) -> Float[Array, "k"]:
        """Positions of the passive joints [rad or m]."""
        k, passive = self.kinematics, np.array(self.passive)
        start = jnp.asarray(k.qpos0, qpos.dtype)
        dofs = np.array([j.dof for i in self.passive for j in k.joints if j.qpos == i])
        moved = np.zeros(k.nq, bool)
        moved[list(self.inputs)] = True

        def step(found: Float[Array, "k"], share: Float[Array, ""]):
            at = jnp.where(moved, start + share * (qpos - start), qpos).at[passive].set(found)
            r, J = self._open(at)
            J = J[:, dofs]
            H = J.T @ J
            ridge = _RIDGE * jnp.trace(H) / len(dofs) + 1e-12
            way = jnp.linalg.solve(H + ridge * jnp.eye(len(dofs)), J.T @ r)
            return found - way * jnp.minimum(1.0, LONGEST / jnp.maximum(jnp.max(jnp.abs(way)), 1e-9)), None

        shares = np.concatenate([np.arange(1, STEPS + 1) / STEPS, np.ones(POLISH)]).astype(np.float32)
        return jax.lax.scan(step, start[passive], jnp.asarray(shares, qpos.dtype))[0]

    def host(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of postures (..., nq): positions of the passive joints, and the largest element of the residual there."""
        flat = np.asarray(qpos, np.float32).reshape(-1, qpos.shape[-1])
        found, left = _host(self, flat)
        return np.asarray(found, float).reshape(*qpos.shape[:-1], -1), np.asarray(left).reshape(qpos.shape[:-1])

    def _open(self, qpos: Float[Array, "nq"]) -> tuple[Float[Array, "m"], Float[Array, "m nv"]]:
        """The residual, and how it moves with the generalised velocities (of a weld's turn, where it is small)."""
        k, rows, slopes = self.kinematics, [], []
        frames = k.fk(qpos, only=tuple({b for loop in self.loops for b in loop.bodies}))
        for loop in self.loops:
            points, turns, moves = [], [], []
            for body, local, rotation in zip(loop.bodies, loop.positions, loop.rotations, strict=True):
                points.append(frames.position[body] + frames.rotation[body] @ jnp.asarray(local, qpos.dtype))
                turns.append(frames.rotation[body] @ jnp.asarray(np.reshape(rotation, (3, 3)), qpos.dtype))
                moves.append(k.jacobian(frames, points[-1], body))
            rows.append(points[0] - points[1])
            slopes.append(moves[0][:3] - moves[1][:3])
            if loop.turns:
                rows.append(rotation_vector(turns[1].T @ turns[0]))
                slopes.append(turns[1].T @ (moves[0][3:] - moves[1][3:]))
        return jnp.concatenate(rows), jnp.concatenate(slopes)


@partial(jax.jit, static_argnums=0)
def _host(system: System, qpos: Float[Array, "n nq"]) -> tuple[Float[Array, "n k"], Float[Array, "n"]]:
    def one(q: Float[Array, "nq"]):
        found = system.solve(q)
        return found, jnp.max(jnp.abs(system.residual(q.at[np.array(system.passive)].set(found))))

    return jax.vmap(one)(qpos)


@dataclass(frozen=True)
class Closed:
    """A joint that follows because a loop is closed; stands among the `Coupling`s of a robot."""

    joint: str
    index: int
    reference: float
    origin: str
    system: System

    linear: tuple[Term, ...] = ()
    argument: tuple[Term, ...] = ()
    affine = False

    @property
    def inputs(self) -> frozenset[int]:
        """Indices in qpos of what it follows."""
        return frozenset(self.system.inputs)


def from_model(model: mujoco.MjModel, kinematics: Kinematics, couplings: tuple[Coupling, ...]) -> tuple[Closed, ...]:
    """The joints that follow because a loop is closed.

    Args:
      kinematics: the tree, without couplings.
      couplings: joints that follow already, which are not solved for.
    Raises:
      ValueError: a loop has no joint that could give way, or only driven ones.
    """
    loops = [_loop(model, e) for e in range(model.neq) if _is_loop(model, e)]
    bound = {c.index for c in couplings}
    systems: list[tuple[list[Loop], set[int]]] = []
    for loop in loops:
        above = [_joints_above(model, body) for body in loop.bodies]
        joints = above[0] ^ above[1]
        shared = [s for s in systems if s[1] & joints]
        systems = [s for s in systems if s not in shared]
        systems.append(([*(m for s in shared for m in s[0]), loop], joints.union(*(s[1] for s in shared))))
    out: list[Closed] = []
    for members, joints in systems:
        passive = _passive(model, kinematics, members, sorted(joints), bound)
        inputs = tuple(int(model.jnt_qposadr[j]) for j in sorted(joints - set(passive)))
        index = tuple(int(model.jnt_qposadr[j]) for j in passive)
        system = System(kinematics=kinematics, loops=tuple(members), passive=index, inputs=inputs)
        origin = " and ".join(loop.origin for loop in members)
        out += [
            Closed(model.joint(j).name, i, float(model.qpos0[i]), origin, system)
            for j, i in zip(passive, index, strict=True)
        ]
    return tuple(out)


def _is_loop(model: mujoco.MjModel, e: int) -> bool:
    import mujoco

    kinds = int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD)
    return bool(model.eq_active0[e]) and int(model.eq_type[e]) in kinds


def _loop(model: mujoco.MjModel, e: int) -> Loop:
    """The frames that an equality holds together (MuJoCo's `eq_data`, by the kind of the equality and of what it names)."""
    import mujoco

    weld, data = int(model.eq_type[e]) == int(mujoco.mjtEq.mjEQ_WELD), model.eq_data[e]
    ends = int(model.eq_obj1id[e]), int(model.eq_obj2id[e])
    eye = np.array([1.0, 0, 0, 0])
    if int(model.eq_objtype[e]) == int(mujoco.mjtObj.mjOBJ_SITE):
        bodies = tuple(int(model.site_bodyid[s]) for s in ends)
        points, quaternions = [model.site_pos[s] for s in ends], [model.site_quat[s] for s in ends]
    elif weld:
        bodies, points, quaternions = ends, [data[3:6], data[:3]], [data[6:10], eye]
    else:
        bodies, points, quaternions = ends, [data[:3], data[3:6]], [eye, eye]
    matrices = np.zeros((2, 9))
    for i, q in enumerate(quaternions):
        mujoco.mju_quat2Mat(matrices[i], np.ascontiguousarray(q, float))
    one, two = (tuple(map(float, p)) for p in points)
    first, second = (tuple(map(float, m)) for m in matrices)
    return Loop((bodies[0], bodies[1]), (one, two), (first, second), weld, title(model, e))


def _joints_above(model: mujoco.MjModel, body: int) -> set[int]:
    joints: set[int] = set()
    while body > 0:
        joints |= set(range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]))
        body = int(model.body_parentid[body])
    return joints


def _passive(
    model: mujoco.MjModel, kinematics: Kinematics, loops: list[Loop], joints: list[int], bound: set[int]
) -> list[int]:
    """The joints to solve for: as many as the rank of the loops' Jacobian, without a motor, the last in the tree first."""
    import mujoco

    names = " and ".join(loop.origin for loop in loops)
    odd = [model.joint(j).name for j in joints if int(model.jnt_type[j]) < int(mujoco.mjtJoint.mjJNT_SLIDE)]
    if odd:
        raise ValueError(f"{names} closes a chain with ball or free joints ({', '.join(odd)}); write them as hinges")
    free = [j for j in joints if int(model.jnt_qposadr[j]) not in bound]
    driven = _driven(model)
    system = System(kinematics=kinematics, loops=tuple(loops), passive=(), inputs=())
    dofs = [int(model.jnt_dofadr[j]) for j in free]
    J = _near_closed(model, system, dofs)
    total = _rank(J)
    if not total:
        raise ValueError(f"{names} holds together what no joint moves; take it out of the file")
    passive: list[int] = []
    for j in sorted(free, reverse=True):
        wider = [*passive, j]
        if j not in driven and _rank(J[:, [free.index(i) for i in wider]]) == len(wider):
            passive = wider
    if len(passive) < total:
        stuck = ", ".join(repr(model.joint(j).name) for j in free if j in driven)
        raise ValueError(
            f"{names} takes {total} degrees of freedom away, but only {len(passive)} of its joints are without a motor; leave "
            f"the motors of some of {stuck} out of the file"
        )
    return sorted(passive)


def _near_closed(model: mujoco.MjModel, system: System, dofs: list[int]) -> np.ndarray:
    """The loops' Jacobian by some degrees of freedom at a posture near the reference where they are closed, in general position."""
    if not dofs:
        return np.zeros((0, 0))
    residual = jax.jit(system._open)
    columns = np.array([int(model.jnt_qposadr[model.dof_jntid[d]]) for d in dofs])
    qpos = np.array(model.qpos0)
    qpos[columns] += _SPREAD * np.random.default_rng(0).uniform(-1, 1, len(columns))
    for _ in range(20):
        r, J = (np.asarray(v, float) for v in residual(jnp.asarray(qpos, jnp.float32)))
        J = J[:, dofs]
        qpos[columns] -= J.T @ np.linalg.solve(J @ J.T + 1e-6 * np.trace(J @ J.T) * np.eye(len(r)), r)
    return np.asarray(residual(jnp.asarray(qpos, jnp.float32))[1], float)[:, dofs]


def _rank(J: np.ndarray) -> int:
    return 0 if not J.size else int(np.linalg.matrix_rank(J, tol=1e-3 * max(np.abs(J).max(initial=0.0), 1e-9)))


def _driven(model: mujoco.MjModel) -> set[int]:
    """Joints with a motor, by themselves or through a fixed tendon."""
    import mujoco

    out: set[int] = set()
    for kind, target in zip(model.actuator_trntype, model.actuator_trnid[:, 0], strict=True):
        if int(kind) in (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT)):
            out.add(int(target))
        elif int(kind) == int(mujoco.mjtTrn.mjTRN_TENDON):
            for w in range(model.tendon_adr[target], model.tendon_adr[target] + model.tendon_num[target]):
                if int(model.wrap_type[w]) == int(mujoco.mjtWrap.mjWRAP_JOINT):
                    out.add(int(model.wrap_objid[w]))
    return out


def systems(couplings: tuple[Any, ...]) -> tuple[System, ...]:
    """The systems of loops among the couplings of a robot, each once."""
    return tuple(dict.fromkeys(c.system for c in couplings if isinstance(c, Closed)))
