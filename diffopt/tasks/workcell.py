"""A task's scene with a floating gripper or a real arm in it, in C MuJoCo, driven by one command per control period.

    cell = Workcell(task)                                    # floating gripper; Workcell(task, robot) for an arm
    episode = cell.start(seed)
    while not episode.over:
        episode.move(Command(pose=..., opening=...))         # an arm: episode.move_joints(q, opening)
        episode.observe()

Between two commands targets go linearly. An arm's targets never move faster than its velocity limits; its servos have the torque
limits of its model. Its links are left out of the pictures, as if they were masked: a policy that only ever saw a gripper sees the
same on every arm (`show_arm=True` leaves them in).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import mujoco
import numpy as np
from jaxtyping import Float, UInt8

from diffopt.geometry import Pose
from diffopt.physics.cameras import HIDDEN, Cameras
from diffopt.physics.engine import matrix_to_quaternion
from diffopt.physics.protocol import Contact, Options, exclude_fixed, set_contact, set_options
from diffopt.policies.observation import Observation
from diffopt.robots.embodiment import Embodiment
from diffopt.tasks.arm_motion import Arm, wrist_pose
from diffopt.tasks.arm_servo import approach
from diffopt.tasks.gripper import FINGER, GOAL, OPEN, TOOL, between, floating_spec
from diffopt.tasks.script import PERIOD, Command
from diffopt.tasks.visuomotor import CAMERAS, TOOL_CAMERA, Task

OPTIONS = Options(gravity=(0.0, 0.0, -9.81))
CONTACT = Contact(friction=(1.0, 0.02, 1e-4))
STEPS = round(PERIOD / OPTIONS.timestep)
REACH = 0.002  # [m] how near an arm has to get to the start pose; a radian counts 0.1 m


class Unreachable(Exception):
    """An arm cannot bring its gripper to where the episode starts."""


class Workcell:
    """The compiled scene, shared by its episodes. `close` it when nothing is rendered any more."""

    def __init__(
        self,
        task: Task,
        robot: Embodiment | None = None,
        *,
        size: int = 64,
        show_arm: bool = False,
        render: bool = True,
        weak: float = 1.0,
    ) -> None:
        """
        Args:
          robot: an arm with the parallel gripper, its base in place; None for the floating gripper.
          size: height and width of the pictures [pixel].
          show_arm: whether the arm's links are in the pictures.
          weak: share of the torque limits of the arm's servos that they have.
          render: whether there are pictures at all; without, no OpenGL is needed.
        Raises:
          ValueError: the robot carries another hand.
          NoOpenGL: pictures are wanted, and there is no off-screen OpenGL.
        """
        if robot is not None and (robot.tool, robot.hand) != (TOOL, (FINGER,)):
            raise ValueError(
                f"{robot.name!r} moves {robot.tool!r} and {', '.join(robot.hand) or 'no hand'}; visuomotor tasks need the parallel "
                "gripper: panda-gripper, xarm7-gripper, ur5e-gripper, ..."
            )
        self.task, self.robot = task, robot
        spec = floating_spec() if robot is None else robot.model_spec()
        if robot is not None and not show_arm:
            hand = {geom.name for geom in spec.body(TOOL).find_all("geom")}
            for geom in spec.geoms:
                if geom.name not in hand:
                    geom.group = HIDDEN
        tool = spec.body(TOOL)
        tilt = np.deg2rad(28.0)
        tool.add_camera(  # beside the hand, looking along the fingers and slightly towards them
            name=TOOL_CAMERA, pos=(0.085, 0.0, 0.035), quat=_look(tilt), fovy=80.0
        )
        task.add_to(spec)
        set_options(spec, OPTIONS)
        set_contact(spec, CONTACT, hand=TOOL)
        exclude_fixed(spec)
        self.model: mujoco.MjModel = spec.compile()
        self.arm = None if robot is None else Arm.of(self.model, robot.arm, robot.hand, robot.tool)
        if self.arm is not None:
            self.model.actuator_forcerange[self.arm.servos] *= weak
        self._robot_geoms, self._fixed_geoms = _sides(self.model)
        self.cameras = Cameras(self.model, CAMERAS, size) if render else None
        self.size = size

    @cached_property
    def finger_servo(self) -> int:
        """Index in ctrl."""
        return int(self.model.actuator(FINGER).id)

    @cached_property
    def lag(self) -> Float[np.ndarray, "A"]:
        """Time constants of the arm's servos [s]: of a stiff position servo, its damping over its stiffness."""
        assert self.arm is not None
        servos = self.arm.servos
        return -self.model.actuator_biasprm[servos, 2] / self.model.actuator_gainprm[servos, 0]

    def start(self, seed: int, joints: Float[np.ndarray, "A"] | None = None) -> Episode:
        """A new episode with the placements of that seed.

        Args:
          joints: posture of the arm at the start [rad]; default one whose gripper is where the floating one would be.
        Raises:
          Unreachable: the arm cannot get there.
        """
        data, tool = self.scene(seed)
        if self.arm is None:
            free = data.joint("gripper_free")
            free.qpos[:3], free.qpos[3:] = tool.position, matrix_to_quaternion(tool.rotation)
            self.set_goal(data, tool)
            posture = None
        else:
            posture = self.reach(tool, data) if joints is None else np.asarray(joints, float)
            data.qpos[self.arm.joints] = posture
            data.ctrl[self.arm.servos] = posture
        mujoco.mj_forward(self.model, data)
        return Episode(cell=self, data=data, seed=seed, command=Command(pose=tool, opening=OPEN), joints=posture)

    def scene(self, seed: int) -> tuple[mujoco.MjData, Pose]:
        """Everything but the robot placed as that seed says, the gripper open; and T_world_tool at the start."""
        data = mujoco.MjData(self.model)
        tool = self.task.place(data, np.random.default_rng([seed, 0]))
        data.joint(FINGER).qpos[0] = data.joint("gripper_right").qpos[0] = OPEN
        data.ctrl[self.finger_servo] = OPEN
        mujoco.mj_kinematics(self.model, data)
        return data, tool

    def move_base(self, base: Pose) -> None:
        """Put the arm elsewhere, T_world_base: what a new workcell would do, without compiling or another OpenGL context."""
        if self.robot is None:
            raise ValueError("a floating gripper has no base to move")
        spec = replace(self.robot, base=base).model_spec()
        for body in spec.worldbody.bodies:
            part = self.model.body(body.name)
            part.pos[:], part.quat[:] = body.pos, body.quat
        self.robot = self.robot.at(base)

    def set_goal(self, data: mujoco.MjData, tool: Pose) -> None:
        """Where the floating gripper is pulled to."""
        index = self.model.body(GOAL).mocapid[0]
        data.mocap_pos[index], data.mocap_quat[index] = tool.position, matrix_to_quaternion(tool.rotation)

    def reach(self, tool: Pose, data: mujoco.MjData, tries: int = 32) -> Float[np.ndarray, "A"]:
        """A posture of the arm with its gripper at `tool` that touches nothing that stands fast, preferably far from its joint limits.

        Args:
          data: where everything else stands; it is not changed.
          tries: postures to start from.
        Raises:
          Unreachable: none was found.
        """
        assert self.robot is not None and self.arm is not None
        scratch = mujoco.MjData(self.model)
        scratch.qpos[:] = data.qpos
        scratch.qpos[self.arm.hand_joints] = OPEN
        scratch.mocap_pos[:], scratch.mocap_quat[:] = data.mocap_pos, data.mocap_quat
        starts = [np.asarray(self.robot.home), *np.asarray(self.robot.nearest_seeds(tool, tries - 1))]
        best, margin = None, 0.0
        for start in starts:
            q, error = approach(self.model, scratch, self.arm, start, tool, iterations=60)
            room = float(np.minimum(q - self.arm.lower, self.arm.upper - q).min())
            if error < REACH and room > margin and not self._hits_at(scratch, q):
                best, margin = q, room
            if margin > 0.3:
                break
        if best is None:
            raise Unreachable(f"{self.robot.name!r} cannot reach {np.round(tool.position, 3)} at its base")
        return best

    def _hits_at(self, scratch: mujoco.MjData, q: np.ndarray) -> bool:
        assert self.arm is not None
        scratch.qpos[self.arm.joints] = q
        mujoco.mj_fwdPosition(self.model, scratch)
        return self.hits(scratch)

    def hits(self, data: mujoco.MjData) -> bool:
        """Whether the robot touches anything that stands fast in the scene."""
        pairs = data.contact.geom[: data.ncon]
        robot, fixed = self._robot_geoms[pairs], self._fixed_geoms[pairs]
        return bool(np.any(robot[:, 0] & fixed[:, 1] | robot[:, 1] & fixed[:, 0]))

    def close(self) -> None:
        if self.cameras is not None:
            self.cameras.close()


