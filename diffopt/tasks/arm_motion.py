"""How an arm gets a hand to a planned grasp and up again: straight lines of the wrist, tracked by differential kinematics.

One step of damped least squares (Wampler 1986; Nakamura and Hanafusa 1986) towards a wrist pose with error e and Jacobian J:

    dq = J^T (J J^T + damping^2 1)^-1 e,        q <- clip(q + dq, limits)

started from the planned joints and carried from point to point, so that the arm stays on the branch that the plan chose.

The approach is a line of the wrist that ends in the grasp. Its direction and how far the fingers are opened on it are chosen
among a few, by the least penetration along the way; the choice looks at geometry alone and is the same for every planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffopt.physics.engine import matrix_to_quaternion

if TYPE_CHECKING:
    import mujoco

_DAMPING = 1e-2
_ITERATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Where an arm and its hand lie in a compiled scene; made by `Arm.of`.

    Attributes:
      tool: body id of the wrist.
      joints, dofs, servos: addresses in qpos, qvel and ctrl of the arm's joints, in the plan's order.
      hand_joints, hand_servos: the same for the hand.
      lower, upper: limits of the arm's joints [rad]; hand_lower, hand_upper: of the hand's.
    """

    tool: int
    joints: np.ndarray
    dofs: np.ndarray
    servos: np.ndarray
    hand_joints: np.ndarray
    hand_servos: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    hand_lower: np.ndarray
    hand_upper: np.ndarray

    @staticmethod
    def of(model: mujoco.MjModel, arm: tuple[str, ...], hand: tuple[str, ...], tool: str) -> Arm:
        """Looks the names up. Raises ValueError for a joint that no servo drives."""

        def servo(joint: str) -> int:
            found = np.flatnonzero(model.actuator_trnid[:, 0] == model.joint(joint).id)
            if len(found) != 1:
                raise ValueError(f"joint '{joint}' has {len(found)} servos in the model; a lift needs exactly one")
            return int(found[0])

        def limits(joints: tuple[str, ...]) -> np.ndarray:
            rows = [model.joint(j).range if model.jnt_limited[model.joint(j).id] else (-np.inf, np.inf) for j in joints]
            return np.array(rows, dtype=float).reshape(-1, 2)

        own, fingers = limits(arm), limits(hand)
        return Arm(
            tool=model.body(tool).id,
            joints=np.array([model.joint(j).qposadr[0] for j in arm], dtype=int),
            dofs=np.array([model.joint(j).dofadr[0] for j in arm], dtype=int),
            servos=np.array([servo(j) for j in arm], dtype=int),
            hand_joints=np.array([model.joint(j).qposadr[0] for j in hand], dtype=int),
            hand_servos=np.array([servo(j) for j in hand], dtype=int),
            lower=own[:, 0],
            upper=own[:, 1],
            hand_lower=fingers[:, 0],
            hand_upper=fingers[:, 1],
        )


def wrist_pose(model: mujoco.MjModel, data: mujoco.MjData, arm: Arm, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position [m] and rotation of the wrist in the world at arm joints `q`; leaves the kinematics of `data` there."""
    import mujoco

    data.qpos[arm.joints] = q
    mujoco.mj_kinematics(model, data)
    return data.xpos[arm.tool].copy(), data.xmat[arm.tool].reshape(3, 3).copy()


def track_line(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    arm: Arm,
    q: Float[np.ndarray, "A"],
    offset: Float[np.ndarray, "3"],
    points: int,
) -> tuple[Float[np.ndarray, "P A"], float]:
    """Arm joints along a straight line of the wrist, its rotation kept.

    Args:
      q: arm joints where the line begins.
      offset: from the first to the last point, in the world [m].
      points: number of points after the first.
    Returns:
      The joints at `points + 1` points, the first being `q`, within the limits; and the largest error of a point, in metres
      (a rotation counts 0.1 m per radian).
    """
    import mujoco

    position, rotation = wrist_pose(model, data, arm, q)
    path, worst = [np.array(q, dtype=float)], 0.0
    jacobian = np.zeros((6, model.nv))
    error = np.zeros(6)
    turn = np.zeros(4)
    target = matrix_to_quaternion(rotation)
    for k in range(1, points + 1):
        goal, current = position + offset * k / points, path[-1].copy()
        for iteration in range(_ITERATIONS + 1):
            wrist_pose(model, data, arm, current)
            error[:3] = goal - data.xpos[arm.tool]
            mujoco.mju_negQuat(turn, data.xquat[arm.tool])
            mujoco.mju_mulQuat(turn, target, turn)  # rotation from the wrist to the goal, in the world
            mujoco.mju_quat2Vel(error[3:], turn, 1.0)
            size = max(float(np.linalg.norm(error[:3])), 0.1 * float(np.linalg.norm(error[3:])))
            if size < 1e-4 or iteration == _ITERATIONS:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacBody(model, data, jacobian[:3], jacobian[3:], arm.tool)
            J = jacobian[:, arm.dofs]
            step = J.T @ np.linalg.solve(J @ J.T + _DAMPING**2 * np.eye(6), error)
            current = np.clip(current + step, arm.lower, arm.upper)
        path.append(current)
        worst = max(worst, size)
    return np.array(path), worst


def penetration_along(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    arm: Arm,
    path: Float[np.ndarray, "P A"],
    fingers: Float[np.ndarray, "H"],
    robot: np.ndarray,
) -> float:
    """Sum over the path of the penetrations of the robot with everything else [m]; `robot` marks its geoms."""
    import mujoco

    total = 0.0
    data.qpos[arm.hand_joints] = fingers
    for q in path:
        wrist_pose(model, data, arm, q)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        if data.ncon:
            geoms = data.contact.geom
            other = robot[geoms[:, 0]] != robot[geoms[:, 1]]
            total += float(-np.minimum(data.contact.dist[other], 0.0).sum())
    return total


@dataclass(frozen=True, kw_only=True)
class Approach:
    """A way to the grasp: arm joints from the retreated wrist to the grasp, the fingers meanwhile, and its penetration [m]."""

    path: Float[np.ndarray, "P A"]
    fingers: Float[np.ndarray, "H"]
    penetration: float


def best_approach(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    arm: Arm,
    q: Float[np.ndarray, "A"],
    directions: Float[np.ndarray, "D 3"],
    fingers: Float[np.ndarray, "O H"],
    distance: float,
    robot: np.ndarray,
    tolerance: float = 0.005,
    points: int = 8,
) -> Approach | None:
    """The line with the least penetration among directions (in the world, unit) and finger postures; ties go to the first.

    Directions whose line leaves the joint limits (error above `tolerance` [m]) are left out; None when none remains.
    """
    best: Approach | None = None
    for direction in directions:
        line, error = track_line(model, data, arm, q, -distance * direction, points)
        if error > tolerance:
            continue
        for posture in fingers:
            depth = penetration_along(model, data, arm, line[1:], posture, robot)
            if best is None or depth < best.penetration - 1e-4:
                best = Approach(path=line[::-1], fingers=posture, penetration=depth)
            if best.penetration < 1e-4:
                return best
    return best
