"""The shipped arms and hands, one entry each. A new entry is at once a robot of its own and a part of all combinations.

A hand is mounted in a frame that an arm offers: z out of the flange, and x away from the base in the arm's home posture, where the
palm's normal is to point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffopt.geometry import Pose
from diffopt.robots import mjcf
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.embodiments import MODELS


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm: `models/<name>.xml`, whose last body is `flange`.

    Attributes:
      velocity: rated joint velocities [rad/s].
      home: a comfortable posture [rad], the flange looking down.
      turn: of the frame offered to hands about the flange's z [rad].
      tolerance: of its collision spheres [m]: its capsules are good to about this.
    """

    velocity: Mapping[str, float]
    home: Mapping[str, float]
    turn: float
    tolerance: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Hand:
    """A hand: `models/<name>.xml`, whose root body is `tool`.

    Attributes:
      tool: the palm.
      rotation, position: T_mount_tool, or T_mount_stem [m].
      stem: model that comes between the arm and the hand, which hangs on its body `stem_end`.
      home: posture [rad, m] where it is not zero; the stem's joints too.
      velocity: rated velocities of the stem's joints [rad/s], which are the arm's.
      tolerance: of its collision spheres [m].
      turns: by arm, turn about the flange's z [rad] instead of the arm's own.
    """

    tool: str
    rotation: tuple[tuple[float, float, float], ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    position: tuple[float, float, float] = (0, 0, 0)
    stem: str = ""
    stem_end: str = ""
    home: Mapping[str, float] = field(default_factory=dict)
    velocity: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.005
    turns: Mapping[str, float] = field(default_factory=dict)


_PANDA = tuple(f"panda_joint{i}" for i in range(1, 8))
_XARM = tuple(f"xarm_joint{i}" for i in range(1, 8))
_UR5E = (
    *("shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint"),
    *("wrist_1_joint", "wrist_2_joint", "wrist_3_joint"),
)

ARMS: dict[str, Arm] = {
    # Velocities: Franka Emika Panda data sheet (the same in moveit_resources, panda_moveit_config). Home: MuJoCo Menagerie's panda.xml.
    "panda": Arm(
        velocity=dict(zip(_PANDA, (2.175,) * 4 + (2.61,) * 3, strict=True)),
        home=dict(zip(_PANDA, (0.0, 0.0, 0.0, -1.57079, 0.0, 1.57079, -0.7853), strict=True)),
        turn=np.pi / 4,
    ),
    # Velocities: 180 degrees/s in every joint, Universal Robots' ur_description (config/ur5e/joint_limits.yaml), which cites the UR5e user
    # manual 5.8. Home: MuJoCo Menagerie's ur5e.xml.
    "ur5e": Arm(
        velocity=dict.fromkeys(_UR5E, np.pi),
        home=dict(zip(_UR5E, (-1.5708, -1.5708, 1.5708, -1.5708, -1.5708, 0.0), strict=True)),
        turn=-np.pi / 2,
    ),
    # Velocities: 180 degrees/s in every joint, UFACTORY's user manual, 8.1 (xArm5/6/7, "maximum joint speed"). Home: MuJoCo Menagerie's
    # xarm7.xml.
    "xarm7": Arm(
        velocity=dict.fromkeys(_XARM, np.pi),
        home=dict(zip(_XARM, (0.0, -0.247, 0.0, 0.909, 0.0, 1.15644, 0.0), strict=True)),
        turn=0.0,
    ),
}

HANDS: dict[str, Hand] = {
    # The palm's box ends 95 mm below its frame, and stands on the flange.
    "allegro": Hand(tool="palm", position=(0, 0, 0.095)),
    "barrett": Hand(tool="bh_palm", tolerance=0.015),
    # Franka's own gripper, mounted as Franka does on its own arm.
    "gripper": Hand(tool="gripper", home={"gripper_left": 0.04}, tolerance=0.008, turns={"panda": -np.pi / 4}),
    # Fingers along x and the palm's normal along -z: the heel (x = -0.1) stands on an adapter of 2 cm.
    "leap": Hand(
        tool="palm", rotation=((0, 0, -1), (0, 1, 0), (1, 0, 0)), position=(-0.0115, 0.035, 0.12), tolerance=0.012
    ),
    # The wrist is in the forearm's model: on an arm, its two joints help to place the palm. Their velocities: Shadow Robot's
    # sr_description (wrist.urdf.xacro, palm_e.urdf.xacro).
    "shadow": Hand(
        tool="rh_palm",
        stem="shadow_forearm",
        stem_end="rh_mount",
        home={"rh_WRJ1": 0.0, "rh_WRJ2": 0.0},
        velocity={"rh_WRJ1": 2.0, "rh_WRJ2": 2.0},
        tolerance=0.01,
    ),
}


def alone(name: str, bodies: str = "spheres") -> Embodiment:
    """An arm whose flange is the tool, or a hand fixed at its palm."""
    if name in ARMS:
        arm = ARMS[name]
        return Embodiment.from_mjcf(
            MODELS / f"{name}.xml",
            tool="flange",
            name=name,
            velocity=arm.velocity,
            velocity_from="data sheet",
            home=arm.home,
            tolerance=arm.tolerance,
            bodies=bodies,
        )
    hand = HANDS[name]
    home = {} if hand.stem else hand.home
    return Embodiment.from_mjcf(
        MODELS / f"{name}.xml", tool=hand.tool, name=name, home=home, tolerance=hand.tolerance, bodies=bodies
    )


def combine(arm: str, hand: str, bodies: str = "spheres") -> Embodiment:
    """An arm that carries a hand."""
    carrier, carried = ARMS[arm], HANDS[hand]
    spec, _ = mjcf.read(MODELS / f"{arm}.xml")
    tolerance = {b.name: carrier.tolerance for b in spec.bodies if b.name not in ("", "world")} | {
        "": carried.tolerance
    }
    angle = carried.turns.get(arm, carrier.turn)
    c, s = np.cos(angle), np.sin(angle)
    turned = Pose(position=np.zeros(3), rotation=np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]))
    mount = turned @ Pose(position=np.array(carried.position, float), rotation=np.array(carried.rotation, float))
    source: mjcf.Source = MODELS / f"{arm}.xml"
    to = "flange"
    if carried.stem:
        source, to = mjcf.join(source, MODELS / f"{carried.stem}.xml", to="flange", pose=mount), carried.stem_end
        mount = Pose.identity()
    return Embodiment.attach(
        source,
        MODELS / f"{hand}.xml",
        mount,
        to=to,
        tool=carried.tool,
        name=f"{arm}-{hand}",
        velocity={**carrier.velocity, **carried.velocity},
        velocity_from="data sheet",
        home={**carrier.home, **carried.home},
        tolerance=tolerance,
        bodies=bodies,
    )