def _sides(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Which geoms belong to the robot (the tree that the gripper hangs in), and which to things that stand fast."""
    root = model.body_rootid[model.body(TOOL).id]
    body = model.geom_bodyid
    robot = model.body_rootid[body] == root
    fixed = ((model.body_weldid[body] == 0) | (model.body_mocapid[body] >= 0)) & ~robot
    return robot, fixed


def _look(tilt: float) -> Float[np.ndarray, "4"]:
    """Orientation in the tool's frame of a camera that looks along z, turned by `tilt` [rad] towards -x, its right hand side +y."""
    c, s = np.cos(tilt), np.sin(tilt)
    forward, right = np.array([-s, 0.0, c]), np.array([0.0, 1.0, 0.0])
    return matrix_to_quaternion(np.stack([right, np.cross(right, forward) * -1.0, -forward], axis=1))


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is seen at one time: pictures of all cameras, T_world_tool, the measured opening [m]."""

    images: UInt8[np.ndarray, "C h w 3"]
    tool: Pose
    opening: float


@dataclass(kw_only=True)
class Episode:
    """One run in a workcell.

    Attributes:
      data: the state. seed: of the placements.
      command: the last one of the gripper. joints: the last commanded posture of an arm [rad].
      wanted: the same before it was cut to the arm's ranges and velocity limits [rad].
      held_back: largest amount by which velocity limits cut a joint command [rad]; missed: largest distance of a tool command from
        what the arm could be told [m].
      hits: periods in which the robot touched something that stands fast.
    """

    cell: Workcell
    data: mujoco.MjData
    seed: int
    command: Command
    joints: Float[np.ndarray, "A"] | None = None
    wanted: Float[np.ndarray, "A"] | None = None
    held_back: float = 0.0
    missed: float = 0.0
    hits: int = 0

    @property
    def time(self) -> float:
        """[s]"""
        return float(self.data.time)

    @property
    def success(self) -> bool:
        return not self.diverged and self.cell.task.success(self.data)

    @property
    def diverged(self) -> bool:
        """Whether the simulation has broken down."""
        return bool(np.any(self.data.warning.number))

    @property
    def over(self) -> bool:
        return self.success or self.diverged or self.time > self.cell.task.time_limit - 1e-6

    @property
    def tool(self) -> Pose:
        """T_world_tool, as it is."""
        body = self.data.body(TOOL)
        return Pose(position=body.xpos.copy(), rotation=body.xmat.reshape(3, 3).copy())

    @property
    def posture(self) -> Float[np.ndarray, "A"]:
        """Joints of an arm, as they are [rad]."""
        assert self.cell.arm is not None
        return np.array(self.data.qpos[self.cell.arm.joints])

    @property
    def opening(self) -> float:
        """Of the gripper, as it is [m]."""
        return float(self.data.joint(FINGER).qpos[0])

    def tool_at(self, joints: Float[np.ndarray, "A"]) -> Pose:
        """T_world_tool if an arm's joints were there [rad]."""
        assert self.cell.arm is not None
        position, rotation = wrist_pose(self.cell.model, self._scratch, self.cell.arm, joints)
        return Pose(position=position, rotation=rotation)

    def move(self, command: Command) -> None:
        """One control period towards a tool pose: the floating gripper is pulled there, an arm follows by `arm_servo`."""
        if self.cell.arm is None:
            self._run(command, None)
            return
        scratch = self._scratch
        scratch.qpos[:] = self.data.qpos
        q, error = approach(self.cell.model, scratch, self.cell.arm, self.joints, command.pose)
        self.missed = max(self.missed, error)
        self._run(command, q)

    def move_joints(self, joints: Float[np.ndarray, "A"], opening: float) -> None:
        """One control period of an arm towards a posture [rad]."""
        if self.cell.arm is None:
            raise ValueError("a floating gripper has no joints to move; use move(Command(...))")
        self._run(replace(self.command, opening=float(opening)), np.asarray(joints, float))

    def moment(self) -> Moment:
        """What the cameras and encoders say now."""
        size, cameras = self.cell.size, self.cell.cameras
        images = np.zeros((0, size, size, 3), np.uint8) if cameras is None else cameras.render(self.data)
        return Moment(images=images, tool=self.tool, opening=self.opening)

    @cached_property
    def _scratch(self) -> mujoco.MjData:
        return mujoco.MjData(self.cell.model)

    def _run(self, command: Command, goal: Float[np.ndarray, "A"] | None) -> None:
        cell, data, last = self.cell, self.data, self.command
        grip = float(np.clip(command.opening, 0.0, OPEN))
        arm, start, step = cell.arm, self.joints, np.zeros(0)
        if arm is not None and cell.robot is not None and goal is not None:
            self.wanted = goal
            goal = np.clip(goal, arm.lower, arm.upper)
            most = np.asarray(cell.robot.velocity, float) * PERIOD
            step = np.clip(goal - start, -most, most)
            self.held_back = max(self.held_back, float(np.abs(goal - start - step).max()))
        touched = False
        for k in range(1, STEPS + 1):
            share = k / STEPS
            data.ctrl[cell.finger_servo] = last.opening + share * (grip - last.opening)
            if arm is None or start is None:
                cell.set_goal(data, between(last.pose, command.pose, share))
            else:
                data.ctrl[arm.servos] = start + share * step
            mujoco.mj_step(cell.model, data)
            touched = touched or cell.hits(data)
        mujoco.mj_forward(cell.model, data)
        self.hits += touched
        self.joints = None if start is None else start + step
        self.command = replace(command, opening=grip)


def observation(moments: Sequence[Moment]) -> Observation:
    """The last moments, the present one last, as a policy observes them."""
    return Observation(
        images=np.stack([m.images for m in moments]),
        position=np.stack([m.tool.position for m in moments]).astype(np.float32),
        rotation=np.stack([m.tool.rotation for m in moments]).astype(np.float32),
        joints=np.array([[m.opening] for m in moments], np.float32),
    )
