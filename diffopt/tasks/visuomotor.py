"""Visuomotor tasks: a tabletop scene, where things stand in it, when it is solved, and a script that solves it.

A task is one file with a class of this protocol and an entry in `TASKS`. The table's top is z = 0; robots stand at negative x.
Training placements are those of seeds below `HELD_OUT`, held-out ones those of seeds from there on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from diffopt.geometry import Pose, Shapes
from diffopt.tasks.script import Waypoint

if TYPE_CHECKING:
    import mujoco

HELD_OUT = 1_000_000
TASKS = {  # name -> module of diffopt.tasks, whose `TASK` it is
    "pick-place": "pick_place",
    "drawer": "drawer",
    "conveyor-catch": "conveyor_catch",
    "peg": "peg",
}
SCENE_CAMERA, TOOL_CAMERA = "scene", "tool"
CAMERAS = (SCENE_CAMERA, TOOL_CAMERA)


class Task(Protocol):
    """What a workcell needs to know of a task. Bodies and joints are found by name, so that any robot may stand in the scene."""

    name: str
    time_limit: float  # [s]

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Adds the table, everything on it and the camera `SCENE_CAMERA` to a spec that has a gripper in it."""
        ...

    def place(self, data: mujoco.MjData, rng: np.random.Generator) -> Pose:
        """Puts everything but the robot where `rng` says; returns T_world_tool of the gripper at the start."""
        ...

    def success(self, data: mujoco.MjData) -> bool:
        """Whether the task is solved now."""
        ...

    def script(self, data: mujoco.MjData, rng: np.random.Generator) -> tuple[Waypoint, ...]:
        """An expert for the scene as it is placed."""
        ...

    def landmarks(self, data: mujoco.MjData) -> np.ndarray:
        """Points that matter, (K, 3) in the world [m]: what training may ask the image encoder for. Policies never see them."""
        ...

    def obstacles(self, data: mujoco.MjData) -> Shapes:
        """The table and everything fixed, in the world; as many shapes for every placement."""
        ...

    def predicted(self, data: mujoco.MjData, times: np.ndarray) -> Pose:
        """Where the object to be grasped will be `times` [s] from now if nobody touches it, stacked T_world_object."""
        ...


def available() -> tuple[str, ...]:
    """Names of the tasks."""
    return tuple(TASKS)


def load(name: str) -> Task:
    """A task by name."""
    if name.replace("_", "-") not in TASKS:
        raise KeyError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    return importlib.import_module(f"diffopt.tasks.{TASKS[name.replace('_', '-')]}").TASK


def standing(position: np.ndarray, times: np.ndarray) -> Pose:
    """The prediction for what does not move; rotations are not predicted."""
    n = len(times)
    return Pose(position=np.tile(position, (n, 1)), rotation=np.tile(np.eye(3), (n, 1, 1)))
