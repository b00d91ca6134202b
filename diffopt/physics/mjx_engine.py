"""The MJX engine: batches of trials on JAX's default device, by MuJoCo's JAX implementation or by MuJoCo Warp.

Trials whose models have the same structure (bodies, joints, geom types) share one compilation; the arrays in which their models
differ (sizes, positions, masses) are batched. The one compiled function advances a fixed number of simulations (`chunk`) by any
number of steps; closing and every load run through it, and trials that are decided leave the batch between loads.

The check at the reset is geometry, and is made by the same code as the C engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from diffopt.compiling import compiler_options
from diffopt.physics.engine import (
    HELD,
    LOST,
    NOT_RUN,
    Outcome,
    Trial,
    first_breach,
    refuse_mismatch,
    reset,
    rotation_angle,
    start_breach,
    start_penetration,
)
from diffopt.physics.mjx_follow import follow_in_mjx
from diffopt.physics.mjx_scene import structure_of
from diffopt.physics.mjx_step import step

if TYPE_CHECKING:
    import mujoco

    from diffopt.physics.course import Course, Watch
    from diffopt.physics.protocol import Load, Protocol

_STATE = ("qpos", "qvel", "qacc_warmstart", "ctrl", "mocap_pos", "mocap_quat", "xfrc_applied")
State = dict[str, np.ndarray]  # those fields of MjData, for one simulation or stacked


@dataclass(frozen=True, kw_only=True)
class MJXEngine:
    """MJX.

    Attributes:
      impl: "jax", or "warp" (NVIDIA; needs the package warp-lang).
      chunk: most simulations in one batch; None: 4096 on an accelerator, 16 on a CPU.
    """

    impl: str = "jax"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.impl not in ("jax", "warp"):
            raise ValueError(f"no MJX implementation '{self.impl}'; there are: jax, warp")

    @property
    def name(self) -> str:
        return "mjx" if self.impl == "jax" else "mjx-warp"

    def run(
        self, protocol: Protocol, trials: Sequence[Trial], progress: Callable[[int], None] | None = None
    ) -> Outcome:
        n, loads = len(trials), protocol.loads
        held = np.full((n, len(loads)), NOT_RUN)
        reason = [""] * n
        moved, turned, object_depth, self_depth = np.zeros((4, n))
        starts: dict[int, State] = {}
        for i, trial in enumerate(trials):
            refuse_mismatch(trial, i)
            if not trial.planned:
                reason[i] = "no plan"
                continue
            starts[i], object_depth[i], self_depth[i] = _start(trial)
            reason[i] = start_breach(protocol, object_depth[i], self_depth[i])
        if progress is not None:
            progress(sum(1 for r in reason if r))

        limit = self.chunk or (16 if jax.default_backend() == "cpu" else 4096)
        groups: dict[tuple, list[int]] = {}
        for i in starts:
            if not reason[i]:
                groups.setdefault(structure_of(trials[i].model), []).append(i)
        for structure, members in groups.items():
            models = _Models(
                self.impl, structure, protocol, [trials[i].model for i in members], min(limit, len(members))
            )
            closed: dict[int, State] = {}
            for part in models.parts(members):
                states = _close(models, protocol, [trials[i] for i in part], [starts[i] for i in part])
                closed |= dict(zip(part, states, strict=True))
            spare = len(loads) - protocol.needed
            for d, load in enumerate(loads):
                lost, kept = (held == LOST).sum(1), (held == HELD).sum(1)
                undecided = [i for i in members if lost[i] <= spare and kept[i] < protocol.needed]
                for part in models.parts(undecided):
                    found = _branch(models, protocol, load, [trials[i] for i in part], [closed[i] for i in part])
                    for i, (m, t, why) in zip(part, found, strict=True):
                        held[i, d] = LOST if why else HELD
                        moved[i], turned[i], reason[i] = max(moved[i], m), max(turned[i], t), reason[i] or why
            if progress is not None:
                progress(len(members))
        success = (held == HELD).sum(1) >= protocol.needed
        return Outcome(
            protocol=protocol.title,
            engine=self.name,
            loads=tuple(load.name for load in loads),
            success=success,
            held=held,
            displacement=moved,
            rotation=turned,
            object_penetration=object_depth,
            self_penetration=self_depth,
            reason=tuple("" if s else r for s, r in zip(success, reason, strict=True)),
        )

    def follow(self, courses: Sequence[Course], watch: Watch, progress: Callable[[int], None] | None = None) -> None:
        """Runs courses; see `Follower`. On a CPU one at a time unless `chunk` says otherwise: there a batch is no faster."""
        if self.impl != "jax":
            raise ValueError("engine mjx-warp does not report contact forces between geoms; run engine=mjx or engine=c")
        width = self.chunk or (1 if jax.default_backend() == "cpu" else 256)
        follow_in_mjx(courses, watch, width, progress)


def _start(trial: Trial) -> tuple[State, float, float]:
    """State at the reset, and the penetrations there [m]."""
    import mujoco

    data = mujoco.MjData(trial.model)
    reset(trial, data)
    return {k: np.array(getattr(data, k)) for k in _STATE}, *start_penetration(trial, data)


class _Models:
    """Models of one structure: which arrays they share, which are stacked, and the function that advances `width` of them."""

    def __init__(
        self, impl: str, structure: tuple, protocol: Protocol, models: Sequence[mujoco.MjModel], width: int
    ) -> None:
        from mujoco import mjx

        self.width = width
        unique = {id(m): m for m in models}
        self._row = {key: k for k, key in enumerate(unique)}
        put = [mjx.put_model(m, impl=impl) for m in unique.values()]
        self._model = put[0]
        columns = list(zip(*(jax.tree.leaves(m) for m in put), strict=True))
        host = [[np.asarray(leaf) for leaf in column] for column in columns]
        self._batched = tuple(i for i, c in enumerate(host) if any(not np.array_equal(c[0], x) for x in c[1:]))
        self._stacked = {i: np.stack(host[i]) for i in self._batched}
        self._shared = [None if i in self._stacked else c[0] for i, c in enumerate(columns)]
        key = (impl, structure, protocol.options, self._batched, width)
        self._advance = _compiled(key, _Once((self._model, models[0])))

    def parts(self, members: Sequence[int]) -> Iterator[list[int]]:
        """The members in batches of at most `width`."""
        for start in range(0, len(members), self.width):
            yield list(members[start : start + self.width])

    def advance(self, models: Sequence[mujoco.MjModel], state: State, steps: int) -> State:
        """Advances stacked simulations, at most `width`, by `steps`. The batch is filled up with copies of the first."""
        fill = [*range(len(models)), *[0] * (self.width - len(models))]
        rows = [self._row[id(models[j])] for j in fill]
        stacked = [self._stacked[i][rows] for i in self._batched]
        out = self._advance(self._shared, stacked, {k: v[fill] for k, v in state.items()}, np.int32(steps))
        return {k: np.array(v)[: len(models)] for k, v in out.items()}


@dataclass(frozen=True, eq=False)
class _Once:
    """An argument that a cache does not compare: the key beside it says everything."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=16)
