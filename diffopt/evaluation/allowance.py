"""What a plan is asked for beyond clearance and limits, as the judge looks at it: the room of its reach, cones and boxes of its tool.

Only the numbers are taken from the constraints; how far a pose is outside of them is computed here, in NumPy, by other formulas than the
constraints use: of the rotation from the planned wrist to the tool, R_plan' R_tool = S T, the turn T about the axis is found from the
quaternion (swing and twist), the nearest rotation within the room is composed of the clipped parts, and what is missed is the angle to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from diffopt.constraints.along import AtEveryKnot, ReachAlong
from diffopt.constraints.orientation_cone import OrientationCone
from diffopt.constraints.tolerant_reach import TolerantReach
from diffopt.constraints.workspace_box import WorkspaceBox
from diffopt.physics.engine import matrix_to_quaternion, rotation_angle

Vector = Float[np.ndarray, "3"]
Matrix = Float[np.ndarray, "3 3"]


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Numbers of a reach with room (all zero: the full pose is asked for), of cones and of boxes; made by `Allowance.of`.

    Attributes:
      position: half extents of the room along the axes of the planned wrist [m].
      tilt, turn: of the tool's axis, and about it [rad].
      axis: unit vector in the tool's frame.
      cones: (axis in the tool's frame, direction in the world, bound [rad]).
      boxes: (half extents [m], middle [m], R_world_box, point in the tool's frame [m]).
    """

    position: Vector = field(default_factory=lambda: np.zeros(3))
    tilt: float = 0.0
    turn: float = 0.0
    axis: Vector = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))
    cones: tuple[tuple[Vector, Vector, float], ...] = ()
    boxes: tuple[tuple[Vector, Vector, Matrix, Vector], ...] = ()

    @staticmethod
    def of(constraints: Iterable[Any]) -> Allowance:
        """What the constraints of a set give; other kinds, and what is soft, are not looked at."""
        room: dict[str, Any] = {}
        cones, boxes = [], []
        for given in constraints:
            c = given.base if isinstance(given, AtEveryKnot | ReachAlong) else given
            if isinstance(c, TolerantReach):
                half = np.array([float(v) for v in c.position])
                room = dict(position=half, tilt=float(c.tilt), turn=float(c.turn), axis=_unit(c.axis))
            elif isinstance(c, OrientationCone):
                cones.append((_unit(c.axis), _unit(c.direction), float(c.bound)))
            elif isinstance(c, WorkspaceBox):
                place = np.asarray(c.pose.position, float), np.asarray(c.pose.rotation, float)
                boxes.append((np.asarray(c.half, float), *place, np.asarray(c.point, float)))
        return Allowance(cones=tuple(cones), boxes=tuple(boxes), **room)

    def missed(self, planned: tuple[Vector, Matrix], tool: tuple[Vector, Matrix]) -> tuple[float, float]:
        """How far the tool is outside of the room about the planned wrist [m], [rad]; both poses (position, rotation) in the world."""
        offset = planned[1].T @ (tool[0] - planned[0])
        beyond = float(np.linalg.norm(offset - np.clip(offset, -self.position, self.position)))
        E = planned[1].T @ tool[1]
        w, *v = matrix_to_quaternion(E)
        turn = _wrapped(2 * np.arctan2(np.dot(v, self.axis), w))
        lean = E @ self.axis
        tilt = float(np.arctan2(np.linalg.norm(np.cross(self.axis, lean)), self.axis @ lean))
        about = np.cross(self.axis, lean)
        size = np.linalg.norm(about)
        about = about / size if size > 1e-12 else np.cross(self.axis, np.eye(3)[int(np.argmin(np.abs(self.axis)))])
        nearest = _rotation(about, min(tilt, self.tilt)) @ _rotation(self.axis, np.clip(turn, -self.turn, self.turn))
        return beyond, float(rotation_angle(nearest, E))

    def outside(self, tool: tuple[Vector, Matrix]) -> tuple[float, float]:
        """How far the tool is out of the worst cone [rad] and box [m]; negative within, zero where there are none."""
        position, rotation = tool
        lean = [
            np.arctan2(np.linalg.norm(np.cross(rotation @ a, w)), (rotation @ a) @ w) - bound
            for a, w, bound in self.cones
        ]
        out = [
            np.max(np.abs(R.T @ (position + rotation @ point - middle)) - half) for half, middle, R, point in self.boxes
        ]
        return float(max(lean, default=0.0, key=float)), float(max(out, default=0.0, key=float))


def _unit(v: Any) -> Vector:
    v = np.asarray(v, float)
    return v / np.linalg.norm(v)


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _rotation(axis: Vector, angle: float) -> Matrix:
    """Rodrigues' formula."""
    k = axis / np.linalg.norm(axis)
    K = np.array([[0.0, -k[2], k[1]], [k[2], 0.0, -k[0]], [-k[1], k[0], 0.0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K
