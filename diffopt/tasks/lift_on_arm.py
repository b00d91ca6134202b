"""`lift-on-arm`: the whole arm and hand pick an object up from a table, with gravity and the object's own mass.

    trial = LiftTrial(robot=robot, scene=(tabletop,), solid=cup, placement=T_world_cup, grasp=plan, joints=q)
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
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from diffopt.geometry import Pose
from diffopt.physics.engine import matrix_to_quaternion, rotation_angle
from diffopt.physics.protocol import Contact, Options
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.tasks.arm_motion import Arm, best_approach, track_line, wrist_pose
from diffopt.tasks.floating_grasp import Solid

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
      speed: share of the velocity limits that the commanded approach uses; it takes at least `approach` [s].
      approach, settle, close, squeeze, rise, hold: durations [s].
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
    options: Options = Options(gravity=(0.0, 0.0, -9.81))
    contact: Contact = Contact()
    retreat: float = 0.06
    openings: tuple[float, ...] = (0.0, 0.3, 0.6)
    speed: float = 0.4
    approach: float = 1.0
    settle: float = 0.3
    close: float = 0.4
    squeeze: float = 0.4
    rise: float = 1.0
    hold: float = 1.0
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


@dataclass(frozen=True, kw_only=True)
class LiftTrial:
    """One planned grasp to be executed.

    Attributes:
      robot: the embodiment, its base in place.
      scene: things with `add_to(spec)`: table and obstacles, fixed in the world.
      solid: the object.
      placement: T_world_object, at rest on the table.
      grasp: one grasp, in the world.
      joints: the arm's joints there [rad]; NaN where the planner found none.
    """

    robot: Embodiment
    scene: tuple[Any, ...]
    solid: Solid
    placement: Pose
    grasp: Grasp
    joints: Float[np.ndarray, "A"]


@dataclass(frozen=True, kw_only=True)
class LiftOutcome:
    """What happened in N trials.

    Attributes:
      protocol: its title.
      success: whether the object was lifted and held.
      reason: of `REASONS`; empty for a success.
      raised: height of the object above its start when the trial ended [m].
      displacement, rotation: largest movement in the palm's frame after the squeeze [m], [rad]; 0 when it did not get there.
      palm_force, finger_force: largest forces on the scene before the lift [N].
      reach_error: distance between the wrist at the planned joints and the planned wrist [m], a radian counting 0.1 m.
    """

    protocol: str
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
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, mujoco.MjModel, mujoco.MjData], None] | None = None,
) -> LiftOutcome:
    """Executes every trial in C MuJoCo.

    Args:
      threads: None: one per core.
      progress: called with the number of trials just finished, from any thread.
      observe: called with the trial's index, model and data at every check, from any thread; for pictures.
    """
    rules = LiftProtocol() if protocol is None else protocol
    for i, trial in enumerate(trials):
        _refuse_mismatch(trial, i)

    def work(i: int) -> _Run:
        run = _Run(rules, trials[i], None if observe is None else lambda m, d: observe(i, m, d))
        run.execute()
        if progress is not None:
            progress(1)
        return run

    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        runs = list(pool.map(work, range(len(trials))))

    def column(name: str) -> np.ndarray:
        return np.array([getattr(r, name) for r in runs], dtype=float)

    return LiftOutcome(
        protocol=rules.title,
        success=np.array([r.reason == "" for r in runs], dtype=bool),
        reason=tuple(r.reason for r in runs),
        raised=column("raised"),
        displacement=column("displacement"),
        rotation=column("rotation"),
        palm_force=column("palm_force"),
        finger_force=column("finger_force"),
        reach_error=column("reach_error"),
    )


def _refuse_mismatch(trial: LiftTrial, index: int) -> None:
    robot, joints, fingers = trial.robot, np.shape(trial.joints), np.shape(trial.grasp.joints)
    if joints != (len(robot.arm),):
        raise ValueError(f"trial {index}: joints have shape {joints}; the arm of '{robot.name}' needs ({len(robot.arm)},)")
    if fingers != (len(robot.hand),):
        raise ValueError(f"trial {index}: the grasp has fingers {fingers}; the hand of '{robot.name}' needs ({len(robot.hand)},)")


def scene_model(trial: LiftTrial, protocol: LiftProtocol) -> mujoco.MjModel:
    """The compiled scene of a trial: robot, table and obstacles, and the object, with the protocol's settings."""
    import mujoco

    from diffopt.physics.protocol import set_contact, set_options

    spec = trial.robot.model_spec(*trial.scene)
    trial.solid.add_to(spec, name="object", mass=None)
    set_options(spec, protocol.options)
    set_contact(spec, protocol.contact, hand=trial.robot.tool)
    return spec.compile()


