"""What visuomotor tasks build their scenes of: a table, boxes, loose blocks, light and a camera."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from diffopt.geometry import Shapes
from diffopt.physics.engine import matrix_to_quaternion

if TYPE_CHECKING:
    import mujoco

TABLE = (0.8, 0.8, 0.1)  # half extents [m]; its top is z = 0


def add_table(spec: mujoco.MjSpec, colour: tuple[float, float, float] = (0.36, 0.38, 0.42)) -> None:
    """The table and two lights."""
    import mujoco

    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=TABLE, pos=(0, 0, -TABLE[2]), rgba=(*colour, 1)
    )
    for x in (-0.6, 0.6):
        spec.worldbody.add_light(
            pos=(x, -0.4, 1.5), dir=(-x, 0.4, -1.5), castshadow=False, diffuse=(0.45,) * 3, specular=(0.1,) * 3
        )
    spec.visual.headlight.ambient[:] = 0.4
    spec.visual.headlight.diffuse[:] = 0.2
    spec.visual.quality.offsamples = 4


def add_camera(
    spec: mujoco.MjSpec,
    name: str,
    position: tuple[float, float, float],
    lookat: tuple[float, float, float],
    fovy: float,
) -> None:
    """A camera fixed in the world that looks at a point, upright; `fovy` [degrees]."""
    back = np.subtract(position, lookat) / np.linalg.norm(np.subtract(position, lookat))
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(back, right), back], axis=1)
    spec.worldbody.add_camera(name=name, pos=position, quat=matrix_to_quaternion(R), fovy=fovy)


def add_box(
    body: mujoco.MjsBody,
    half: tuple[float, float, float],
    position: tuple[float, float, float] = (0.0, 0.0, 0.0),
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5),
    mass: float = 0.0,
    name: str = "",
    solid: bool = True,
) -> None:
    """A box of half extents `half` [m] at `position` in a body's frame; if it is not solid, it is only seen."""
    import mujoco

    geom = body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=half, pos=position, rgba=(*colour, 1), mass=mass
    )
    geom.contype = geom.conaffinity = int(solid)


def set_free(data: mujoco.MjData, joint: str, position: np.ndarray, yaw: float = 0.0) -> None:
    """Puts a free body upright at `position` [m], turned by `yaw` [rad] about the vertical."""
    data.joint(joint).qpos[:] = (*position, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))


def set_mocap(data: mujoco.MjData, body: str, position: np.ndarray, yaw: float = 0.0) -> None:
    """The same for a fixed body that the scene can put elsewhere."""
    index = data.model.body(body).mocapid[0]
    data.mocap_pos[index] = position
    data.mocap_quat[index] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))


def boxes(data: mujoco.MjData, *bodies: str) -> Shapes:
    """The table and all boxes of some bodies as they stand, in the world."""
    geoms = [g for g in range(data.model.ngeom) if data.model.body(data.model.geom_bodyid[g]).name in bodies]
    geoms = [data.model.geom("table").id, *geoms]
    n = len(geoms)
    return Shapes(
        half=jnp.asarray(data.model.geom_size[geoms], jnp.float32),
        radius=jnp.zeros(n),
        round=jnp.zeros(n, bool),
        position=jnp.asarray(data.geom_xpos[geoms], jnp.float32),
        rotation=jnp.asarray(data.geom_xmat[geoms].reshape(n, 3, 3), jnp.float32),
    )
