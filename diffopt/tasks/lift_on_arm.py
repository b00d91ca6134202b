"""`lift-on-arm`: the whole arm and hand pick an object up from a table, with gravity and the object's own mass.

    trial = LiftTrial(robot=robot, scene=scene, grasp=plan, joints=q)
    outcome = evaluate([trial, ...])
    outcome.success.mean(), collections.Counter(outcome.reason)

Motion, for every planner the same (times are those of `LiftProtocol`):

    approach  the wrist comes along a straight line, `retreat` long, that ends in the planned wrist pose, with open fingers
    settle    the fingers go to the pregrasp
    close     pregrasp -> grasp, squeeze: grasp -> squeeze
    lift      the wrist goes straight up by `lift`, and holds

A trial succeeds when all of these hold, and otherwise fails for the first that did not:

    no plan      the plan has joints, and no NaN
    unreachable  the planned joints lie within the limits and bring the wrist to the planned pose within `reach`, and the
                 arm can follow the approach and the lift from there
    collision    before the lift, at every check: arm and palm press on the scene with at most `palm_force`, the fingers with
                 at most `finger_force` (each the sum of the normal forces over their contacts). The object is not scene.
    limit        at every check: arm joints within their limits (to `slack`) and velocity limits
    dropped      from the end of the squeeze on: the object within `displacement` and `rotation` of its place in the palm's frame
    not lifted   at the end: the object at least `raised` higher than at the start
    unstable     at every check: the simulation has not diverged

The motion (`lift_run`) and the verdict (`lift_verdict`) are made on the host and are the same for every engine; in between, an
engine only simulates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from jaxtyping import Bool, Float

from diffopt.geometry import Pose
from diffopt.physics import load_engine
from diffopt.physics.course import Follower, Record, replay
from diffopt.physics.protocol import Contact, Options
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.tasks.floating_grasp import Solid
from diffopt.tasks.lift_run import plan
from diffopt.tasks.lift_verdict import Verdict, conclude, extend

if TYPE_CHECKING:
    import mujoco

REASONS = ("", "no plan", "unreachable", "collision", "limit", "dropped", "not lifted", "unstable")


@dataclass(frozen=True, kw_only=True)
class LiftProtocol:
    """The numbers of `lift-on-arm`; a change of any of them is a new version.

    Attributes:
      options, contact: as in the protocols of the floating hand; here gravity is on.
      retreat: length of the approach [m]; its direction is the palm's normal, the fingers' direction, or straight down,
        whichever meets least on the way.
      openings: how much further than the pregrasp the fingers are opened for the approach [rad]; also chosen.
      grip: factor on the plan's squeeze, because the planned one is for a force of 1 N and the object has its own weight.
      speed: share of the velocity limits that the commanded approach and rise use, for which they are slowed down.
      approach, settle, close, squeeze, rise, hold: durations [s], those of approach and rise being the least.
      slowest: most that either of them takes [s].
      lift: height of the wrist's path [m]. raised: height by which the object has to be raised [m].
      displacement, rotation: how far the object may move in the palm's frame [m], [rad].
      reach: largest distance between the wrist at the planned joints and the planned wrist [m]; a radian counts 0.1 m.
      palm_force, finger_force: largest forces on the scene before the lift [N].
      slack: how far a measured joint may be outside of its limits [rad].
      velocity_slack: by which share a measured velocity may exceed its limit.
      check: time between two checks, and between two new servo targets [s].
    """

    name: str = "lift-on-arm"
    version: int = 1
    options: Options = field(default_factory=lambda: Options(gravity=(0.0, 0.0, -9.81)))
    contact: Contact = field(default_factory=Contact)
    retreat: float = 0.06
    openings: tuple[float, ...] = (0.0, 0.3, 0.6)
    grip: float = 2.0
    speed: float = 0.4
    approach: float = 1.0
    settle: float = 0.3
    close: float = 0.4
    squeeze: float = 0.4
    rise: float = 1.0
    hold: float = 1.0
    slowest: float = 4.0
    lift: float = 0.1
    raised: float = 0.08
    displacement: float = 0.05
    rotation: float = 0.2617993877991494  # 15 degrees
    reach: float = 0.05
    palm_force: float = 2.0
    finger_force: float = 10.0
    slack: float = 0.02
    velocity_slack: float = 0.05
    check: float = 0.02

    @property
    def title(self) -> str:
        return f"{self.name}-v{self.version}"

    def checks(self, duration: float) -> int:
        """Number of checks in `duration` [s]."""
        return max(1, round(duration / self.check))


class LiftScene(Interface):
    """What `diffopt.scenes.Scene` is: an object, where it rests (T_world_object), and `add_to` for what is fixed around it."""

    @property
    def object(self) -> Solid | None: ...
    @property
    def placement(self) -> Pose: ...
    def add_to(self, spec: mujoco.MjSpec) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LiftTrial:
    """One planned grasp to be executed.

    Attributes:
      robot: the embodiment, its base in place.
      scene: table and obstacles, fixed in the world, and the object, at rest.
      grasp: one grasp, in the world.
      joints: the arm's joints there [rad]; NaN where the planner found none.
    """

    robot: Embodiment
    scene: LiftScene
    grasp: Grasp
    joints: Float[np.ndarray, "A"]


@dataclass(frozen=True, kw_only=True)
class LiftOutcome:
    """What happened in N trials.

    Attributes:
      protocol, engine: titles.
      success: whether the object was lifted and held.
      reason: of `REASONS`; empty for a success.
      raised: height of the object above its start when the trial ended [m].
      displacement, rotation: largest movement in the palm's frame after the squeeze [m], [rad]; 0 when it did not get there.
      palm_force, finger_force: largest forces on the scene before the lift [N].
      reach_error: distance between the wrist at the planned joints and the planned wrist [m], a radian counting 0.1 m.
    """

    protocol: str
    engine: str
    success: Bool[np.ndarray, "N"]
    reason: tuple[str, ...]
    raised: Float[np.ndarray, "N"]
    displacement: Float[np.ndarray, "N"]
    rotation: Float[np.ndarray, "N"]
    palm_force: Float[np.ndarray, "N"]
    finger_force: Float[np.ndarray, "N"]
    reach_error: Float[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.success)


def evaluate(
    trials: Sequence[LiftTrial],
    protocol: LiftProtocol | None = None,
    engine: Follower | str = "auto",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, mujoco.MjModel, mujoco.MjData], None] | None = None,
) -> LiftOutcome:
    """Executes every trial.

    Args:
      engine: "c", "mjx", or an engine with `follow`; "auto" is C everywhere, because MJX compiles every structure of a scene anew.
      threads: for making the motions, and of C; None: one per core.
      progress: called with the number of trials just finished, from any thread.
      observe: called with the trial's index, model and data at every check, from any thread; for pictures: data has the state
        and places, no forces.
    """
    rules = LiftProtocol() if protocol is None else protocol
    for i, trial in enumerate(trials):
        _refuse_mismatch(trial, i)
    workers = threads or os.cpu_count() or 1
    follower = _follower(engine, workers)
    with ThreadPoolExecutor(workers) as pool:
        motions, starts = zip(*pool.map(lambda trial: plan(rules, trial), trials), strict=True) if trials else ((), ())
    verdicts: list[Verdict] = list(starts)
    moved = [i for i, motion in enumerate(motions) if motion is not None]
    if progress is not None and len(moved) < len(trials):
        progress(len(trials) - len(moved))

    shown: dict[int, mujoco.MjData] = {}

    def watch(k: int, record: Record) -> bool:
        import mujoco

        i, motion = moved[k], motions[moved[k]]
        before = verdicts[i].checks
        verdicts[i] = extend(rules, motion.measure, verdicts[i], record)
        if observe is not None:
            data = shown.get(i) or shown.setdefault(i, mujoco.MjData(motion.course.model))
            replay(motion.course.model, data, record[: verdicts[i].checks - before], partial(observe, i))
        return not verdicts[i].reason

    follower.follow([motions[i].course for i in moved], watch, progress)
    for i in moved:
        verdicts[i] = conclude(rules, verdicts[i])

    def column(name: str) -> np.ndarray:
        return np.array([getattr(v, name) for v in verdicts], dtype=float)

    return LiftOutcome(
        protocol=rules.title,
        engine=follower.name,
        success=np.array([v.reason == "" for v in verdicts], dtype=bool),
        reason=tuple(v.reason for v in verdicts),
        raised=column("raised"),
        displacement=column("displacement"),
        rotation=column("rotation"),
        palm_force=column("palm_force"),
        finger_force=column("finger_force"),
        reach_error=column("reach_error"),
    )


def _follower(engine: Follower | str, threads: int) -> Follower:
    if not isinstance(engine, str):
        return engine
    if engine in ("auto", "c"):
        return load_engine("c", threads=threads)
    return load_engine(engine)


def _refuse_mismatch(trial: LiftTrial, index: int) -> None:
    if trial.scene.object is None:
        raise ValueError(f"trial {index}: the scene has no object to lift")
    robot, joints, fingers = trial.robot, np.shape(trial.joints), np.shape(trial.grasp.joints)
    if joints != (len(robot.arm),):
        raise ValueError(
            f"trial {index}: joints have shape {joints}; the arm of '{robot.name}' needs ({len(robot.arm)},)"
        )
    if fingers != (len(robot.hand),):
        raise ValueError(
            f"trial {index}: the grasp has fingers {fingers}; the hand of '{robot.name}' needs ({len(robot.hand)},)"
        )
