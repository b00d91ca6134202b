"""A grid of pictures of scenes, off screen. Needs OpenGL; where there is none, that is said, and nothing fails."""

from __future__ import annotations

import copy
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    import mujoco

ADVICE = (
    "no off-screen OpenGL: install EGL (Debian and Ubuntu: apt install libegl1 libgl1-mesa-dri; or an NVIDIA driver), "
    "or OSMesa (apt install libosmesa6) and set MUJOCO_GL=osmesa"
)
GREEN, RED, GREY = (40, 160, 80), (200, 60, 50), (120, 120, 120)
_FRAME = 4  # [pixel]


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture: a scene in a state, seen from a free camera.

    Attributes:
      model, data: the scene; kinematics must have been computed (`mj_forward`).
      lookat: the point looked at [m]. distance: of the camera from there [m].
      azimuth, elevation: of the camera [degrees].
      frame: colour of the picture's frame.
      target: body to be drawn in a colour of its own; "" for none.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    lookat: Float[np.ndarray, "3"]
    distance: float = 0.8
    azimuth: float = 130.0
    elevation: float = -25.0
    frame: tuple[int, int, int] = GREY
    target: str = "object"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Where the picture lies; or None, and what to do about it."""

    path: Path | None
    advice: str = ""


def render_grid(
    views: Sequence[View], path: str | Path, columns: int = 4, size: tuple[int, int] = (320, 240)
) -> Picture:
    """Writes a PNG with the views, row by row.

    Args:
      path: of the file; its folder is made.
      size: width and height of one view [pixel].
    """
    if not views:
        return Picture(path=None, advice="nothing to draw")
    try:
        tiles = [_framed(_render(view, size), view.frame) for view in views]
    except NoOpenGL as error:
        return Picture(path=None, advice=f"{ADVICE} ({error})")
    columns = min(columns, len(tiles))
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(np.concatenate(rows, axis=0)))
    return Picture(path=file)


class NoOpenGL(Exception):
    """There is no off-screen OpenGL; the message says why."""


def context_class() -> type:
    """MuJoCo's off-screen context: the one MUJOCO_GL names, EGL when it names none."""
    kind = os.environ.get("MUJOCO_GL", "").lower().strip()
    if kind in ("disable", "disabled", "off", "false", "0"):
        raise NoOpenGL(f"MUJOCO_GL={kind}")
    unset = "PYOPENGL_PLATFORM" not in os.environ
    try:
        if kind == "osmesa":
            from mujoco.osmesa import GLContext
        elif kind in ("", "egl"):
            from mujoco.egl import GLContext
        else:
            from mujoco.gl_context import GLContext
    except Exception as error:
        raise NoOpenGL(f"{type(error).__name__}: {error}") from error
    finally:
        if unset:  # MuJoCo sets it for the whole process
            os.environ.pop("PYOPENGL_PLATFORM", None)
    return GLContext


def _render(view: View, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """One picture. A context per picture: contexts are cheap, and none is left for the interpreter's exit."""
    import mujoco

    width, height = size
    make = context_class()
    try:
        gl = make(width, height)
        gl.make_current()
    except Exception as error:
        raise NoOpenGL(f"{type(error).__name__}: {error}") from error
    try:
        model = _lit(view, width, height)
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        scene = mujoco.MjvScene(model, maxgeom=2000)
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.lookat
        camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
        option = mujoco.MjvOption()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, view.data, option, None, camera, everything, scene)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, scene, context)
        mujoco.mjr_readPixels(pixels, None, rectangle, context)
        context.free()
        pixels[(pixels == 0).all(axis=2)] = 255  # the background
        return pixels[::-1]
    finally:
        gl.free()


def _lit(view: View, width: int, height: int) -> mujoco.MjModel:
    """A copy of the view's model with light, room for the picture, and the target in its colour."""
    model = copy.copy(view.model)
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    model.vis.headlight.ambient[:] = 0.45
    model.vis.headlight.diffuse[:] = 0.55
    if view.target:
        model.geom_rgba[model.geom_bodyid == model.body(view.target).id] = (0.95, 0.6, 0.15, 1.0)
    return model


def _framed(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    out = pixels.copy()
    for band in (np.s_[:_FRAME], np.s_[-_FRAME:], np.s_[:, :_FRAME], np.s_[:, -_FRAME:]):
        out[band] = colour
    return out


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A PNG file (RFC 2083), 8-bit RGB."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\x00" + row.tobytes() for row in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 6)) + chunk(b"IEND", b"")
