"""The C MuJoCo engine: one trial at a time on each thread; `mj_step` runs outside Python's lock, so that threads run in parallel.

Closing does not depend on the load, so it is simulated once and its final state copied to every branch. A branch ends at its
first breach, a trial as soon as it is decided.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.physics.course import Course, Watch, follow_in_c
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

if TYPE_CHECKING:
    import mujoco

    from diffopt.physics.protocol import Load, Protocol


@dataclass(frozen=True, kw_only=True)
class CEngine:
    """C MuJoCo on `threads` threads (None: one per core)."""

    threads: int | None = None

    @property
    def name(self) -> str:
        return "c"

    def run(
        self, protocol: Protocol, trials: Sequence[Trial], progress: Callable[[int], None] | None = None
    ) -> Outcome:
        for i, trial in enumerate(trials):
            refuse_mismatch(trial, i)
        local = threading.local()

        def work(trial: Trial) -> _Record:
            record = _run(protocol, trial, _data(local, trial.model))
            if progress is not None:
                progress(1)
            return record

        with ThreadPoolExecutor(self.threads or os.cpu_count() or 1) as pool:
            records = list(pool.map(work, trials))
        return Outcome(
            protocol=protocol.title,
            engine=self.name,
            loads=tuple(load.name for load in protocol.loads),
            success=np.array([r.success for r in records], dtype=bool),
            held=np.array([r.held for r in records], dtype=int).reshape(len(records), len(protocol.loads)),
            displacement=np.array([r.displacement for r in records], dtype=float),
            rotation=np.array([r.rotation for r in records], dtype=float),
            object_penetration=np.array([r.object_penetration for r in records], dtype=float),
            self_penetration=np.array([r.self_penetration for r in records], dtype=float),
            reason=tuple(r.reason for r in records),
        )

    def follow(self, courses: Sequence[Course], watch: Watch, progress: Callable[[int], None] | None = None) -> None:
        """Runs courses; see `Follower`."""
        follow_in_c(courses, watch, self.threads or os.cpu_count() or 1, progress)


@dataclass
class _Record:
    """What happened in one trial; fields as in `Outcome`."""

    held: list[int]
    success: bool = False
    displacement: float = 0.0
    rotation: float = 0.0
    object_penetration: float = 0.0
    self_penetration: float = 0.0
    reason: str = ""


def _data(local: threading.local, model: mujoco.MjModel) -> mujoco.MjData:
    """This thread's simulation state for `model`: the last one is kept, because neighbouring trials often share their model."""
    import mujoco

    if getattr(local, "model", None) is not model:
        local.model, local.data = model, mujoco.MjData(model)
    return local.data


def _run(protocol: Protocol, trial: Trial, data: mujoco.MjData) -> _Record:
    import mujoco

    model = trial.model
    record = _Record(held=[NOT_RUN] * len(protocol.loads))
    if not trial.planned:
        record.reason = "no plan"
        return record
    reset(trial, data)
    record.object_penetration, record.self_penetration = start_penetration(trial, data)
    record.reason = start_breach(protocol, record.object_penetration, record.self_penetration)
    if record.reason:
        return record

    body = model.body(trial.target).id
    start_position = _place(protocol, data, body)
    for phase in protocol.phases:
        start, end = getattr(trial, phase.start), getattr(trial, phase.end)
        steps = protocol.steps(phase.duration)
        for i in range(phase.waypoints):
            data.ctrl[:] = start + (end - start) * (i + 1) / phase.waypoints
            mujoco.mj_step(model, data, nstep=steps * (i + 1) // phase.waypoints - steps * i // phase.waypoints)

    everything = mujoco.mjtState.mjSTATE_INTEGRATION
    closed = np.empty(mujoco.mj_stateSize(model, everything))
    mujoco.mj_getState(model, data, closed, everything)
    spare = len(protocol.loads) - protocol.needed
    for d, load in enumerate(protocol.loads):
        mujoco.mj_setState(model, data, closed, everything)
        reason = _branch(protocol, load, trial, data, start_position, record)
        record.held[d] = LOST if reason else HELD
        record.reason = record.reason or reason
        if record.held.count(LOST) > spare or record.held.count(HELD) >= protocol.needed:
            break
    record.success = record.held.count(HELD) >= protocol.needed
    if record.success:
        record.reason = ""
    return record


def _place(protocol: Protocol, data: mujoco.MjData, body: int) -> np.ndarray:
    """The point of the object that has to stay [m, world]."""
    return (data.xipos if protocol.measure == "centre" else data.xpos)[body].copy()


def _branch(
    protocol: Protocol, load: Load, trial: Trial, data: mujoco.MjData, start: np.ndarray, record: _Record
) -> str:
    """Runs one load from the closed state; returns the threshold that broke, or nothing."""
    import mujoco

    model = trial.model
    body = model.body(trial.target).id
    every = max(1, protocol.steps(load.check))
    loaded, total = protocol.steps(load.duration), protocol.steps(load.duration + load.rest)
    table = model.body("table").mocapid[0] if load.lowering and protocol.table else -1
    height = data.mocap_pos[table, 2] if table >= 0 else 0.0
    done = 0
    while done < total:
        data.xfrc_applied[body, :3] = load.force if done < loaded else (0.0, 0.0, 0.0)
        stop = min(done + every, total if done >= loaded else loaded)
        if table >= 0:
            data.mocap_pos[table, 2] = height - load.lowering * min(1.0, 2.0 * stop / total)
        mujoco.mj_step(model, data, nstep=stop - done)
        done = stop
        mujoco.mj_kinematics(model, data)
        if protocol.measure == "centre":
            mujoco.mj_comPos(model, data)
        moved = float(np.linalg.norm(_place(protocol, data, body) - start))
        turned = float(rotation_angle(trial.object_rotation, data.xmat[body].reshape(3, 3)))
        record.displacement, record.rotation = max(record.displacement, moved), max(record.rotation, turned)
        if np.any(data.warning.number):  # MuJoCo resets a simulation that diverged: never read it as one that held
            return "unstable"
        if reason := first_breach(protocol, moved, turned):
            return reason
    return ""
