"""Conveyor catch: a block goes by on a belt and has to be lifted off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.tasks import furniture
from diffopt.tasks.gripper import LAG, OPEN, TOOL, downward, pinching
from diffopt.tasks.script import PERIOD, Waypoint
from diffopt.tasks.visuomotor import SCENE_CAMERA

if TYPE_CHECKING:
    import mujoco

_BELT = (0.09, 2.0, 0.02)  # half extents [m]: its ends are never seen
_TOP = 0.045  # of the belt [m]


@dataclass(frozen=True, kw_only=True)
class ConveyorCatch:
    """Lengths in metres, angles in radians, speeds in metres per second. The belt runs along y, away from negative y.

    Attributes:
      block: edge of the cube. speed: range of the belt's.
      region: range (lowest x, highest x, lowest y, highest y) of where the block starts. yaw: its largest turn.
      raised: height above the belt at which it counts as caught.
      tilt: largest tilt of the gripper in a demonstration.
    """

    name: str = "conveyor-catch"
    time_limit: float = 8.0
    block: float = 0.045
    speed: tuple[float, float] = (0.04, 0.08)
    region: tuple[float, float, float, float] = (-0.04, 0.04, -0.28, -0.18)
    yaw: float = np.pi / 8
    raised: float = 0.08
    tilt: float = 0.12

    def add_to(self, spec: mujoco.MjSpec) -> None:
        import mujoco

        furniture.add_table(spec)
        belt = spec.worldbody.add_body(name="belt", pos=(0.0, 0.0, _TOP - _BELT[2]))
        belt.add_joint(name="belt", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0, 1, 0))
        furniture.add_box(belt, _BELT, colour=(0.12, 0.12, 0.13), mass=200.0, name="belt")  # keeps its speed
        block = spec.worldbody.add_body(name="block")
        block.add_freejoint(name="block")
        furniture.add_box(block, (self.block / 2,) * 3, colour=(0.95, 0.75, 0.1), mass=0.08, name="block")
        furniture.add_camera(spec, SCENE_CAMERA, (0.62, 0.0, 0.55), (0.0, 0.0, 0.03), 42.0)

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        lower, upper = np.array(self.region).reshape(2, 2).T
        place = np.array([*rng.uniform(lower, upper), _TOP + self.block / 2])
        furniture.set_free(data, "block", place, rng.uniform(-self.yaw, self.yaw))
        speed = rng.uniform(*self.speed)
        data.joint("belt").qvel[0] = speed
        data.joint("block").qvel[1] = speed
        point = rng.uniform((-0.05, -0.05, 0.2), (0.05, 0.1, 0.26))
        return pinching(point, downward(rng.uniform(-0.3, 0.3), tuple(rng.uniform(-0.1, 0.1, 2))))

    def success(self, data: mujoco.MjData) -> bool:
        return float(data.body("block").xpos[2]) > _TOP + self.block / 2 + self.raised

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        w, _, _, z = data.body("block").xquat
        direction, size = rng.uniform(0, 2 * np.pi), self.tilt * rng.uniform()
        R = downward(2.0 * np.arctan2(z, w), (size * np.cos(direction), size * np.sin(direction)))
        grip, over, up = rng.uniform(0.002, 0.01), rng.uniform(0.07, 0.1), rng.uniform(0.12, 0.15)
        flow = (0.0, float(data.joint("belt").qvel[0]), 0.0)

        def ahead(height: float):
            lead = (PERIOD + 2 * LAG) * np.array(flow) + np.array([0.0, 0.0, height])
            return lambda data: pinching(data.body("block").xpos + lead, R)

        def above(data: mujoco.MjData) -> Pose:
            tool = data.body(TOOL).xpos
            return Pose(position=np.array([*tool[:2], pinching(np.zeros(3), R).position[2] + _TOP + up]), rotation=R)

        return (
            Waypoint(target=ahead(over), opening=OPEN, tolerance=0.015, flow=flow),
            Waypoint(target=ahead(grip), opening=OPEN, tolerance=0.004, speed=0.25, flow=flow),
            Waypoint(target=ahead(grip), opening=0.0, tolerance=0.02, dwell=2, flow=flow),
            Waypoint(target=above, opening=0.0, tolerance=0.02, dwell=3, speed=0.3),
        )

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        return data.body("block").xpos[None].copy()

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        return furniture.boxes(data, "belt")

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        """The block rides on the belt."""
        way = np.outer(times, [0.0, float(data.joint("belt").qvel[0]), 0.0])
        R = data.body("block").xmat.reshape(3, 3)
        return Pose(position=data.body("block").xpos + way, rotation=np.tile(R, (len(times), 1, 1)))


TASK = ConveyorCatch()
