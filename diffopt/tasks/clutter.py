"""A visuomotor task with posts in the way that its demonstrations never met.

The posts stand fast, are obstacles for the robot, and are left out of the pictures: what a policy sees is what it was trained on, and only
the scene's constraints know of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.physics.cameras import HIDDEN
from diffopt.tasks import furniture
from diffopt.tasks.script import Waypoint
from diffopt.tasks.visuomotor import Task

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True, kw_only=True)
class Cluttered:
    """Lengths in metres.

    Attributes:
      base: the task.
      posts: how many.
      half: half width of a square post. heights: lowest and highest.
      region: where they stand (lowest x, highest x, lowest y, highest y).
      clear: least horizontal distance of a post's axis to every landmark and to the tool at the start; apart: to other posts.
    """

    base: Task
    posts: int = 3
    half: float = 0.015
    heights: tuple[float, float] = (0.12, 0.25)
    region: tuple[float, float, float, float] = (-0.2, 0.2, -0.25, 0.25)
    clear: float = 0.11
    apart: float = 0.1

    @property
    def name(self) -> str:
        return f"{self.base.name}-posts{self.posts}"

    @property
    def time_limit(self) -> float:
        return self.base.time_limit

    def add_to(self, spec: mujoco.MjSpec) -> None:
        self.base.add_to(spec)
        tall = self.heights[1] / 2
        for i in range(self.posts):
            post = spec.worldbody.add_body(name=f"post{i}", mocap=True)
            furniture.add_box(post, (self.half, self.half, tall), name=f"post{i}")
            spec.geom(f"post{i}").group = HIDDEN

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        """As the base places everything; then the posts, a lower one sunk into the table."""
        import mujoco

        tool = self.base.place(data, rng)
        mujoco.mj_kinematics(data.model, data)
        kept = [*self.base.landmarks(data)[:, :2], tool.position[:2]]
        least = [self.clear] * len(kept)
        lower, upper = np.array(self.region).reshape(2, 2).T
        for i in range(self.posts):
            for _ in range(1000):
                spot = rng.uniform(lower, upper)
                if all(np.linalg.norm(spot - k) > r for k, r in zip(kept, least, strict=True)):
                    break
            else:
                raise RuntimeError(
                    f"no room for post {i} of {self.posts} in {self.region}: fewer posts, or a smaller clear or apart"
                )
            kept, least = [*kept, spot], [*least, self.apart]
            height = rng.uniform(*self.heights)
            furniture.set_mocap(data, f"post{i}", np.array([*spot, height - self.heights[1] / 2]))
        return tool

    def success(self, data: mujoco.MjData) -> bool:
        return self.base.success(data)

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        """The base's, which knows nothing of the posts."""
        return self.base.script(data, rng)

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        return self.base.landmarks(data)

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        base, posts = self.base.obstacles(data), furniture.boxes(data, *(f"post{i}" for i in range(self.posts)))
        return base | jax.tree.map(lambda leaf: leaf[1:], posts)  # the table is in both

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        return self.base.predicted(data, times)
