"""The motion of one trial of `lift-on-arm`, made on the host for whichever engine runs it: where, along which joints, how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from diffopt.physics.course import Course
from diffopt.physics.engine import matrix_to_quaternion, rotation_angle
from diffopt.physics.protocol import set_contact, set_options
from diffopt.tasks.arm_motion import Arm, best_approach, track_line, wrist_pose
from diffopt.tasks.lift_verdict import Measure, Verdict

if TYPE_CHECKING:
    import mujoco

    from diffopt.tasks.lift_on_arm import LiftProtocol, LiftTrial


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A course for an engine, and what its record is measured against."""

    course: Course
    measure: Measure


def scene_spec(trial: LiftTrial, protocol: LiftProtocol) -> mujoco.MjSpec:
    """The scene of a trial: robot, table and obstacles, and the object, with the protocol's settings."""
    spec = trial.robot.model_spec(trial.scene)
    if trial.scene.object is None:
        raise ValueError("the scene has no object to lift")
    trial.scene.object.add_to(spec, name="object", mass=None)
    set_options(spec, protocol.options)
    set_contact(spec, protocol.contact, hand=trial.robot.tool)
    return spec


def scene_model(trial: LiftTrial, protocol: LiftProtocol) -> mujoco.MjModel:
    """That scene, compiled."""
    return scene_spec(trial, protocol).compile()


def plan(rules: LiftProtocol, trial: LiftTrial) -> tuple[Motion | None, Verdict]:
    """The motion, and the verdict before it begins: with a reason exactly where there is no motion."""
    import mujoco

    grasp, joints, verdict = trial.grasp, np.asarray(trial.joints, float), Verdict()
    numbers = (joints, grasp.position, grasp.rotation, grasp.joints, grasp.squeeze)
    if not all(np.isfinite(np.asarray(x)).all() for x in numbers):
        return None, replace(verdict, reason="no plan")
    spec = scene_spec(trial, rules)
    model = spec.compile()
    data = mujoco.MjData(model)
    robot = trial.robot
    arm = Arm.of(model, robot.arm, robot.hand, robot.tool)
    own, fingers, scene = _geoms(model, arm)
    free = model.jnt_qposadr[model.body_jntadr[model.body("object").id]]
    data.qpos[free : free + 3] = np.asarray(trial.scene.placement.position, float)
    data.qpos[free + 3 : free + 7] = matrix_to_quaternion(np.asarray(trial.scene.placement.rotation, float))
    if (joints < arm.lower - 1e-3).any() or (joints > arm.upper + 1e-3).any():
        return None, replace(verdict, reason="unreachable")
    joints = np.clip(joints, arm.lower, arm.upper)
    position, R = wrist_pose(model, data, arm, joints)
    off = np.linalg.norm(position - np.asarray(grasp.position, float))
    error = max(float(off), 0.1 * float(rotation_angle(R, np.asarray(grasp.rotation, float))))
    verdict = replace(verdict, reach_error=error)
    targets = None if error > rules.reach else _targets(rules, trial, model, data, arm, joints, R, own)
    if targets is None:
        return None, replace(verdict, reason="unreachable")
    course = Course(
        spec=spec,
        model=model,
        qpos=data.qpos.copy(),
        targets=targets[0],
        steps=round(rules.check / rules.options.timestep),
        bodies=(arm.tool, model.body("object").id),
        presses=((own & ~fingers, scene), (fingers, scene)),
    )
    measure = Measure(
        closed=targets[1],
        height=float(course.qpos[free + 2]),
        joints=arm.joints,
        dofs=arm.dofs,
        lower=arm.lower,
        upper=arm.upper,
        velocity=np.asarray(robot.velocity, float) * (1.0 + rules.velocity_slack),
    )
    return Motion(course=course, measure=measure), verdict


