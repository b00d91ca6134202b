"""The independent judge of an arm's motions: is a path of joints executable among fixed obstacles? Decided by C MuJoCo and NumPy alone.

Nothing of the samplers' code takes part. The arm moves from knot to knot in straight lines of its joints, and is looked at at the knots
and `BETWEEN` - 1 times between two of them: kinematics are `mj_kinematics`, collisions `mj_collision` on the exact geoms. Joint limits
are those of the compiled model; velocities are differences of knots in double precision, exact for such a motion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from diffopt.evaluation.judge import LIMIT, PENETRATION
from diffopt.robots.embodiment import Embodiment

if TYPE_CHECKING:
    import mujoco

BETWEEN = 4  # postures per step
SPEED = 1e-3  # share by which a velocity may be beyond its limit


@dataclass(frozen=True, kw_only=True)
class PathJudge:
    """A robot in a scene, compiled once for any number of motions; made by `PathJudge.of`.

    Attributes:
      qpos: where the arm's joints stand among the model's positions.
      lower, upper, velocity: limits of the arm's joints [rad, rad/s].
      may: by pair of geoms, whether they may touch: fingers with each other, and bodies that always do.
      dt: time between knots [s].
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    qpos: np.ndarray
    lower: Float[np.ndarray, "A"]
    upper: Float[np.ndarray, "A"]
    velocity: Float[np.ndarray, "A"]
    may: Bool[np.ndarray, "G G"]
    dt: float

    @staticmethod
    def of(
        robot: Embodiment, scene: Any, velocity: Float[np.ndarray, "A"], dt: float, hand: Float[np.ndarray, "J"]
    ) -> PathJudge:
        """The judge of a robot, its base in place and its hand as told, in a scene (`diffopt.scenes.Scene`) without an object."""
        import mujoco

        model = robot.model_spec(scene).compile()
        data = mujoco.MjData(model)
        joints = [model.joint(name).id for name in robot.arm]
        for name, value in zip(robot.hand, hand, strict=True):
            data.qpos[model.jnt_qposadr[model.joint(name).id]] = value
        for i in range(model.neq):  # a finger that goes as another does
            if model.eq_type[i] == mujoco.mjtEq.mjEQ_JOINT and model.eq_obj2id[i] >= 0:
                one, two = model.jnt_qposadr[[model.eq_obj1id[i], model.eq_obj2id[i]]]
                data.qpos[one] = np.polyval(model.eq_data[i, 4::-1], data.qpos[two] - model.qpos0[two])
                data.qpos[one] += model.qpos0[one]
        lower, upper = np.where(
            model.jnt_limited[joints].astype(bool), model.jnt_range[joints].T, [[-np.inf], [np.inf]]
        )
        return PathJudge(
            model=model,
            data=data,
            qpos=model.jnt_qposadr[joints],
            lower=lower,
            upper=upper,
            velocity=np.asarray(velocity, np.float64),
            may=_may_touch(model, robot),
            dt=dt,
        )

    def __call__(self, arm: Float[np.ndarray, "H A"]) -> bool:
        """Whether a motion is within limits and touches nothing; not for NaN."""
        arm = np.asarray(arm, np.float64)
        if not (np.isfinite(arm).all() and self.within(arm[None])[0]):
            return False
        share = np.arange(BETWEEN)[:, None, None] / BETWEEN
        postures = np.concatenate([arm[-1:], *(arm[:-1] + share * np.diff(arm, axis=0))])
        coarse = np.argsort(np.arange(len(postures)) % 8, kind="stable")  # what collides is found sooner
        return all(self.clear(postures[i]) for i in coarse)

    def within(self, arm: Float[np.ndarray, "N H A"]) -> Bool[np.ndarray, "N"]:
        """Whether motions are within the limits on joints and velocities."""
        inside = np.all((arm >= self.lower - LIMIT) & (arm <= self.upper + LIMIT), axis=(1, 2))
        speed = np.abs(np.diff(arm, axis=1)) / self.dt
        return inside & np.all(speed <= self.velocity * (1 + SPEED), axis=(1, 2))

    def clear(self, posture: Float[np.ndarray, "A"]) -> bool:
        """Whether the robot touches neither the scene nor itself at one posture of the arm."""
        import mujoco

        self.data.qpos[self.qpos] = posture
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)
        if not self.data.ncon:
            return True
        a, b = self.data.contact.geom.T
        return bool(np.all((self.data.contact.dist >= -PENETRATION) | self.may[a, b]))


def _may_touch(model: mujoco.MjModel, robot: Embodiment) -> Bool[np.ndarray, "G G"]:
    """Pairs of geoms of the hand, and of bodies that touch in every posture."""
    hand = np.zeros(model.nbody, bool)
    for body in range(1, model.nbody):  # parents come first
        hand[body] = body == model.body(robot.tool).id or hand[model.body_parentid[body]]
    pairs = hand[:, None] & hand
    for one, two in robot.contacts.always:
        a, b = model.body(one).id, model.body(two).id
        pairs[a, b] = pairs[b, a] = True
    return pairs[np.ix_(model.geom_bodyid, model.geom_bodyid)]
