"""A scene's own cameras, off screen and again and again: one OpenGL context and one set of buffers for all pictures.

Needs OpenGL; without it, making a `Cameras` raises `NoOpenGL` with what to do about it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from diffopt.physics.render import ADVICE, NoOpenGL, context_class

if TYPE_CHECKING:
    import mujoco

SHOWN, HIDDEN = 0, 3  # geom groups: cameras leave the second out


class Cameras:
    """Renders the cameras of a model. Use it from one thread; `close` it, or use it in a `with` statement."""

    def __init__(self, model: mujoco.MjModel, names: Sequence[str], size: int, *, hidden: bool = False) -> None:
        """
        Args:
          names: of cameras in the model.
          hidden: whether geoms that cameras leave out are in the pictures all the same.
          size: height and width of a picture [pixel].
        Raises:
          NoOpenGL: there is no off-screen OpenGL here.
        """
        import mujoco

        self.names, self.size = tuple(names), size
        self._model = model
        self._ids = [model.camera(name).id for name in names]
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        try:
            self._gl = context_class()(size, size)
            self._gl.make_current()
        except Exception as error:
            raise NoOpenGL(f"{ADVICE} ({type(error).__name__}: {error})") from error
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        self._free = weakref.finalize(self, _free, self._gl, self._context)  # also before the interpreter's exit
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=500)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag.value] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN] = int(hidden)
        self._option.sitegroup[:] = 0

    def render(self, data: mujoco.MjData) -> UInt8[np.ndarray, "C h w 3"]:
        """The pictures of all cameras; positions in `data` must be up to date (`mj_forward`, or a step)."""
        import mujoco

        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        frame = mujoco.MjrRect(0, 0, self.size, self.size)
        out = np.empty((len(self._ids), self.size, self.size, 3), np.uint8)
        for i, camera in enumerate(self._ids):
            self._camera.fixedcamid = camera
            mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, everything, self._scene)
            mujoco.mjr_render(frame, self._scene, self._context)
            mujoco.mjr_readPixels(out[i], None, frame, self._context)
        return out[:, ::-1].copy()

    def close(self) -> None:
        """Frees the context; nothing can be rendered afterwards."""
        self._free()

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free(gl: Any, context: mujoco.MjrContext) -> None:
    gl.make_current()
    context.free()
    gl.free()
