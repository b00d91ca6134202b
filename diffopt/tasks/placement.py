"""Where an arm stands for an episode: as a laboratory would put it up, not as the task would like it.

A base is drawn at any angle around the middle of the workspace, at a distance, on a stand of some height, and turned off the line to the
middle. It is drawn again until the arm can begin and be useful: until its gripper gets, without contact, to where the episode starts
and, held as it is there, to `OVER` above every landmark of the task. Nothing is asked about the ways between: part of what a policy
does may be out of reach, in collision or too fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from diffopt.geometry import Pose
from diffopt.tasks.gripper import pinching
from diffopt.tasks.workcell import Unreachable, Workcell

OVER = 0.08  # [m], of the point between the fingertips
STREAM = 7  # of the random numbers


@dataclass(frozen=True, kw_only=True)
class Around:
    """Ranges (lowest, highest), uniform.

    Attributes:
      distance: of the base from the middle of the workspace [m]. height: of the base above the table [m].
      turn: of the base away from facing the middle [rad].
      tries: how many bases are drawn at most.
    """

    distance: tuple[float, float] = (0.45, 0.75)
    height: tuple[float, float] = (0.0, 0.15)
    turn: tuple[float, float] = (-np.pi / 6, np.pi / 6)
    tries: int = 100

    def draw(self, rng: np.random.Generator) -> Pose:
        """T_world_base, reachable or not."""
        angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(*self.distance)
        height, yaw = rng.uniform(*self.height), angle + rng.uniform(*self.turn)
        c, s = np.cos(yaw), np.sin(yaw)
        return Pose(
            position=jnp.asarray([-distance * np.cos(angle), -distance * np.sin(angle), height], jnp.float32),
            rotation=jnp.asarray([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], jnp.float32),
        )

    def place(self, cell: Workcell, seed: int) -> Pose:
        """Puts the arm of a workcell to where it stands in the episode of that seed, and returns T_world_base.

        Raises:
          Unreachable: no base was found in `tries` draws.
        """
        rng = np.random.default_rng([seed, STREAM])
        for _ in range(self.tries):
            base = self.draw(rng)
            cell.move_base(base)
            if useful(cell, seed):
                return base
        raise Unreachable(f"none of {self.tries} bases reaches the work of seed {seed}: {self}")


def useful(cell: Workcell, seed: int) -> bool:
    """Whether the arm gets to the start of an episode and over its landmarks."""
    data, tool = cell.scene(seed)
    up = np.array([0.0, 0.0, OVER])
    try:
        for pose in (tool, *(pinching(point + up, tool.rotation) for point in cell.task.landmarks(data))):
            cell.reach(pose, data)
    except Unreachable:
        return False
    return True