def _geoms(model: mujoco.MjModel, arm: Arm) -> tuple[Bool[np.ndarray, "G"], ...]:
    """Masks of the robot's geoms, of those of its fingers (bodies below the palm), and of the scene's without the object."""
    body, roots = model.geom_bodyid, model.body_rootid
    below = np.zeros(model.nbody, dtype=bool)
    for b in range(1, model.nbody):
        parent = model.body_parentid[b]
        below[b] = parent == arm.tool or below[parent]
    own = roots[body] == roots[arm.tool]
    return own, below[body], ~own & (body != model.body("object").id)


def _targets(
    rules: LiftProtocol,
    trial: LiftTrial,
    model: mujoco.MjModel,
    data: mujoco.MjData,
    arm: Arm,
    joints: Float[np.ndarray, "A"],
    R: Float[np.ndarray, "3 3"],
    own: Bool[np.ndarray, "G"],
) -> tuple[Float[np.ndarray, "K U"], int] | None:
    """Servo targets at every check, and how many of them come before the lift; None when the arm cannot follow.

    Leaves the start of the motion in `data.qpos`. `R` is the wrist's rotation at `joints`; `own` marks the robot's geoms.
    """
    grasp = trial.grasp
    closed, offset = np.asarray(grasp.joints, float), np.asarray(grasp.squeeze, float)
    pregrasp, grasped, squeezed = (
        np.clip(closed + s * offset, arm.hand_lower, arm.hand_upper) for s in (-1.0, 0.0, rules.grip)
    )
    sense = np.where(offset == 0.0, 0.0, np.sign(offset))
    openings = [np.clip(pregrasp - a * sense, arm.hand_lower, arm.hand_upper) for a in rules.openings]
    directions = np.stack([R[:, 0], R[:, 2], np.array([0.0, 0.0, -1.0])])
    way = best_approach(model, data, arm, joints, directions, np.array(openings), rules.retreat, own)
    rise, error = track_line(model, data, arm, joints, np.array([0.0, 0.0, rules.lift]), 16)
    if way is None or error > 0.01:
        return None

    n_approach = _checks(rules, trial, way.path, rules.approach)
    q_arm = [_resample(way.path, n_approach)]
    q_hand = [np.tile(way.fingers, (n_approach, 1))]
    stages = (
        (rules.settle, way.fingers, pregrasp),
        (rules.close, pregrasp, grasped),
        (rules.squeeze, grasped, squeezed),
    )
    for duration, start, end in stages:
        n = rules.checks(duration)
        q_arm.append(np.tile(joints, (n, 1)))
        q_hand.append(_resample(np.stack([start, end]), n))
    n_closed = sum(map(len, q_arm))
    for path, n in ((rise, _checks(rules, trial, rise, rules.rise)), (rise[-1:], rules.checks(rules.hold))):
        q_arm.append(_resample(path, n))
        q_hand.append(np.tile(squeezed, (n, 1)))
    targets = np.zeros((sum(map(len, q_arm)), model.nu))
    targets[:, arm.servos], targets[:, arm.hand_servos] = np.concatenate(q_arm), np.concatenate(q_hand)
    data.qpos[arm.joints], data.qpos[arm.hand_joints] = way.path[0], way.fingers
    return targets, n_closed


def _checks(rules: LiftProtocol, trial: LiftTrial, path: Float[np.ndarray, "P A"], least: float) -> int:
    """Number of checks that a path takes: at least `least` [s], and slow enough for the fastest joint, to a point."""
    velocity = np.asarray(trial.robot.velocity, float)
    mean = float((np.abs(np.diff(path, axis=0)) / velocity).max()) * (len(path) - 1)
    return rules.checks(min(max(least, 1.5 * mean / rules.speed), rules.slowest))  # 1.5: peak over mean


def _resample(path: Float[np.ndarray, "P J"], n: int) -> Float[np.ndarray, "n J"]:
    """`n` points along the knots of a path, the last included and the first not; at rest at both ends (cubic in time)."""
    knots = np.linspace(0.0, 1.0, len(path)) if len(path) > 1 else np.zeros(1)
    time = np.arange(1, n + 1) / n
    at = time * time * (3.0 - 2.0 * time)
    return np.stack([np.interp(at, knots, column) for column in path.T], axis=1)
