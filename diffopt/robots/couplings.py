"""Couplings: joints that follow others, as in hands with fewer motors than joints, and grippers whose fingers mirror each other.

A follower d of the joints i and j has the position

    q_d = r_d + sum_i w_i (q_i - r_i) + P(sum_j v_j (q_j - r_j)),          P(x) = c_0 + c_1 x + ... + c_4 x^4,

with r the model's reference positions (MuJoCo's `qpos0`). They are read from three places of a MuJoCo model:

- an equality between two joints, q_1 - r_1 = P(q_2 - r_2); a `mimic` of a URDF arrives as one of these;
- an equality between fixed tendons of lengths L = sum_i k_i q_i, L_1 - L_1(r) = P(L_2 - L_2(r)), solved for one joint of the first;
- a fixed tendon with a motor over joints that have none (underactuated fingers). Where these joints are is then decided by what they
  touch; in free motion against equal resistance they move as q_i - r_i = (k_i / k_0) (q_0 - r_0), and this is what is assumed.

Joints that follow because a chain is closed (`connect`, `weld`) are found by `loops`, and stand among the couplings. Spatial tendons are
not solved; `unread` names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import mujoco

Term = tuple[int, float, float]  # index in qpos, weight, reference


@dataclass(frozen=True)
class Coupling:
    """One follower: its name, index in qpos and reference; the terms and the polynomial at the top of the file; where it was read."""

    joint: str
    index: int
    reference: float
    linear: tuple[Term, ...]
    argument: tuple[Term, ...]
    polynomial: tuple[float, ...]
    origin: str

    @property
    def inputs(self) -> frozenset[int]:
        """Indices in qpos of what it follows."""
        return frozenset(i for i, _, _ in (*self.linear, *self.argument))

    @property
    def affine(self) -> bool:
        return not any(self.polynomial[2:])


def from_model(model: mujoco.MjModel, *, tendons: bool = True) -> tuple[Coupling, ...]:
    """The couplings of a compiled model, each after those that it follows.

    Args:
      tendons: also those assumed for joints that share a motor through a fixed tendon.
    Raises:
      ValueError: a joint is bound twice, or joints follow each other in a circle.
    """
    import mujoco

    found: dict[int, Coupling] = {}
    driven = {int(j) for j, kind in zip(model.actuator_trnid[:, 0], model.actuator_trntype, strict=True) if kind <= 1}

    def bind(
        candidates: list[int], coefficient: dict[int, float], argument: dict[int, float], poly, origin: str
    ) -> None:
        """Solve sum_i coefficient_i (q_i - r_i) = P(sum_j argument_j (q_j - r_j)) for the best of `candidates`."""
        free = [j for j in candidates if j not in found and coefficient.get(j) and j not in argument]
        if not free:
            names = ", ".join(repr(model.joint(j).name) for j in candidates)
            raise ValueError(
                f"{origin} binds {names}, which follow other joints already; take one of these couplings out"
            )
        chosen = min(free, key=lambda j: (j in driven, candidates.index(j)))
        scale = coefficient[chosen]
        found[chosen] = Coupling(
            joint=model.joint(chosen).name,
            index=int(model.jnt_qposadr[chosen]),
            reference=_reference(model, chosen),
            linear=_terms(model, {j: -k / scale for j, k in coefficient.items() if j != chosen}),
            argument=_terms(model, argument),
            polynomial=tuple(float(c) / scale for c in poly),
            origin=origin,
        )

    for e in range(model.neq):
        kind, one, two = model.eq_type[e], int(model.eq_obj1id[e]), int(model.eq_obj2id[e])
        origin, poly = title(model, e), np.array(model.eq_data[e, :5])
        if not model.eq_active0[e]:
            continue
        if kind == mujoco.mjtEq.mjEQ_JOINT:
            if two < 0:
                bind([one], {one: 1.0}, {}, poly, origin)
            elif (
                poly[1] and not poly[2:].any()
            ):  # affine: either joint may be the follower, the second one only if it has to
                bind([one, two], {one: 1.0, two: -poly[1]}, {}, [poly[0], 0, 0, 0, 0], origin)
            else:
                bind([one], {one: 1.0}, {two: 1.0}, poly, origin)
        elif kind == mujoco.mjtEq.mjEQ_TENDON and _fixed(model, one) and (two < 0 or _fixed(model, two)):
            first, second = _fixed(model, one), _fixed(model, two) if two >= 0 else {}
            bind(sorted(first, reverse=True), first, second, poly, origin)
    if tendons:
        for actuator in np.flatnonzero(model.actuator_trntype == mujoco.mjtTrn.mjTRN_TENDON):
            tendon = int(model.actuator_trnid[actuator, 0])
            weights = {j: k for j, k in _fixed(model, tendon).items() if k and j not in found and j not in driven}
            lead = min(weights, default=-1)
            for joint in sorted(set(weights) - {lead}):
                share = weights[joint] / weights[lead]
                origin = f"tendon {model.tendon(tendon).name!r} of actuator {model.actuator(actuator).name!r} (assumed)"
                bind([joint], {joint: 1.0, lead: -share}, {}, [0.0] * 5, origin)
    return ordered(tuple(found[j] for j in sorted(found)))


def unread(model: mujoco.MjModel) -> tuple[str, ...]:
    """The constraints of a model that are no couplings of joints, in words."""
    import mujoco

    tendon = mujoco.mjtEq.mjEQ_TENDON
    kinds = mujoco.mjtEq.mjEQ_JOINT, mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD
    read = [int(kind) for kind in kinds]
    out = []
    for e in range(model.neq):
        ends = [i for i in (int(model.eq_obj1id[e]), int(model.eq_obj2id[e])) if i >= 0]
        if not model.eq_active0[e]:
            out.append(f"{title(model, e)} is switched off in the file, and is not applied")
        elif int(model.eq_type[e]) not in read and not (
            model.eq_type[e] == tendon and all(_fixed(model, i) for i in ends)
        ):
            out.append(f"{title(model, e)} is not seen: spatial tendons are not solved")
    return tuple(out)


def complete(couplings: tuple[Coupling, ...], qpos: Any) -> Any:
    """Generalised positions (..., nq) with the followers where they belong; NumPy in, NumPy out (of loops in single precision)."""
    xp: Any = np if isinstance(qpos, np.ndarray) else jnp
    for level in _levels(couplings):
        if not isinstance(level[0], Coupling):
            qpos = _closed(level, qpos)
            continue
        x, P = _weighted(level, "argument", qpos), np.array([c.polynomial for c in level], qpos.dtype)
        value = P[:, 4]
        for k in (3, 2, 1, 0):
            value = value * x + P[:, k]
        start = np.array([c.reference for c in level], qpos.dtype)
        value = xp.broadcast_to(start + _weighted(level, "linear", qpos) + value, (*qpos.shape[:-1], len(level)))
        qpos = _put(qpos, [c.index for c in level], value)
    return qpos


def _closed(level: list[Any], qpos: Any) -> Any:
    """With the joints of closed chains where they close them."""
    for system in dict.fromkeys(c.system for c in level):
        traced: Any = jnp.vectorize(system.solve, signature="(n)->(k)")
        value = system.host(qpos)[0] if isinstance(qpos, np.ndarray) else traced(qpos)
        qpos = _put(qpos, list(system.passive), value)
    return qpos


def _put(qpos: Any, index: list[int], value: Any) -> Any:
    xp: Any = np if isinstance(qpos, np.ndarray) else jnp
    source = np.arange(qpos.shape[-1])
    source[index] = qpos.shape[-1] + np.arange(len(index))
    return xp.concatenate([qpos, value.astype(qpos.dtype)], axis=-1)[..., source]


def closed(couplings: tuple[Any, ...], postures: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """Whether all closed chains among the couplings can be closed at postures (..., nq)."""
    out = np.ones(postures.shape[:-1], bool)
    for system in dict.fromkeys(c.system for c in couplings if not isinstance(c, Coupling)):
        out &= system.host(postures)[1] < tolerance
    return out


def roots(couplings: tuple[Coupling, ...], index: int) -> frozenset[int]:
    """Indices in qpos of the independent joints that decide where the joint at `index` is: itself, if it follows none."""
    inputs = {c.index: c.inputs for c in couplings}
    if index not in inputs:
        return frozenset({index})
    return frozenset().union(*(roots(couplings, i) for i in inputs[index]))


def lineage(couplings: tuple[Coupling, ...], index: int) -> list[Coupling]:
    """The coupling of the follower at `index`, and those of the followers that it follows."""
    own = [c for c in couplings if c.index == index]
    return own + [above for c in own for i in c.inputs for above in lineage(couplings, i)]


def _weighted(level: list[Coupling], which: str, qpos: Any) -> Any:
    """Per coupling of a level, sum_i weight_i (q_i - reference_i) of its terms."""
    terms = [getattr(c, which) for c in level]
    out: Any = 0.0
    for k in range(max(map(len, terms))):
        padded = [t[k] if k < len(t) else (0, 0.0, 0.0) for t in terms]
        index, weight, reference = (np.array(v) for v in zip(*padded, strict=True))
        out = out + weight.astype(qpos.dtype) * (qpos[..., index] - reference.astype(qpos.dtype))
    return out


def _levels(couplings: tuple[Coupling, ...]) -> list[list[Coupling]]:
    """Runs of couplings that do not follow each other."""
    levels: list[list[Coupling]] = []
    for coupling in couplings:
        if not levels or type(levels[-1][0]) is not type(coupling) or coupling.inputs & {c.index for c in levels[-1]}:
            levels.append([])
        levels[-1].append(coupling)
    return levels


def ordered(found: tuple[Coupling, ...]) -> tuple[Coupling, ...]:
    """The same, each after those that it follows."""
    left, out = list(found), []
    while left:
        waiting = {c.index for c in left}
        ready = [c for c in left if not c.inputs & waiting]
        if not ready:
            names = ", ".join(f"{c.joint!r} ({c.origin})" for c in left)
            raise ValueError(f"joints follow each other in a circle: {names}; take one of these couplings out")
        out += ready
        left = [c for c in left if c not in ready]
    return tuple(out)


def _fixed(model: mujoco.MjModel, tendon: int) -> dict[int, float]:
    """Coefficients of a fixed tendon by joint; empty for a spatial one."""
    import mujoco

    if not 0 <= tendon < model.ntendon:
        return {}
    wraps = range(model.tendon_adr[tendon], model.tendon_adr[tendon] + model.tendon_num[tendon])
    if any(model.wrap_type[w] != mujoco.mjtWrap.mjWRAP_JOINT for w in wraps):
        return {}
    out: dict[int, float] = {}
    for w in wraps:
        out[int(model.wrap_objid[w])] = out.get(int(model.wrap_objid[w]), 0.0) + float(model.wrap_prm[w])
    return out


def _terms(model: mujoco.MjModel, weights: dict[int, float]) -> tuple[Term, ...]:
    return tuple((int(model.jnt_qposadr[j]), float(w), _reference(model, j)) for j, w in sorted(weights.items()) if w)


def _reference(model: mujoco.MjModel, joint: int) -> float:
    return float(model.qpos0[model.jnt_qposadr[joint]])


def title(model: mujoco.MjModel, equality: int) -> str:
    import mujoco

    kind = mujoco.mjtEq(int(model.eq_type[equality])).name.removeprefix("mjEQ_").lower()
    return f"equality {model.equality(equality).name or equality!r} ({kind})"
