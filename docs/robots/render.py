"""Draws the pictures of docs/robots.md: `python docs/robots/render.py` (needs OpenGL, through EGL)."""

import pathlib

import mujoco
import numpy as np

from diffopt.physics.render import View, render_grid
from diffopt.robots import embodiments

PICTURES = {
    "arms.png": (("panda", "xarm7", "ur5e"), (220, 240)),
    "hands.png": (("allegro", "leap", "shadow", "barrett", "gripper"), (150, 170)),
    "combinations.png": (("xarm7-leap", "ur5e-shadow", "panda-barrett", "panda-gripper"), (190, 220)),
}


def view(name: str) -> View:
    """A robot in its home posture, filling the picture."""
    robot = embodiments.load(name)
    model = robot.model_spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = robot.qpos(robot.home)
    mujoco.mj_forward(model, data)
    low = np.min(data.geom_xpos - model.geom_rbound[:, None], axis=0)
    high = np.max(data.geom_xpos + model.geom_rbound[:, None], axis=0)
    azimuth = 130.0 if robot.arm else 215.0
    distance = (1.15 if robot.arm else 1.4) * float(np.linalg.norm(high - low))
    return View(
        model=model, data=data, lookat=(low + high) / 2, distance=distance, azimuth=azimuth, elevation=-20, target=""
    )


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    for file, (names, size) in PICTURES.items():
        picture = render_grid([view(name) for name in names], folder / file, columns=len(names), size=size)
        print(picture.path or picture.advice)
