"""What MJX needs to know of a scene, and a translation of it that MJX's JAX implementation can simulate.

That implementation has no collisions of cylinders with boxes and meshes (mujoco-mjx 3.17.0). Where some may occur, every cylinder is
replaced by a prism with `SIDES` sides and the same cross-section, whose radius is off by at most 2.3 % (1 mm at 45 mm); bodies keep
mass and inertia. Whatever else cannot collide is refused, by name: nothing passes through anything silently.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import mujoco

SIDES = 12
MOST_PAIRS = 20_000  # of geoms that may meet: MJX looks at every pair in every step


def translate(spec: mujoco.MjSpec, model: mujoco.MjModel) -> mujoco.MjModel:
    """The compiled scene for MJX; `model` itself, which is the compiled `spec`, if it needs no change.

    Raises ValueError when geoms may meet that MJX cannot collide, or more of them than `MOST_PAIRS` pairs.
    """
    import mujoco

    count = pairs(model)
    if count > MOST_PAIRS:
        raise ValueError(
            f"in this scene {count} pairs of geoms may meet, and MJX looks at all of them in every step; at most {MOST_PAIRS} are "
            "taken: thin out point clouds and meshes that are not convex (one geom per point or face), or run engine=c"
        )
    if not unsupported(model):
        return model
    own = spec.copy()
    for g in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CYLINDER):
        geom, name = own.geoms[g], f"prism_{g}"
        own.add_mesh(name=name, uservert=prism(*model.geom_size[g, :2]).astype(np.float32).ravel())
        geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_MESH, name
        body = int(model.geom_bodyid[g])
        if body:
            _keep_inertia(own.bodies[body], model, body)
    out = own.compile()
    left = unsupported(out)
    if left:
        some = ", ".join(f"{_geom(out, a)} with {_geom(out, b)}" for a, b in left[:3])
        raise ValueError(f"MJX cannot collide {some} ({len(left)} such pairs); give them other shapes, or run engine=c")
    return out


def prism(radius: float, half_length: float) -> Float[np.ndarray, "V 3"]:
    """Corners of the upright prism with `SIDES` sides and the cross-section of a cylinder [m]."""
    angle = 2 * np.pi * np.arange(SIDES) / SIDES
    outer = radius * np.sqrt(2 * np.pi / (SIDES * np.sin(2 * np.pi / SIDES)))
    ring = outer * np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([np.insert(ring, 2, z, axis=1) for z in (-half_length, half_length)])


def pairs(model: mujoco.MjModel) -> int:
    """How many pairs of geoms may meet: by their masks, and not fixed to each other."""
    fixed_to = model.body_weldid[model.geom_bodyid]
    con, aff = model.geom_contype, model.geom_conaffinity
    wanted = (con[:, None] & aff[None]) | (con[None] & aff[:, None])
    return int(np.triu((wanted != 0) & (fixed_to[:, None] != fixed_to[None]), 1).sum())


def unsupported(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Pairs of geoms that may touch in this model and cannot in MJX: cylinders and ellipsoids with boxes and meshes."""
    import mujoco

    kinds = mujoco.mjtGeom
    round_ = np.isin(model.geom_type, (kinds.mjGEOM_CYLINDER, kinds.mjGEOM_ELLIPSOID))
    flat = np.isin(model.geom_type, (kinds.mjGEOM_BOX, kinds.mjGEOM_MESH))
    fixed_to = model.body_weldid[model.geom_bodyid]
    above = model.body_weldid[
        model.body_parentid[fixed_to]
    ]  # MuJoCo leaves out parent and child, unless the parent is the world
    excluded = {int(s) for s in model.exclude_signature}
    out = []
    for a, b in (sorted(p) for p in product(np.flatnonzero(round_).tolist(), np.flatnonzero(flat).tolist())):
        if fixed_to[a] == fixed_to[b]:
            continue
        family = fixed_to[a] and fixed_to[b] and (above[a] == fixed_to[b] or above[b] == fixed_to[a])
        wanted = (model.geom_contype[a] & model.geom_conaffinity[b]) | (
            model.geom_contype[b] & model.geom_conaffinity[a]
        )
        low, high = sorted((int(model.geom_bodyid[a]), int(model.geom_bodyid[b])))
        if wanted and not family and (low << 16) + high not in excluded:
            out.append((a, b))
    return out


def structure_of(model: mujoco.MjModel) -> tuple:
    """What has to agree for two models to share a compilation."""
    counts = (model.nq, model.nv, model.nu, model.nbody, model.ngeom, model.nmocap, model.nmeshvert, model.nmeshface)
    arrays = (
        model.geom_type,
        model.geom_bodyid,
        model.geom_contype,
        model.geom_dataid,
        model.jnt_type,
        model.body_parentid,
    )
    return (*counts, *(a.tobytes() for a in arrays))


def _keep_inertia(body: mujoco.MjsBody, model: mujoco.MjModel, index: int) -> None:
    body.mass, body.inertia = model.body_mass[index], model.body_inertia[index]
    body.ipos, body.iquat = model.body_ipos[index], model.body_iquat[index]
    body.explicitinertial = True


def _geom(model: mujoco.MjModel, g: int) -> str:
    import mujoco

    kind = mujoco.mjtGeom(model.geom_type[g]).name.removeprefix("mjGEOM_").lower()
    return f"{kind} '{model.geom(g).name or f'geom {g}'}' of body '{model.body(model.geom_bodyid[g]).name}'"
