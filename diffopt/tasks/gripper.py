"""The parallel gripper (`gripper` of the shipped hands) floating in the air, and the poses that grasp with it.

Its body follows a goal by six servos, about critically damped with time constant `LAG`: it lags a ramp by 2 * LAG, and is held up
by what it runs into with at most `FORCE` and `TORQUE`. (A weld, stiff enough to follow, throws the object out of the fingers.)
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffopt.geometry import Pose

if TYPE_CHECKING:
    import mujoco

TOOL = "gripper"  # body that plans speak about
FINGER = "gripper_left"  # its joint is the opening: the way of one finger from closed [m]; the other follows
GOAL = "gripper_goal"  # mocap body of the floating gripper
OPEN = 0.04  # [m]
PINCH = 0.1  # from the tool's origin along its z to between the finger pads [m]
LAG = 0.015  # [s]
FORCE, TORQUE = 60.0, 5.0  # [N], [N m]
MASS, INERTIA = 0.8, 0.006  # about those of the gripper [kg], [kg m^2]


def floating_spec() -> mujoco.MjSpec:
    """A spec of the gripper alone, free, without weight, and drawn to a mocap body."""
    import mujoco

    file = resources.files("diffopt.robots") / "models" / "gripper.xml"
    spec = mujoco.MjSpec.from_string(file.read_text(encoding="utf-8"))
    root = spec.body(TOOL)
    root.add_freejoint(name="gripper_free")
    for body in spec.bodies[1:]:
        body.gravcomp = 1.0
    goal = spec.worldbody.add_body(name=GOAL, mocap=True)
    goal.add_site(name=GOAL, size=(0.001,) * 3)
    root.add_site(name=TOOL, size=(0.001,) * 3)
    for axis in range(6):
        inertia, most = (MASS, FORCE) if axis < 3 else (INERTIA, TORQUE)
        servo = spec.add_actuator(
            name=f"{TOOL}_{'xyz'[axis % 3]}{'' if axis < 3 else '_turn'}",
            trntype=mujoco.mjtTrn.mjTRN_SITE,
            target=TOOL,
            refsite=GOAL,
            gear=[float(k == axis) for k in range(6)],
            forcerange=(-most, most),
            forcelimited=True,
        )
        servo.set_to_position(kp=inertia / LAG**2, kv=2.0 * inertia / LAG)
    return spec


def downward(yaw: float, tilt: tuple[float, float] = (0.0, 0.0)) -> Float[np.ndarray, "3 3"]:
    """R_world_tool of a gripper that points down, its fingers opening along the world's y turned by `yaw` [rad].

    Args:
      tilt: rotation vector in the world's horizontal plane [rad], applied last.
    """
    c, s = np.cos(yaw), np.sin(yaw)
    R = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([1.0, -1.0, -1.0])
    return turn(np.array([*tilt, 0.0])) @ R


def pinching(point: Float[np.ndarray, "3"], R: Float[np.ndarray, "3 3"]) -> Pose:
    """T_world_tool with the finger pads about `point` [m]."""
    return Pose(position=np.asarray(point) - PINCH * R[:, 2], rotation=R)


def turn(rotvec: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation matrix of a rotation vector [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(rotvec))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(rotvec) / angle
    K = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * K + (1.0 - np.cos(angle)) * K @ K


def rotvec(R: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """The rotation vector [rad] of a rotation matrix; the inverse of `turn` for angles below pi."""
    skew = 0.5 * np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    sine, cosine = float(np.linalg.norm(skew)), 0.5 * (float(np.trace(R)) - 1.0)
    angle = float(np.arctan2(sine, cosine))
    return skew if sine < 1e-9 else skew * (angle / sine)


def between(start: Pose, goal: Pose, share: float) -> Pose:
    """The pose at `share` (0 to 1) of the straight way from one to another."""
    twist = rotvec(goal.rotation @ start.rotation.T)
    return Pose(
        position=start.position + share * (goal.position - start.position),
        rotation=turn(share * twist) @ start.rotation,
    )


def toward(start: Pose, goal: Pose, distance: float, angle: float) -> Pose:
    """The pose on that way at most `distance` [m] and `angle` [rad] from the start."""
    gap = float(np.linalg.norm(goal.position - start.position))
    twist = float(np.linalg.norm(rotvec(goal.rotation @ start.rotation.T)))
    return between(start, goal, min(1.0, distance / max(gap, 1e-6), angle / max(twist, 1e-6)))
