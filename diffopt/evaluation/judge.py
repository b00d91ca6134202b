"""The independent judge: is a planned grasp kinematically executable by the arm? Decided by C MuJoCo alone.

Nothing of the samplers' code takes part: kinematics are `mj_kinematics`, collisions `mj_collision` on the exact geoms (the samplers see
spheres and signed distances), limits those of the compiled model, closed chains those of MuJoCo's equality constraints. What may differ
from plan to plan, the room of a reach, cones and boxes of the tool, is read from the constraints and measured by `allowance`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from diffopt.evaluation.allowance import Allowance
from diffopt.physics.engine import matrix_to_quaternion
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment

if TYPE_CHECKING:
    import mujoco

REACH_POSITION = 2e-3  # [m]
REACH_ROTATION = np.deg2rad(1.0)
LIMIT = 1e-3  # [rad]
PENETRATION = 1e-3  # [m]
CONE = np.deg2rad(1.0)
BOX = 2e-3  # [m]
LOOP = 1e-3  # [m, rad]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one plan.

    Attributes:
      reach_position, reach_rotation: from the planned wrist, or from the room about it, to the tool at the planned joints [m], [rad].
      limit: how far the worst joint is beyond its limits [rad].
      scene, itself: deepest penetration of the robot into the scene (of the arm into the object, too), and of the robot, hand
        against hand and pairs that always touch (`robot.contacts.always`) left out, into itself [m].
      cone, box: how far the tool is out of the worst of its orientation cones [rad] and workspace boxes [m]; negative within.
      loop: how far the worst closed chain of the robot is open [m or rad].
    """

    reach_position: float
    reach_rotation: float
    limit: float
    scene: float
    itself: float
    cone: float = 0.0
    box: float = 0.0
    loop: float = 0.0

    @property
    def feasible(self) -> bool:
        """Whether all of them are within the module's tolerances; not for NaN."""
        return bool(
            self.reach_position <= REACH_POSITION
            and self.reach_rotation <= REACH_ROTATION
            and self.limit <= LIMIT
            and self.scene <= PENETRATION
            and self.itself <= PENETRATION
            and self.cone <= CONE
            and self.box <= BOX
            and self.loop <= LOOP
        )


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A robot in a scene, compiled once for any number of plans; made by `Judge.of`."""

    robot: Embodiment
    model: mujoco.MjModel
    data: mujoco.MjData
    allowance: Allowance = field(default_factory=Allowance)

    @staticmethod
    def of(robot: Embodiment, scene: Any, constraints: Iterable[Any] = ()) -> Judge:
        """The judge of a robot, its base in place, in a scene with an object (`diffopt.scenes.Scene`).

        Args:
          constraints: of the plans, of which the room of a `TolerantReach`, orientation cones and workspace boxes are judged; without
            them the full pose of the wrist is asked for.
        """
        import mujoco

        spec = robot.model_spec(scene)
        if scene.object is not None:
            scene.object.add_to(spec, name="object", mass=None)
        model = spec.compile()
        data = mujoco.MjData(model)
        if scene.object is not None:
            start = model.jnt_qposadr[model.body("object").jntadr[0]]
            data.qpos[start : start + 3] = np.asarray(scene.placement.position)
            data.qpos[start + 3 : start + 7] = matrix_to_quaternion(np.asarray(scene.placement.rotation, float))
        return Judge(robot=robot, model=model, data=data, allowance=Allowance.of(constraints))

    def __call__(self, grasp: Grasp, joints: Float[np.ndarray, "A"]) -> Verdict:
        """The verdict on one grasp (unbatched) and the arm's joints that are to realise it."""
        import mujoco

        model, data = self.model, self.data
        values = np.concatenate([np.asarray(joints, float), np.asarray(grasp.joints, float)])
        wrist = np.concatenate([np.ravel(grasp.position), np.ravel(grasp.rotation)])
        if not (np.isfinite(values).all() and np.isfinite(wrist).all()):
            return Verdict(
                **dict.fromkeys(("reach_position", "reach_rotation", "limit", "scene", "itself"), float("nan"))
            )
        ids = [model.joint(name).id for name in (*self.robot.arm, *self.robot.hand)]
        data.qpos[model.jnt_qposadr[ids]] = values
        if (
            self.robot.followers
        ):  # a scene's couplings are soft in physics; the judge looks at the posture that satisfies them
            whole = np.asarray(self.robot.qpos(np.asarray(joints, np.float32), np.asarray(grasp.joints, np.float32)))
            for name in self.robot.followers:
                data.qpos[model.jnt_qposadr[model.joint(name).id]] = whole[self.robot.kinematics.joint(name).qpos]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        tool = data.body(self.robot.tool)
        arm = ids[: len(self.robot.arm)]
        low, high = model.jnt_range[arm].T
        limited = model.jnt_limited[arm].astype(bool)
        excess = np.where(limited, np.maximum(low - values[: len(arm)], values[: len(arm)] - high), 0.0)
        scene, itself = self._penetrations()
        pose = np.array(tool.xpos), np.array(tool.xmat).reshape(3, 3)
        planned = np.asarray(grasp.position, float), np.asarray(grasp.rotation, float)
        position, rotation = self.allowance.missed(planned, pose)
        cone, box = self.allowance.outside(pose)
        return Verdict(
            reach_position=position,
            reach_rotation=rotation,
            limit=float(max(excess.max(initial=0.0), 0.0)),
            scene=scene,
            itself=itself,
            cone=cone,
            box=box,
            loop=self._open(),
        )

    def _open(self) -> float:
        """The largest residual of MuJoCo's `connect` and `weld` equalities [m, and the sine of half an angle times the file's scale]."""
        import mujoco

        model, data = self.model, self.data
        kinds = [int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD)]
        if not np.isin(model.eq_type, kinds).any():
            return 0.0
        mujoco.mj_makeConstraint(model, data)
        rows = data.efc_type == mujoco.mjtConstraint.mjCNSTR_EQUALITY
        loops = rows & np.isin(model.eq_type[np.where(rows, data.efc_id, 0)], kinds)
        return float(np.abs(data.efc_pos[loops]).max(initial=0.0))

    def _penetrations(self) -> tuple[float, float]:
        """Deepest penetration of the robot into the scene and into itself, of the contacts in `data`."""
        model, data = self.model, self.data
        hand, arm = self._bodies()
        touching = {frozenset(model.body(name).id for name in pair) for pair in self.robot.contacts.always}
        scene = itself = 0.0
        for contact in data.contact[: data.ncon]:
            a, b = (int(model.geom_bodyid[g]) for g in contact.geom)
            mine = [x for x in (a, b) if x in hand or x in arm]
            depth = max(-float(contact.dist), 0.0)
            if frozenset((a, b)) in touching:
                continue
            if len(mine) == 2 and not (a in hand and b in hand):
                itself = max(itself, depth)
            elif len(mine) == 1:
                other = b if mine[0] == a else a
                fixed = model.body_weldid[other] == 0
                if fixed or mine[0] in arm:  # the hand may touch the object
                    scene = max(scene, depth)
        return scene, itself

    def _bodies(self) -> tuple[set[int], set[int]]:
        """The bodies of the hand (the tool and below) and of the arm."""
        model = self.model
        tool, root = model.body(self.robot.tool).id, model.body_rootid[model.body(self.robot.tool).id]
        hand, arm = set(), set()
        for b in range(1, model.nbody):
            if model.body_rootid[b] != root:
                continue
            above = b
            while above > 0 and above != tool:
                above = int(model.body_parentid[above])
            (hand if above == tool else arm).add(b)
        return hand, arm
