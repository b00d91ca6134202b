"""What an engine is: it runs a protocol on a batch of trials and says what happened. Judging is shared and is not the engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import mujoco

    from diffopt.physics.course import Course, Watch
    from diffopt.physics.protocol import Protocol

HELD, LOST, NOT_RUN = 1, 0, -1
REASONS = ("", "no plan", "object penetration", "self penetration", "moved", "turned", "unstable")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One grasp to be tested.

    Attributes:
      model: scene, compiled: the hand, whose root is a mocap body, and the object, a free body. Trials may share a model.
      hand, target: names of those two bodies.
      wrist_position, wrist_rotation: pose of the hand's root in the world [m].
      object_position, object_rotation: pose of the object in the world at the reset [m].
      pregrasp, grasp, squeeze: servo targets, one per actuator [rad]. The hand is reset at `pregrasp`.
    """

    model: mujoco.MjModel
    hand: str = "palm"
    target: str = "object"
    wrist_position: Float[np.ndarray, "3"]
    wrist_rotation: Float[np.ndarray, "3 3"]
    object_position: Float[np.ndarray, "3"]
    object_rotation: Float[np.ndarray, "3 3"]
    pregrasp: Float[np.ndarray, "U"]
    grasp: Float[np.ndarray, "U"]
    squeeze: Float[np.ndarray, "U"]

    @property
    def planned(self) -> bool:
        """Whether there is a grasp at all: a sampler that found none says so with a NaN."""
        numbers = (self.wrist_position, self.wrist_rotation, self.pregrasp, self.grasp, self.squeeze)
        return all(bool(np.isfinite(n).all()) for n in numbers)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened in N trials with D loads each.

    Attributes:
      protocol, engine: titles.
      loads: names of the loads.
      success: whether the trial succeeded.
      held: per load `HELD` (1), `LOST` (0) or `NOT_RUN` (-1: the trial was decided before).
      displacement: largest displacement of the object seen at any check of any load that was run [m].
      rotation: the same for its rotation [rad].
      object_penetration, self_penetration: deepest at the reset [m]; 0 without contact.
      reason: of `REASONS`; empty for a success. For a failure, the first threshold that was broken.
    """

    protocol: str
    engine: str
    loads: tuple[str, ...]
    success: Bool[np.ndarray, "N"]
    held: Int[np.ndarray, "N D"]
    displacement: Float[np.ndarray, "N"]
    rotation: Float[np.ndarray, "N"]
    object_penetration: Float[np.ndarray, "N"]
    self_penetration: Float[np.ndarray, "N"]
    reason: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.success)


class Engine(Interface):
    """Runs protocols. `name` goes into results."""

    @property
    def name(self) -> str: ...

    def run(
        self, protocol: Protocol, trials: Sequence[Trial], progress: Callable[[int], None] | None = None
    ) -> Outcome:
        """Runs every trial; `progress` is called with the number of trials just finished."""
        ...

    def follow(self, courses: Sequence[Course], watch: Watch, progress: Callable[[int], None] | None = None) -> None:
        """Runs motions of servos and reports their records; see `course.Follower`."""
        ...


def load_engine(name: str = "auto", **options: object) -> Engine:
    """An engine by name.

    Args:
      name: "c" (C MuJoCo on threads), "mjx" (MJX, JAX implementation), "mjx-warp" (MJX over Warp, for NVIDIA), or "auto": MJX
        where JAX has an accelerator, C otherwise.
      options: fields of the engine (`threads` of C; `chunk` of MJX).
    """
    names = ("auto", "c", "mjx", "mjx-warp")
    if name not in names:
        raise ValueError(f"no engine '{name}'; there are: {', '.join(names)}")
    if name == "auto":
        import jax

        name = "c" if jax.default_backend() == "cpu" else "mjx"
    if name == "c":
        from diffopt.physics.c_engine import CEngine

        return CEngine(**options)  # type: ignore[arg-type]
    from diffopt.physics.mjx_engine import MJXEngine

    return MJXEngine(impl="warp" if name == "mjx-warp" else "jax", **options)  # type: ignore[arg-type]


def rotation_angle(R_a: Float[np.ndarray, "*b 3 3"], R_b: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b"]:
    """Angle of the rotation from one frame to the other [rad]."""
    relative = np.swapaxes(R_a, -1, -2) @ R_b
    sine = 0.5 * np.linalg.norm(
        np.stack(
            [
                relative[..., 2, 1] - relative[..., 1, 2],
                relative[..., 0, 2] - relative[..., 2, 0],
                relative[..., 1, 0] - relative[..., 0, 1],
            ],
            axis=-1,
        ),
        axis=-1,
    )
    return np.arctan2(sine, 0.5 * (np.trace(relative, axis1=-2, axis2=-1) - 1.0))


def matrix_to_quaternion(R: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion w x y z of a rotation matrix."""
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(R, dtype=float).ravel())
    return quaternion


