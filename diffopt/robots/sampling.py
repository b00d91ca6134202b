"""Which collision spheres of a robot can meet, and postures spread over its joint ranges: found once, by sampling, on the host.

Both are deterministic: the random numbers are a fixed Halton sequence.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from diffopt.robots.bodies import Spheres
from diffopt.robots.couplings import Coupling, closed, complete, roots
from diffopt.robots.primitives import Primitives

if TYPE_CHECKING:
    import mujoco

_SAMPLES = 4000
_NEAR = 0.03  # [m]
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """Pairs of bodies whose spheres have to be kept apart; hashable, static under `jit`.

    Attributes:
      pairs: indices of bodies in the kinematics, the lower first.
      names: their names.
      always: names of pairs left out because they touch in (nearly) every posture.
      moving: indices of the spheres that the arm or the hand moves (a sphere on the axis of the first joint does not move).
      moving_primitives: likewise, if the robot has them.
    """

    pairs: tuple[tuple[int, int], ...]
    names: tuple[tuple[str, str], ...]
    always: tuple[tuple[str, str], ...]
    moving: tuple[int, ...]
    moving_primitives: tuple[int, ...] = ()

    @cached_property
    def _hash(self) -> int:
        return hash((self.pairs, self.moving, self.moving_primitives))

    def __hash__(self) -> int:
        return self._hash


def contacts(
    model: mujoco.MjModel,
    spheres: Spheres,
    posture: np.ndarray,
    limits: tuple[np.ndarray, np.ndarray],
    arm: list[int],
    hand: list[int],
    couplings: tuple[Coupling, ...] = (),
    primitives: Primitives | None = None,
) -> tuple[Contacts, np.ndarray]:
    """Pairs of bodies that can collide, by sampling the joint ranges; and the postures (n, nq) sampled in which none does, with the
    hand at rest.

    Left out are: bodies with no joint between them, parent and child, pairs excluded in the file, pairs within the hand (below the
    last joint of the arm: what fingers do to each other is the plan's own affair), pairs that overlap in more than 95 % of the
    postures, and pairs that never come closer than 3 cm in any of them.

    Args:
      posture: positions of the joints that are not sampled.
      limits: lower and upper, of the arm's joints and then of the hand's; one turn is taken where they are infinite.
      arm, hand: indices in qpos of the joints that are sampled.
      couplings: where their followers are then.
      primitives: what overlaps exactly; without them spheres that do count.
    """
    rng_columns = arm + hand
    postures = np.tile(posture, (_SAMPLES, 1))
    low, high = (np.where(np.isfinite(v), v, turn) for v, turn in zip(limits, (-np.pi, np.pi), strict=True))
    postures[:, rng_columns] = low + (high - low) * halton(_SAMPLES, len(rng_columns))
    postures = complete(couplings, postures)
    body = np.array(spheres.body, int)
    placed = _place(model, spheres, postures)
    moving = tuple(int(i) for i in np.flatnonzero(np.ptp(placed, axis=0).max(axis=-1) > 1e-6)) if len(spheres) else ()

    used = [int(b) for b in np.unique(body)]
    radius = np.array(spheres.radius)
    arm_dofs = {j for j in range(model.njnt) if roots(couplings, int(model.jnt_qposadr[j])) & set(arm)}
    middle = {b: placed[:, body == b].mean(axis=1) for b in used}
    reach = {b: np.max(np.linalg.norm(placed[0, body == b] - middle[b][0], axis=-1) + radius[body == b]) for b in used}
    excluded = {frozenset(divmod(int(s), 65536)) for s in model.exclude_signature}
    pairs, always = [], []

    def apart(a: int, b: int, placed: np.ndarray) -> np.ndarray:
        """The least distance of their spheres, by posture."""
        one, two = np.flatnonzero(body == a), np.flatnonzero(body == b)
        between = np.linalg.norm(placed[:, one, None] - placed[:, None, two], axis=-1)
        return np.min(between - radius[one][:, None] - radius[two], axis=(1, 2))

    def meeting(a: int, b: int, nearest: np.ndarray, poses: tuple[np.ndarray, ...]) -> np.ndarray:
        """Whether they overlap, by posture."""
        overlap = nearest < 0
        if primitives is not None and overlap.any():
            own = [[i for i, body in enumerate(primitives.body) if body == one] for one in (a, b)]
            overlap[overlap] = primitives.overlapping(list(itertools.product(*own)), *(v[overlap] for v in poses))
        return overlap

    poses: tuple[np.ndarray, ...] = _poses(model, postures) if primitives is not None else ()
    clear = closed(couplings, postures)
    weld = model.body_weldid
    for a, b in itertools.combinations(used, 2):
        linked = (
            weld[a] == weld[b]
            or weld[model.body_parentid[weld[b]]] == weld[a]
            or weld[model.body_parentid[weld[a]]] == weld[b]
        )
        if linked or frozenset((a, b)) in excluded or not (_joints_between(model, a, b) & arm_dofs):
            continue
        if np.min(np.linalg.norm(middle[a] - middle[b], axis=-1)) - reach[a] - reach[b] > _NEAR:
            continue
        nearest = apart(a, b, placed)
        overlap = meeting(a, b, nearest, poses)
        if np.mean(overlap) > 0.95:
            always.append((a, b))
        elif nearest.min() < _NEAR:
            pairs.append((a, b))
            clear &= nearest > 0 if primitives is None else ~overlap

    def name(listed):
        return tuple((model.body(a).name, model.body(b).name) for a, b in listed)

    turned = primitives.moved(*poses) if primitives is not None else ()
    found = Contacts(
        pairs=tuple(pairs), names=name(pairs), always=name(always), moving=moving, moving_primitives=turned
    )
    free = postures[clear]
    free[:, hand] = posture[hand]
    free = complete(couplings, free)
    if hand:  # clear with the hand at rest, too
        placed = _place(model, spheres, free)
        poses = _poses(model, free) if primitives is not None else ()
        for a, b in pairs:
            nearest = apart(a, b, placed)
            keep = nearest > 0 if primitives is None else ~meeting(a, b, nearest, poses)
            free, placed, poses = free[keep], placed[keep], tuple(v[keep] for v in poses)
    return found, free


def _place(model: mujoco.MjModel, spheres: Spheres, postures: np.ndarray) -> np.ndarray:
    """Centres of all spheres (n, S, 3) in the world [m] at postures (n, nq)."""
    import mujoco

    data = mujoco.MjData(model)
    body, local = np.array(spheres.body, int), np.array(spheres.center, float).reshape(-1, 3)
    placed = np.empty((len(postures), len(spheres), 3))
    for k, q in enumerate(postures):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        placed[k] = np.einsum("sij,sj->si", data.xmat.reshape(-1, 3, 3)[body], local) + data.xpos[body]
    return placed


def _poses(model: mujoco.MjModel, postures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, B, 3) [m] and rotations (n, B, 3, 3) of all bodies in the world at postures (n, nq)."""
    import mujoco

    data = mujoco.MjData(model)
    position, rotation = np.empty((len(postures), model.nbody, 3)), np.empty((len(postures), model.nbody, 3, 3))
    for k, q in enumerate(postures):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        position[k], rotation[k] = data.xpos, data.xmat.reshape(-1, 3, 3)
    return position, rotation


def halton(n: int, dim: int) -> np.ndarray:
    """The first `n` points (after the origin) of a Halton sequence in [0, 1]^dim; beyond 12 dimensions, seeded random numbers."""
    points = np.random.default_rng(0).uniform(size=(n, dim))
    for d, base in enumerate(_PRIMES[: min(dim, 12)]):  # in high dimensions the sequence is worse than random numbers
        index, factor, value = np.arange(1, n + 1), 1.0, np.zeros(n)
        while np.any(index):
            factor /= base
            value += factor * (index % base)
            index //= base
        points[:, d] = value
    return points


def spread(points: np.ndarray, n: int, *, first: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Farthest-point sampling: `first`, then up to `n` - 1 of `points`, each the farthest from all before; any prefix is spread."""
    unit = points / scale
    chosen = [first]
    apart = np.linalg.norm(unit - first / scale, axis=-1)
    for _ in range(min(n - 1, len(points))):
        k = int(np.argmax(apart))
        chosen.append(points[k])
        apart = np.minimum(apart, np.linalg.norm(unit - unit[k], axis=-1))
    return np.array(chosen)


def _joints_between(model: mujoco.MjModel, a: int, b: int) -> set[int]:
    """Joints that move one of two bodies but not the other."""

    def above(body: int) -> set[int]:
        joints: set[int] = set()
        while body > 0:
            joints |= set(range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body]))
            body = int(model.body_parentid[body])
        return joints

    return above(a) ^ above(b)
