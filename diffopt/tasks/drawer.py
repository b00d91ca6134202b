"""Drawer: a cabinet stands somewhere on the table, and its drawer has to be pulled open by the handle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.tasks import furniture
from diffopt.tasks.gripper import OPEN, downward, pinching, turn
from diffopt.tasks.script import Waypoint
from diffopt.tasks.visuomotor import SCENE_CAMERA, standing

if TYPE_CHECKING:
    import mujoco

_SIZE = (0.12, 0.1, 0.05)  # half extents of the cabinet [m]
_STAND = 0.075  # how far the handle's bar stands off the front [m]
_BAR = (0.006, 0.04, 0.006)
_HEIGHT = 0.1  # of the bar [m]


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Lengths in metres, angles in radians. The cabinet's front looks towards -x, where robots stand.

    Attributes:
      region: range (lowest x, highest x, lowest y, highest y) of the cabinet's place. yaw: its largest turn.
      opened: the drawer counts as open from here. friction: that of its slide [N].
      tilt: largest lean of the gripper in a demonstration.
    """

    name: str = "drawer"
    time_limit: float = 12.0
    region: tuple[float, float, float, float] = (0.16, 0.26, -0.12, 0.12)
    yaw: float = 0.35
    opened: float = 0.12
    travel: float = 0.16
    friction: float = 2.0
    tilt: float = 0.15

    def add_to(self, spec: mujoco.MjSpec) -> None:
        import mujoco

        furniture.add_table(spec)
        cabinet = spec.worldbody.add_body(name="cabinet", mocap=True)
        x, y, z = _SIZE
        furniture.add_box(cabinet, (x, y, z), (x, 0.0, z), (0.75, 0.6, 0.35))
        drawer = cabinet.add_body(name="drawer")
        drawer.add_joint(
            name="drawer",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(-1, 0, 0),
            range=(0.0, self.travel),
            limited=True,
            damping=[4.0, 0.0, 0.0],
            frictionloss=self.friction,
            armature=0.1,
        )
        furniture.add_box(drawer, (0.006, 0.085, 0.045), (-0.007, 0.0, 0.055), (0.2, 0.55, 0.3), mass=0.3, name="front")
        furniture.add_box(drawer, (0.09, 0.075, 0.035), (0.09, 0.0, 0.055), (0.3, 0.3, 0.3), solid=False)
        red, out = (0.85, 0.15, 0.15), -0.013 - _STAND
        furniture.add_box(drawer, _BAR, (out, 0.0, _HEIGHT), red, mass=0.05, name="handle")
        for side in (-1.0, 1.0):
            stem = (-0.013 - _STAND / 2, side * (_BAR[1] + 0.004), _HEIGHT)
            furniture.add_box(drawer, (_STAND / 2 + 0.006, 0.004, 0.006), stem, red, mass=0.02)
        furniture.add_camera(spec, SCENE_CAMERA, (-0.05, -0.6, 0.5), (0.05, 0.0, 0.06), 48.0)

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        lower, upper = np.array(self.region).reshape(2, 2).T
        furniture.set_mocap(
            data, "cabinet", np.array([*rng.uniform(lower, upper), 0.0]), rng.uniform(-self.yaw, self.yaw)
        )
        point = rng.uniform((-0.12, -0.12, 0.18), (0.0, 0.12, 0.26))
        return pinching(point, downward(rng.uniform(-0.4, 0.4) - np.pi / 2, tuple(rng.uniform(-0.15, 0.15, 2))))

    def success(self, data: mujoco.MjData) -> bool:
        return float(data.joint("drawer").qpos[0]) > self.opened

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        lean, roll = self.tilt * rng.uniform(-1.0, 1.0), 0.5 * self.tilt * rng.uniform(-1.0, 1.0)
        over, along = rng.uniform(0.05, 0.09), 0.5 * _BAR[1] * rng.uniform(-1.0, 1.0)
        deep, pulled = rng.uniform(-0.006, 0.0), rng.uniform(0.14, 0.15)
        cabinet = data.body("cabinet")
        w, *_, z = cabinet.xquat
        yaw = 2.0 * np.arctan2(z, w)
        R = turn(np.array([0.0, 0.0, yaw])) @ turn(np.array([roll, lean, 0.0])) @ downward(-np.pi / 2)

        def at(height: float = 0.0, out: float = 0.0):
            bar = np.array([-0.013 - _STAND - out, along, _HEIGHT + deep + height])
            pose = pinching(cabinet.xpos + cabinet.xmat.reshape(3, 3) @ bar, R)
            return lambda _: pose

        return (
            Waypoint(target=at(over), opening=OPEN, tolerance=0.01),
            Waypoint(target=at(), opening=OPEN, dwell=1, speed=0.2),
            Waypoint(target=at(), opening=0.0, dwell=3),
            Waypoint(target=at(out=pulled), opening=0.0, dwell=3, speed=0.2, lever=1.0, tolerance=0.03),
        )

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        """The middle of the handle and one end of it."""
        handle = data.geom("handle")
        return np.stack([handle.xpos, handle.xpos + _BAR[1] * handle.xmat.reshape(3, 3)[:, 1]])

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        """The table and the cabinet; the drawer's front and handle, which move and are to be touched, are not among them."""
        return furniture.boxes(data, "cabinet")

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        return standing(data.geom("handle").xpos, times)


TASK = Drawer()