class _Run:
    """One trial: its motion, its simulation, its verdict."""

    def __init__(self, rules: LiftProtocol, trial: LiftTrial, observe: Callable | None) -> None:
        self.rules, self.trial, self.observe = rules, trial, observe
        self.reason = ""
        self.raised = self.displacement = self.rotation = 0.0
        self.palm_force = self.finger_force = self.reach_error = 0.0

    def execute(self) -> None:
        import mujoco

        grasp, joints = self.trial.grasp, np.asarray(self.trial.joints, float)
        numbers = (joints, grasp.position, grasp.rotation, grasp.joints, grasp.squeeze)
        if not all(np.isfinite(np.asarray(x)).all() for x in numbers):
            self.reason = "no plan"
            return
        self.model = scene_model(self.trial, self.rules)
        self.data = mujoco.MjData(self.model)
        robot = self.trial.robot
        self.arm = Arm.of(self.model, robot.arm, robot.hand, robot.tool)
        self._classify()
        self._place_object()
        motion = self._motion(joints)
        if motion is None:
            self.reason = "unreachable"
            return
        self._simulate(*motion)

    def _classify(self) -> None:
        """Marks geoms: `robot`, `finger` (bodies below the palm), `object`; the rest is scene."""
        model = self.model
        body = model.geom_bodyid
        roots = model.body_rootid
        self.object = model.body("object").id
        below = np.zeros(model.nbody, dtype=bool)
        for b in range(1, model.nbody):
            parent = model.body_parentid[b]
            below[b] = parent == self.arm.tool or below[parent]
        self.robot_geoms = roots[body] == roots[self.arm.tool]
        self.finger_geoms = below[body]
        self.scene_geoms = ~self.robot_geoms & (body != self.object)

    def _place_object(self) -> None:
        free = self.model.jnt_qposadr[self.model.body_jntadr[self.object]]
        self.data.qpos[free : free + 3] = np.asarray(self.trial.placement.position, float)
        self.data.qpos[free + 3 : free + 7] = matrix_to_quaternion(np.asarray(self.trial.placement.rotation, float))

    def _motion(self, joints: np.ndarray) -> tuple[np.ndarray, int] | None:
        """Servo targets at every check, and how many of them come before the lift; None when unreachable."""
        rules, arm, model, data = self.rules, self.arm, self.model, self.data
        if (joints < arm.lower - 1e-3).any() or (joints > arm.upper + 1e-3).any():
            return None
        joints = np.clip(joints, arm.lower, arm.upper)
        position, R = wrist_pose(model, data, arm, joints)
        grasp = self.trial.grasp
        off = np.linalg.norm(position - np.asarray(grasp.position, float))
        self.reach_error = float(max(off, 0.1 * rotation_angle(R, np.asarray(grasp.rotation, float))))
        if self.reach_error > rules.reach:
            return None
        closed, offset = np.asarray(grasp.joints, float), np.asarray(grasp.squeeze, float)
        pregrasp, grasped, squeezed = (np.clip(closed + s * offset, arm.hand_lower, arm.hand_upper) for s in (-1, 0, 1))
        sense = np.where(offset == 0.0, 0.0, np.sign(offset))
        openings = [np.clip(pregrasp - a * sense, arm.hand_lower, arm.hand_upper) for a in rules.openings]
        directions = np.stack([R[:, 0], R[:, 2], np.array([0.0, 0.0, -1.0])])
        way = best_approach(model, data, arm, joints, directions, np.array(openings), rules.retreat, self.robot_geoms)
        rise, error = track_line(model, data, arm, joints, np.array([0.0, 0.0, rules.lift]), 16)
        if way is None or error > 0.01:
            return None

        travel = np.abs(np.diff(way.path, axis=0)).sum(0) / np.asarray(self.trial.robot.velocity, float)
        n_approach = rules.checks(max(rules.approach, float(travel.max()) / rules.speed))
        q_arm = [_resample(way.path, n_approach)]
        q_hand = [np.tile(way.fingers, (n_approach, 1))]
        stages = ((rules.settle, way.fingers, pregrasp), (rules.close, pregrasp, grasped), (rules.squeeze, grasped, squeezed))
        for duration, start, end in stages:
            n = rules.checks(duration)
            q_arm.append(np.tile(joints, (n, 1)))
            q_hand.append(_resample(np.stack([start, end]), n))
        n_closed = sum(map(len, q_arm))
        for path, duration in ((rise, rules.rise), (rise[-1:], rules.hold)):
            n = rules.checks(duration)
            q_arm.append(_resample(path, n))
            q_hand.append(np.tile(squeezed, (n, 1)))
        targets = np.zeros((sum(map(len, q_arm)), model.nu))
        targets[:, arm.servos], targets[:, arm.hand_servos] = np.concatenate(q_arm), np.concatenate(q_hand)
        data.qpos[arm.joints], data.qpos[arm.hand_joints] = way.path[0], way.fingers
        return targets, n_closed

    def _simulate(self, targets: np.ndarray, n_closed: int) -> None:
        import mujoco

        rules, model, data, arm = self.rules, self.model, self.data, self.arm
        steps = round(rules.check / rules.options.timestep)
        data.qvel[:] = 0.0
        data.ctrl[:] = targets[0]
        mujoco.mj_forward(model, data)
        start_height = float(data.xpos[self.object, 2])
        velocity = np.asarray(self.trial.robot.velocity, float) * (1.0 + rules.velocity_slack)
        held: tuple[np.ndarray, np.ndarray] | None = None
        for k, target in enumerate(targets):
            data.ctrl[:] = target
            mujoco.mj_step(model, data, nstep=steps)
            if self.observe is not None:
                self.observe(model, data)
            if np.any(data.warning.number):
                self.reason = "unstable"
                return
            q = data.qpos[arm.joints]
            if (np.abs(data.qvel[arm.dofs]) > velocity).any() or (q < arm.lower - rules.slack).any() or (q > arm.upper + rules.slack).any():
                self.reason = "limit"
                return
            self.raised = float(data.xpos[self.object, 2]) - start_height
            if k < n_closed:
                self._press()
                if self.palm_force > rules.palm_force or self.finger_force > rules.finger_force:
                    self.reason = "collision"
                    return
            place = self._in_palm()
            if held is None and k + 1 >= n_closed:
                held = place
            elif held is not None:
                self.displacement = max(self.displacement, float(np.linalg.norm(place[0] - held[0])))
                self.rotation = max(self.rotation, float(rotation_angle(held[1], place[1])))
                if self.displacement >= rules.displacement or self.rotation >= rules.rotation:
                    self.reason = "dropped"
                    return
        if self.raised < rules.raised:
            self.reason = "not lifted"

    def _in_palm(self) -> tuple[np.ndarray, np.ndarray]:
        """Pose of the object in the palm's frame."""
        data = self.data
        R = data.xmat[self.arm.tool].reshape(3, 3)
        return R.T @ (data.xpos[self.object] - data.xpos[self.arm.tool]), R.T @ data.xmat[self.object].reshape(3, 3)

    def _press(self) -> None:
        """Largest forces so far of arm and palm, and of the fingers, on the scene [N]."""
        import mujoco

        data = self.data
        if not data.ncon:
            return
        geoms = data.contact.geom
        touching = (self.robot_geoms[geoms] & self.scene_geoms[geoms[:, ::-1]]).any(1)
        force, palm, fingers = np.zeros(6), 0.0, 0.0
        for c in np.flatnonzero(touching):
            mujoco.mj_contactForce(self.model, data, int(c), force)
            if self.finger_geoms[geoms[c]].any():
                fingers += force[0]
            else:
                palm += force[0]
        self.palm_force, self.finger_force = max(self.palm_force, palm), max(self.finger_force, fingers)


def _resample(path: Float[np.ndarray, "P J"], n: int) -> Float[np.ndarray, "n J"]:
    """`n` points evenly along the knots of a path, the last included and the first not."""
    knots = np.linspace(0.0, 1.0, len(path)) if len(path) > 1 else np.zeros(1)
    at = np.arange(1, n + 1) / n
    return np.stack([np.interp(at, knots, column) for column in path.T], axis=1)
