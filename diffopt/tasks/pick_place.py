"""Pick and place: a block lies somewhere on the right of the table and has to get into a bin somewhere on the left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.tasks import furniture
from diffopt.tasks.gripper import FINGER, OPEN, TOOL, downward, pinching
from diffopt.tasks.script import Waypoint
from diffopt.tasks.visuomotor import SCENE_CAMERA, standing

if TYPE_CHECKING:
    import mujoco

_WALL = 0.004


@dataclass(frozen=True, kw_only=True)
class PickPlace:
    """Lengths in metres, angles in radians.

    Attributes:
      block: edge of the cube. bin: inner half width of the square bin. depth: height of its walls.
      block_region, bin_region: ranges (lowest x, highest x, lowest y, highest y) of the placements.
      yaw: largest turn of the block. tilt: largest tilt of the gripper in a demonstration.
    """

    name: str = "pick-place"
    time_limit: float = 15.0
    block: float = 0.045
    bin: float = 0.07
    depth: float = 0.05
    block_region: tuple[float, float, float, float] = (-0.1, 0.1, -0.2, -0.04)
    bin_region: tuple[float, float, float, float] = (-0.08, 0.08, 0.1, 0.2)
    yaw: float = np.pi / 4
    tilt: float = 0.15

    def add_to(self, spec: mujoco.MjSpec) -> None:
        furniture.add_table(spec)
        block = spec.worldbody.add_body(name="block")
        block.add_freejoint(name="block")
        furniture.add_box(block, (self.block / 2,) * 3, colour=(0.9, 0.2, 0.15), mass=0.08, name="block")
        bin, w, h = spec.worldbody.add_body(name="bin", mocap=True), self.bin + _WALL, self.depth / 2
        blue = (0.15, 0.35, 0.9)
        furniture.add_box(bin, (w, w, 0.002), (0, 0, 0.002), blue)
        for side in (-w, w):
            furniture.add_box(bin, (_WALL, w + _WALL, h), (side, 0, h), blue)
            furniture.add_box(bin, (w + _WALL, _WALL, h), (0, side, h), blue)
        furniture.add_camera(spec, SCENE_CAMERA, (0.62, 0.0, 0.55), (0.0, 0.0, 0.03), 42.0)

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        lower, upper = np.array(self.block_region).reshape(2, 2).T
        block, yaw = rng.uniform(lower, upper), rng.uniform(-self.yaw, self.yaw)
        lower, upper = np.array(self.bin_region).reshape(2, 2).T
        furniture.set_free(data, "block", np.array([*block, self.block / 2]), yaw)
        furniture.set_mocap(data, "bin", np.array([*rng.uniform(lower, upper), 0.0]))
        point = rng.uniform((-0.08, -0.12, 0.14), (0.08, 0.08, 0.22))
        return pinching(point, downward(rng.uniform(-0.4, 0.4), tuple(rng.uniform(-0.15, 0.15, 2))))

    def success(self, data: mujoco.MjData) -> bool:
        """The block is in the bin, at rest, and the gripper has let go of it."""
        away = data.body("block").xpos - data.body("bin").xpos
        speed = float(np.linalg.norm(data.joint("block").qvel[:3]))
        inside = bool((np.abs(away[:2]) < self.bin).all()) and away[2] < self.depth
        return inside and speed < 0.05 and float(data.joint(FINGER).qpos[0]) > self.block / 2 + 0.004

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        direction, size = rng.uniform(0, 2 * np.pi), self.tilt * rng.uniform()
        lean = (size * np.cos(direction), size * np.sin(direction))
        grip = rng.uniform(0.002, 0.01)
        over, carry, drop, leave = rng.uniform(0.08, 0.13), rng.uniform(0.1, 0.17), rng.uniform(0.06, 0.09), 0.16
        spot = np.array([*rng.uniform(-0.02, 0.02, 2), 0.0])
        bin = data.body("bin").xpos.copy()
        place = downward(_quarter(data), lean)

        def grasp(height: float):  # of the block, where it is now
            point = np.array([0.0, 0.0, grip + height])
            return lambda data: pinching(data.body("block").xpos + point, downward(_quarter(data), lean))

        def above(data: mujoco.MjData) -> Pose:
            tool = data.body(TOOL).xpos
            height = pinching(np.array([0.0, 0.0, self.block / 2 + grip + carry]), place).position[2]
            return Pose(position=np.array([*tool[:2], height]), rotation=place)

        def at(height: float):  # over the bin
            pose = pinching(bin + spot + np.array([0.0, 0.0, height]), place)
            return lambda _: pose

        def held(data: mujoco.MjData) -> bool:
            return float(data.joint(FINGER).qpos[0]) > 0.3 * self.block

        return (
            Waypoint(target=grasp(over), opening=OPEN, tolerance=0.02),
            Waypoint(target=grasp(0.0), opening=OPEN, dwell=1, speed=0.25),
            Waypoint(target=grasp(0.0), opening=0.0, dwell=3, tolerance=0.01),
            Waypoint(target=above, opening=0.0, tolerance=0.03, speed=0.3, check=held),
            Waypoint(target=at(carry + 0.03), opening=0.0, tolerance=0.02, check=held),
            Waypoint(target=at(drop), opening=0.0, dwell=1, speed=0.3, check=held),
            Waypoint(target=at(drop), opening=OPEN, dwell=2),
            Waypoint(target=at(leave), opening=OPEN, dwell=3),
        )

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        return np.stack([data.body("block").xpos, data.body("bin").xpos])

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        return furniture.boxes(data, "bin")

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        return standing(data.body("block").xpos, times)


def _quarter(data: mujoco.MjData) -> float:
    """Turn of the block about the vertical [rad], between -45 and 45 degrees: a cube looks the same after a quarter turn."""
    w, x, y, z = data.body("block").xquat
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return float((yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)


TASK = PickPlace()
