"""A motion that an engine carries out blindly, and what it writes down: servos follow targets, nothing is judged.

A `Course` is made on the host and is the same for every engine, and so is whatever reads the `Record`; an engine that runs courses
has a method `follow`. A record comes in pieces of successive checks, and the watcher of a trial says after each whether to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True, kw_only=True)
class Course:
    """One simulation, from rest.

    Attributes:
      spec, model: the scene, and the same compiled; an engine may translate `spec` where it cannot simulate all of it.
      qpos: where it starts.
      targets: of the servos, one row per check, held for `steps` simulation steps before it.
      bodies: ids of the bodies whose poses are recorded.
      presses: pairs of sets of geoms, each a mask; the normal forces of all contacts between the two sets are summed up.
    """

    spec: mujoco.MjSpec
    model: mujoco.MjModel
    qpos: Float[np.ndarray, "Q"]
    targets: Float[np.ndarray, "K U"]
    steps: int
    bodies: tuple[int, ...]
    presses: tuple[tuple[Bool[np.ndarray, "G"], Bool[np.ndarray, "G"]], ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened at successive checks.

    Attributes:
      qpos, qvel: state after the last step before the check.
      position, rotation: poses of the course's bodies in the world, where that step began [m].
      force: of the course's presses, in that step [N].
      stable: whether the simulation has been sound so far; nothing else means anything where it has not.
    """

    qpos: Float[np.ndarray, "K Q"]
    qvel: Float[np.ndarray, "K V"]
    position: Float[np.ndarray, "K B 3"]
    rotation: Float[np.ndarray, "K B 3 3"]
    force: Float[np.ndarray, "K P"]
    stable: Bool[np.ndarray, "K"]

    def __len__(self) -> int:
        return len(self.stable)

    def __getitem__(self, rows: slice) -> Record:
        return Record(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


Watch = Callable[[int, Record], bool]  # index of the course, its next checks -> whether to go on


class Follower(Interface):
    """An engine that runs courses."""

    @property
    def name(self) -> str: ...

    def follow(self, courses: Sequence[Course], watch: Watch, progress: Callable[[int], None] | None = None) -> None:
        """Runs every course until it ends or its watcher wants no more.

        Args:
          watch: called with successive pieces of the record; pieces of one course in order, those of others from any thread.
          progress: called with the number of courses just finished, from any thread.
        """
        ...


def at_start(course: Course) -> mujoco.MjData:
    """The state in which a course begins, its accelerations and contacts computed."""
    import mujoco

    data = mujoco.MjData(course.model)
    data.qpos[:] = course.qpos
    data.ctrl[:] = course.targets[0]
    mujoco.mj_forward(course.model, data)
    return data


def replay(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    record: Record,
    observe: Callable[[mujoco.MjModel, mujoco.MjData], None],
) -> None:
    """Puts every sound check of a record into `data`, state and places but no forces, and shows it to `observe`."""
    import mujoco

    for k in np.flatnonzero(record.stable):
        data.qpos[:], data.qvel[:] = record.qpos[k], record.qvel[k]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        observe(model, data)


def follow_in_c(
    courses: Sequence[Course], watch: Watch, threads: int, progress: Callable[[int], None] | None = None
) -> None:
    """Runs courses in C MuJoCo, one on each thread, in pieces of one check."""
    import mujoco

    def work(index: int) -> None:
        course = courses[index]
        data = at_start(course)
        for target in course.targets:
            data.ctrl[:] = target
            mujoco.mj_step(course.model, data, nstep=course.steps)
            if not watch(index, _look(course, data)):
                break
        if progress is not None:
            progress(1)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(len(courses))))


def _look(course: Course, data: mujoco.MjData) -> Record:
    bodies = list(course.bodies)
    return Record(
        qpos=data.qpos[None].copy(),
        qvel=data.qvel[None].copy(),
        position=data.xpos[None, bodies],
        rotation=data.xmat[None, bodies].reshape(1, -1, 3, 3),
        force=np.array([[_force(course.model, data, a, b) for a, b in course.presses]]),
        stable=np.array([not np.any(data.warning.number)]),  # MuJoCo resets a simulation that diverged
    )


def _force(model: mujoco.MjModel, data: mujoco.MjData, a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the normal forces of the contacts between two sets of geoms [N]."""
    import mujoco

    if not data.ncon:
        return 0.0
    geoms = data.contact.geom
    force, total = np.zeros(6), 0.0
    for contact in np.flatnonzero((a[geoms] & b[geoms[:, ::-1]]).any(1)):
        mujoco.mj_contactForce(model, data, int(contact), force)
        total += force[0]
    return total
