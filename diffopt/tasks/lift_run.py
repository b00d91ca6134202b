"""One trial of `lift-on-arm`: the motion to its plan, its simulation in C MuJoCo, and its verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffopt.physics.engine import matrix_to_quaternion, rotation_angle
from diffopt.physics.protocol import set_contact, set_options
from diffopt.tasks.arm_motion import Arm, best_approach, track_line, wrist_pose

if TYPE_CHECKING:
    import mujoco

    from diffopt.tasks.lift_on_arm import LiftProtocol, LiftTrial


def scene_model(trial: LiftTrial, protocol: LiftProtocol) -> mujoco.MjModel:
    """The compiled scene of a trial: robot, table and obstacles, and the object, with the protocol's settings."""
    spec = trial.robot.model_spec(trial.scene)
    if trial.scene.object is None:
        raise ValueError("the scene has no object to lift")
    trial.scene.object.add_to(spec, name="object", mass=None)
    set_options(spec, protocol.options)
    set_contact(spec, protocol.contact, hand=trial.robot.tool)
    return spec.compile()


class Run:
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
        self.data.qpos[free : free + 3] = np.asarray(self.trial.scene.placement.position, float)
        self.data.qpos[free + 3 : free + 7] = matrix_to_quaternion(
            np.asarray(self.trial.scene.placement.rotation, float)
        )

    def _motion(self, joints: np.ndarray) -> tuple[np.ndarray, int] | None:
        """Servo targets at every check, and how many of them come before the lift; None when unreachable."""
        rules, arm, model, data = self.rules, self.arm, self.model, self.data
        if (joints < arm.lower - 1e-3).any() or (joints > arm.upper + 1e-3).any():
            return None
        joints = np.clip(joints, arm.lower, arm.upper)
        position, R = wrist_pose(model, data, arm, joints)
        grasp = self.trial.grasp
        off = np.linalg.norm(position - np.asarray(grasp.position, float))
        self.reach_error = max(float(off), 0.1 * float(rotation_angle(R, np.asarray(grasp.rotation, float))))
        if self.reach_error > rules.reach:
            return None
        closed, offset = np.asarray(grasp.joints, float), np.asarray(grasp.squeeze, float)
        pregrasp, grasped, squeezed = (
            np.clip(closed + s * offset, arm.hand_lower, arm.hand_upper) for s in (-1.0, 0.0, rules.grip)
        )
        sense = np.where(offset == 0.0, 0.0, np.sign(offset))
        openings = [np.clip(pregrasp - a * sense, arm.hand_lower, arm.hand_upper) for a in rules.openings]
        directions = np.stack([R[:, 0], R[:, 2], np.array([0.0, 0.0, -1.0])])
        way = best_approach(model, data, arm, joints, directions, np.array(openings), rules.retreat, self.robot_geoms)
        rise, error = track_line(model, data, arm, joints, np.array([0.0, 0.0, rules.lift]), 16)
        if way is None or error > 0.01:
            return None

        n_approach = self._checks(way.path, rules.approach)
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
        for path, n in ((rise, self._checks(rise, rules.rise)), (rise[-1:], rules.checks(rules.hold))):
            q_arm.append(_resample(path, n))
            q_hand.append(np.tile(squeezed, (n, 1)))
        targets = np.zeros((sum(map(len, q_arm)), model.nu))
        targets[:, arm.servos], targets[:, arm.hand_servos] = np.concatenate(q_arm), np.concatenate(q_hand)
        data.qpos[arm.joints], data.qpos[arm.hand_joints] = way.path[0], way.fingers
        return targets, n_closed

    def _checks(self, path: np.ndarray, least: float) -> int:
        """Number of checks that a path takes: at least `least` [s], and slow enough for the fastest joint, to a point."""
        velocity = np.asarray(self.trial.robot.velocity, float)
        mean = float((np.abs(np.diff(path, axis=0)) / velocity).max()) * (len(path) - 1)
        return self.rules.checks(
            min(max(least, 1.5 * mean / self.rules.speed), self.rules.slowest)
        )  # 1.5: peak over mean

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
            if (
                (np.abs(data.qvel[arm.dofs]) > velocity).any()
                or (q < arm.lower - rules.slack).any()
                or (q > arm.upper + rules.slack).any()
            ):
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
    """`n` points along the knots of a path, the last included and the first not; at rest at both ends (cubic in time)."""
    knots = np.linspace(0.0, 1.0, len(path)) if len(path) > 1 else np.zeros(1)
    time = np.arange(1, n + 1) / n
    at = time * time * (3.0 - 2.0 * time)
    return np.stack([np.interp(at, knots, column) for column in path.T], axis=1)