def first_breach(protocol: Protocol, moved: float, turned: float) -> str:
    """Which threshold a displacement [m] and a rotation [rad] break; empty when none. A NaN counts as unstable."""
    if not (np.isfinite(moved) and np.isfinite(turned)):
        return "unstable"
    if moved >= protocol.displacement:
        return "moved"
    return "turned" if turned >= protocol.rotation else ""


def start_breach(protocol: Protocol, object_penetration: float, self_penetration: float) -> str:
    """Whether the reset is refused for penetration [m]; empty when it is not."""
    if object_penetration > protocol.penetration:
        return "object penetration"
    return "self penetration" if self_penetration > protocol.penetration else ""


def refuse_mismatch(trial: Trial, index: int) -> None:
    """Raises ValueError when a trial does not fit its model, naming both sides."""
    model = trial.model
    for field in ("pregrasp", "grasp", "squeeze"):
        shape = np.shape(getattr(trial, field))
        if shape != (model.nu,):
            raise ValueError(f"trial {index}: {field} has shape {shape}, but the model has {model.nu} actuators")
    names = [model.body(i).name for i in range(model.nbody)]
    for name in (trial.hand, trial.target):
        if name not in names:
            raise ValueError(f"trial {index}: no body '{name}' in the model; it has: {', '.join(names)}")
    if model.body(trial.hand).mocapid[0] < 0:
        raise ValueError(f"trial {index}: body '{trial.hand}' is not a mocap body; build the scene with FloatingHand")


def reset(trial: Trial, data: mujoco.MjData, posture: Float[np.ndarray, "U"] | None = None) -> None:
    """Hand at the wrist pose and a posture (None: the pregrasp), object in its place, all at rest; contacts computed."""
    import mujoco

    model = trial.model
    mujoco.mj_resetData(model, data)
    mocap = model.body(trial.hand).mocapid[0]
    data.mocap_pos[mocap] = trial.wrist_position
    data.mocap_quat[mocap] = matrix_to_quaternion(trial.wrist_rotation)
    posture = trial.pregrasp if posture is None else posture
    data.qpos[model.jnt_qposadr[model.actuator_trnid[:, 0]]] = posture
    data.ctrl[:] = posture
    free = model.jnt_qposadr[model.body(trial.target).jntadr[0]]
    data.qpos[free : free + 3] = trial.object_position
    data.qpos[free + 3 : free + 7] = matrix_to_quaternion(trial.object_rotation)
    mujoco.mj_forward(model, data)


def start_penetration(trial: Trial, data: mujoco.MjData) -> tuple[float, float]:
    """Deepest penetrations of the contacts in `data` [m]: hand into object, and hand into itself (0 without contact)."""
    model = trial.model
    root = model.body_rootid
    hand_root, object_root = root[model.body(trial.hand).id], root[model.body(trial.target).id]
    deepest = {True: 0.0, False: 0.0}
    for contact in data.contact[: data.ncon]:
        roots = {int(root[model.geom_bodyid[g]]) for g in contact.geom}
        if roots <= {int(hand_root), int(object_root)} and hand_root in roots:
            with_object = len(roots) == 2
            deepest[with_object] = max(deepest[with_object], -float(contact.dist))
    return deepest[True], deepest[False]
