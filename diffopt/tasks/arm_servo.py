"""How an arm follows tool poses without a plan for its joints: damped least squares, within its joint and velocity limits.

    dq = J^T (J J^T + damping^2 1)^-1 e,        q <- clip(q + dq, limits)          (Wampler 1986; Nakamura and Hanafusa 1986)

repeated a few times from the last command, then clipped to what the joints can do in one period. This is what executes the plans of
samplers that know nothing of the arm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffopt.geometry import Pose
from diffopt.tasks.arm_motion import Arm, wrist_pose
from diffopt.tasks.gripper import rotvec

if TYPE_CHECKING:
    import mujoco

_DAMPING = 0.03
_STEP = 0.3  # largest step of a joint per iteration [rad]


def approach(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    arm: Arm,
    q: Float[np.ndarray, "A"],
    goal: Pose,
    iterations: int = 10,
) -> tuple[Float[np.ndarray, "A"], float]:
    """Joints near `q` whose tool is near `goal` (T_world_tool), and how far it is [m]; a radian counts 0.1 m.

    `data` is scratch: its joints and kinematics change.
    """
    import mujoco

    q = np.clip(np.asarray(q, float), arm.lower, arm.upper)
    jacobian = np.zeros((6, model.nv))
    for iteration in range(iterations + 1):
        position, R = wrist_pose(model, data, arm, q)
        error = np.concatenate([goal.position - position, rotvec(goal.rotation @ R.T)])
        size = float(max(np.linalg.norm(error[:3]), 0.1 * np.linalg.norm(error[3:])))
        if size < 1e-5 or iteration == iterations:
            break
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacBody(model, data, jacobian[:3], jacobian[3:], arm.tool)
        J = jacobian[:, arm.dofs]
        step = J.T @ np.linalg.solve(J @ J.T + _DAMPING**2 * np.eye(6), error)
        q = np.clip(q + step * min(1.0, _STEP / max(float(np.abs(step).max()), 1e-9)), arm.lower, arm.upper)
    return q, size
