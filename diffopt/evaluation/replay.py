"""Episodes played again: the same commands to an arm from the same start, in C MuJoCo or in MJX, and how far the two drift apart.

What is compared is physics alone: an engine is given the targets of all servos at the ends of the control periods, between which they go
linearly as in `diffopt.tasks.workcell`, and returns where everything is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import mujoco
import numpy as np
from jaxtyping import Float

from diffopt.compiling import compiler_options
from diffopt.geometry import Pose
from diffopt.physics.mjx_scene import unsupported
from diffopt.physics.mjx_step import step as stepped
from diffopt.tasks.workcell import STEPS, Episode, Workcell

HOLD = 5  # periods
_STATE = ("qpos", "qvel", "ctrl", "qacc_warmstart", "mocap_pos", "mocap_quat")  # fields of MjData


@dataclass(kw_only=True)
class Recording:
    """Where an episode began, and what its servos were told; its `look` is given to `arm_loop.run`.

    Attributes:
      base: T_world_base of the arm. start: the fields `_STATE` of MjData at the start.
      ctrl: targets at the end of every period.
    """

    base: Pose | None = None
    start: dict[str, np.ndarray] = field(default_factory=dict)
    ctrl: list[Float[np.ndarray, "nu"]] = field(default_factory=list)

    def look(self, episode: Episode) -> None:
        """Called at the start of an episode and after each of its periods."""
        if self.start:
            self.ctrl.append(episode.data.ctrl.copy())
        else:
            assert episode.cell.robot is not None
            self.base = episode.cell.robot.base
            self.start = {name: np.array(getattr(episode.data, name)) for name in _STATE}

    def place(self, cell: Workcell) -> None:
        """Puts the arm of a workcell to where it stood."""
        assert self.base is not None
        cell.move_base(self.base)

    def held(self) -> list[np.ndarray]:
        """The targets, the last ones held for `HOLD` periods more, so that things come to rest."""
        return [*self.ctrl, *self.ctrl[-1:] * HOLD]


@dataclass(frozen=True, kw_only=True)
class Course:
    """Generalised positions and velocities at the ends of P periods."""

    qpos: Float[np.ndarray, "P nq"]
    qvel: Float[np.ndarray, "P nv"]


def in_c(cell: Workcell, recording: Recording) -> Course:
    """The episode again, by C MuJoCo."""
    recording.place(cell)
    data = mujoco.MjData(cell.model)
    for name, value in recording.start.items():
        getattr(data, name)[:] = value
    rows, last = [], recording.start["ctrl"]
    for ctrl in recording.held():
        for k in range(1, STEPS + 1):
            data.ctrl[:] = last + k / STEPS * (ctrl - last)
            mujoco.mj_step(cell.model, data)
        rows.append((data.qpos.copy(), data.qvel.copy()))
        last = ctrl
    return _course(rows)


def in_mjx(cell: Workcell, recordings: Sequence[Recording]) -> list[Course]:
    """The episodes again, by MJX (JAX implementation, single precision), one after the other; compiled once.

    Raises:
      ValueError: geoms may meet that MJX cannot collide.
    """
    from mujoco import mjx

    bad = unsupported(cell.model)
    if bad:
        raise ValueError(f"MJX cannot collide {len(bad)} pairs of geoms that may meet in {cell.task.name!r}")
    step, out = _period(cell), []
    for recording in recordings:
        recording.place(cell)
        model = mjx.put_model(cell.model)
        state = {name: np.asarray(value, np.float32) for name, value in recording.start.items()}
        rows = []
        for ctrl in recording.held():
            state = step(model, state, np.asarray(ctrl, np.float32))
            rows.append((np.asarray(state["qpos"], float), np.asarray(state["qvel"], float)))
        out.append(_course(rows))
    return out


def _course(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> Course:
    return Course(qpos=np.array([q for q, _ in rows]), qvel=np.array([v for _, v in rows]))


def _period(cell: Workcell) -> Callable[[Any, dict, np.ndarray], dict]:
    """One control period in MJX, jitted: (model, state, targets at its end) -> state."""
    from mujoco import mjx

    host, template = cell.model, mjx.make_data(cell.model)
    mocap = np.flatnonzero(host.body_mocapid >= 0)

    def period(model: Any, state: dict, ctrl: jax.Array) -> dict:
        # in 3.17.0 the children of a mocap body follow its place in the model, not the one in the data
        position, quaternion = (state[name][host.body_mocapid[mocap]] for name in ("mocap_pos", "mocap_quat"))
        placed = model.replace(
            body_pos=model.body_pos.at[mocap].set(position), body_quat=model.body_quat.at[mocap].set(quaternion)
        )
        last = state["ctrl"]

        def one(k, data):
            return stepped(placed, data.replace(ctrl=last + (k + 1) / STEPS * (ctrl - last)))

        data = jax.lax.fori_loop(0, STEPS, one, template.replace(**state))
        return {name: getattr(data, name) for name in _STATE}

    return jax.jit(period, compiler_options=compiler_options(least=False))


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far two engines are apart in one episode.

    Attributes:
      joints: largest difference of an arm's joint [rad].
      carried: largest distance between the places of the object [m]; before: that until it was first lifted by 1 cm.
      solved: whether the task was solved at the end of some period, in the first and in the second.
    """

    joints: float
    carried: float
    before: float
    solved: tuple[bool, bool]


def drift(cell: Workcell, start: dict[str, np.ndarray], free: str, first: Course, second: Course) -> Drift:
    """Compares two courses from the state `start`; `free` is the joint of the object."""
    assert cell.arm is not None
    at = int(cell.model.joint(free).qposadr[0])
    gap = np.linalg.norm(first.qpos[:, at : at + 3] - second.qpos[:, at : at + 3], axis=1)
    lifted = np.flatnonzero(first.qpos[:, at + 2] > start["qpos"][at + 2] + 0.01)
    until = int(lifted[0]) if len(lifted) else len(gap)
    joints = cell.arm.joints
    return Drift(
        joints=float(np.abs(first.qpos[:, joints] - second.qpos[:, joints]).max()),
        carried=float(gap.max()),
        before=float(gap[:until].max(initial=0.0)),
        solved=(_solved(cell, start, first), _solved(cell, start, second)),
    )


def _solved(cell: Workcell, start: dict[str, np.ndarray], course: Course) -> bool:
    data = mujoco.MjData(cell.model)
    data.mocap_pos[:], data.mocap_quat[:] = start["mocap_pos"], start["mocap_quat"]
    for data.qpos[:], data.qvel[:] in zip(course.qpos, course.qvel, strict=True):
        mujoco.mj_forward(cell.model, data)
        if cell.task.success(data):
            return True
    return False