def _compiled(key: tuple, example: _Once) -> Callable:
    """The jitted function of one structure: (shared leaves, stacked leaves, states, number of steps) -> states."""
    from mujoco import mjx

    impl, _, _, batched, width = key
    model, host = example.value
    treedef = jax.tree.structure(model)
    sizes = {} if impl == "jax" else {"naconmax": 64 * width, "njmax": 512}
    template = mjx.make_data(host, impl=impl, **sizes)
    mocap = np.flatnonzero(host.body_mocapid >= 0)

    def simulate(leaves: list, own: list, state: dict, steps: Any) -> dict:
        merged = list(leaves)
        for i, leaf in zip(batched, own, strict=True):
            merged[i] = leaf
        mine = jax.tree.unflatten(treedef, merged)
        if (
            impl == "jax"
        ):  # there (3.17.0) the children of a mocap body follow its place in the model, not the one in the data
            position, quaternion = (state[k][host.body_mocapid[mocap]] for k in ("mocap_pos", "mocap_quat"))
            mine = mine.replace(
                body_pos=mine.body_pos.at[mocap].set(position), body_quat=mine.body_quat.at[mocap].set(quaternion)
            )
        data = template.replace(**state)
        data = jax.lax.fori_loop(0, steps, lambda _, d: step(mine, d), data)
        return {k: getattr(data, k) for k in _STATE}

    return jax.jit(jax.vmap(simulate, in_axes=(None, 0, 0, None)), compiler_options=compiler_options(least=False))


