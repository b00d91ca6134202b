"""Peg: a square peg stands on the right of the table and has to get into a narrow socket on the left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.tasks import furniture
from diffopt.tasks.gripper import FINGER, OPEN, downward, pinching
from diffopt.tasks.script import Waypoint
from diffopt.tasks.visuomotor import SCENE_CAMERA, standing

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True, kw_only=True)
class Peg:
    """Lengths in metres, angles in radians.

    Attributes:
      width, length: of the peg. clearance: between the peg in the middle of the socket and its wall. depth: of the socket.
      peg_region, socket_region: ranges (lowest x, highest x, lowest y, highest y) of the placements.
      yaw: largest turn of the peg; the socket is not turned.
    """

    name: str = "peg"
    time_limit: float = 15.0
    width: float = 0.03
    length: float = 0.09
    clearance: float = 0.008
    depth: float = 0.05
    peg_region: tuple[float, float, float, float] = (-0.06, 0.06, -0.17, -0.07)
    socket_region: tuple[float, float, float, float] = (-0.05, 0.05, 0.08, 0.16)
    yaw: float = 0.3

    def add_to(self, spec: mujoco.MjSpec) -> None:
        furniture.add_table(spec)
        peg = spec.worldbody.add_body(name="peg")
        peg.add_freejoint(name="peg")
        half = (self.width / 2, self.width / 2, self.length / 2)
        furniture.add_box(peg, half, colour=(0.95, 0.55, 0.1), mass=0.06, name="peg")
        socket, wall, h = spec.worldbody.add_body(name="socket", mocap=True), 0.015, self.depth / 2
        inner = self.width / 2 + self.clearance
        green = (0.15, 0.6, 0.3)
        for side in (-1.0, 1.0):
            furniture.add_box(socket, (wall, inner + 2 * wall, h), (side * (inner + wall), 0, h), green)
            furniture.add_box(socket, (inner, wall, h), (0, side * (inner + wall), h), green)
        furniture.add_camera(spec, SCENE_CAMERA, (0.55, 0.0, 0.5), (0.0, 0.0, 0.04), 40.0)

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        lower, upper = np.array(self.peg_region).reshape(2, 2).T
        place = np.array([*rng.uniform(lower, upper), self.length / 2])
        furniture.set_free(data, "peg", place, rng.uniform(-self.yaw, self.yaw))
        lower, upper = np.array(self.socket_region).reshape(2, 2).T
        furniture.set_mocap(data, "socket", np.array([*rng.uniform(lower, upper), 0.0]))
        point = rng.uniform((-0.06, -0.1, 0.2), (0.06, 0.06, 0.25))
        return pinching(point, downward(rng.uniform(-0.3, 0.3), tuple(rng.uniform(-0.1, 0.1, 2))))

    def success(self, data: mujoco.MjData) -> bool:
        """The peg stands in the socket, and the gripper has let go of it."""
        peg, socket = data.body("peg"), data.body("socket").xpos
        inside = bool((np.abs(peg.xpos[:2] - socket[:2]) < self.clearance + 0.01).all())
        low = float(peg.xpos[2]) < self.length / 2 + 0.01 and float(peg.xmat[8]) > 0.95
        return inside and low and float(data.joint(FINGER).qpos[0]) > self.width / 2 + 0.004

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        w, _, _, z = data.body("peg").xquat
        grasp, straight = downward(2.0 * np.arctan2(z, w)), downward(0.0)
        peg, socket = data.body("peg").xpos.copy(), data.body("socket").xpos.copy()
        grip = rng.uniform(0.012, 0.022)  # above the peg's middle
        over, carry = rng.uniform(0.07, 0.11), rng.uniform(0.09, 0.12)
        middle = np.array([0.0, 0.0, self.length / 2 + grip])

        def at(point: np.ndarray, R: np.ndarray, height: float = 0.0):
            pose = pinching(point + np.array([0.0, 0.0, height]), R)
            return lambda _: pose

        pick, drop = np.array([*peg[:2], 0.0]) + middle, np.array([*socket[:2], 0.0]) + middle
        return (
            Waypoint(target=at(pick, grasp, over), opening=OPEN, tolerance=0.015),
            Waypoint(target=at(pick, grasp), opening=OPEN, dwell=1, speed=0.25),
            Waypoint(target=at(pick, grasp), opening=0.0, dwell=3),
            Waypoint(target=at(pick, grasp, carry), opening=0.0, tolerance=0.02, speed=0.3),
            Waypoint(target=at(drop, straight, carry), opening=0.0, tolerance=0.006),
            Waypoint(target=at(drop, straight, self.depth + 0.015), opening=0.0, tolerance=0.003, speed=0.25),
            Waypoint(target=at(drop, straight, 0.01), opening=0.0, dwell=1, speed=0.2),
            Waypoint(target=at(drop, straight, 0.01), opening=OPEN, dwell=2),
            Waypoint(target=at(drop, straight, 0.1), opening=OPEN, dwell=2),
        )

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        return np.stack([data.body("peg").xpos, data.body("socket").xpos])

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        return furniture.boxes(data, "socket")

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        return standing(data.body("peg").xpos, times)


TASK = Peg()