def _stack(states: Sequence[State]) -> State:
    return {k: np.stack([s[k] for s in states]).astype(np.float32) for k in _STATE}


def _close(models: _Models, protocol: Protocol, trials: Sequence[Trial], starts: Sequence[State]) -> list[State]:
    """The closing phases; returns the state of each trial after them."""
    state, own = _stack(starts), [t.model for t in trials]
    for phase in protocol.phases:
        start = np.stack([getattr(t, phase.start) for t in trials])
        end = np.stack([getattr(t, phase.end) for t in trials])
        steps = protocol.steps(phase.duration)
        for i in range(phase.waypoints):
            state["ctrl"] = (start + (end - start) * (i + 1) / phase.waypoints).astype(np.float32)
            state = models.advance(own, state, steps * (i + 1) // phase.waypoints - steps * i // phase.waypoints)
    return [{k: v[j] for k, v in state.items()} for j in range(len(trials))]


def _branch(
    models: _Models, protocol: Protocol, load: Load, trials: Sequence[Trial], closed: Sequence[State]
) -> list[tuple[float, float, str]]:
    """One load from the closed states; per trial largest displacement [m] and rotation [rad], and the threshold that broke."""
    state, own = _stack(closed), [t.model for t in trials]
    body = own[0].body(trials[0].target)
    free = own[0].jnt_qposadr[body.jntadr[0]]
    centres = np.stack([m.body_ipos[body.id] if protocol.measure == "centre" else np.zeros(3) for m in own])
    start = np.stack([t.object_position + t.object_rotation @ c for t, c in zip(trials, centres, strict=True)])
    upright = np.stack([t.object_rotation for t in trials])
    table = own[0].body("table").mocapid[0] if load.lowering and protocol.table else -1
    height = state["mocap_pos"][:, table, 2].copy() if table >= 0 else None
    every = max(1, protocol.steps(load.check))
    loaded, total = protocol.steps(load.duration), protocol.steps(load.duration + load.rest)
    found = [(0.0, 0.0, "")] * len(trials)
    done = 0
    while done < total and not all(why for _, _, why in found):
        state["xfrc_applied"][:, body.id, :3] = load.force if done < loaded else 0.0
        stop = min(done + every, total if done >= loaded else loaded)
        if height is not None:
            state["mocap_pos"][:, table, 2] = height - load.lowering * min(1.0, 2.0 * stop / total)
        state = models.advance(own, state, stop - done)
        done = stop
        rotation = _matrices(state["qpos"][:, free + 3 : free + 7].astype(float))
        place = state["qpos"][:, free : free + 3] + np.einsum("nij,nj->ni", rotation, centres)
        moved, turned = np.linalg.norm(place - start, axis=1), rotation_angle(upright, rotation)
        for j, (m, t, why) in enumerate(found):
            if not why:
                found[j] = (max(m, moved[j]), max(t, turned[j]), first_breach(protocol, moved[j], turned[j]))
    return found


def _matrices(q: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of quaternions w x y z (N, 4)."""
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
