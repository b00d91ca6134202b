"""A hand as synthesis sees it: forward kinematics, spheres that cover it, and the fingertips that make contact."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.robots.kinematics import Frames, Kinematics

_SPACING = 1.35  # centres of the spheres along a capsule are at most this many radii apart


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Hand:
    """A floating hand whose geometry is capsules; static (hashable by identity of its tuples), no arrays.

    Attributes:
      kinematics: with the palm as root, so all frames are relative to the palm.
      spheres: per body, (local centres [m], radius [m]).
      groups: body indices of each finger (the thumb last), and of the palm.
      tips: per finger, (body, end of the fingertip's core segment, other end, radius), the thumb last.
      gain: gain of the position servos [N m/rad].
    """

    kinematics: Kinematics = field(metadata=dict(static=True))
    spheres: tuple = field(metadata=dict(static=True))
    groups: tuple = field(metadata=dict(static=True))
    tips: tuple = field(metadata=dict(static=True))
    gain: float = field(metadata=dict(static=True))

    @property
    def lower(self) -> np.ndarray:
        return np.asarray(self.kinematics.lower, np.float32)

    @property
    def upper(self) -> np.ndarray:
        return np.asarray(self.kinematics.upper, np.float32)

    @property
    def palm_radius(self) -> float:
        return next(radius for body, _, radius in self.spheres if body in self.groups[-1])

    def sphere_centers(self, frames: Frames) -> list[Float[Array, "k 3"]]:
        """Centres [m, palm frame] of the spheres of every body, in the order of `spheres`."""
        return [place(frames, body, np.asarray(local, np.float32)) for body, local, _ in self.spheres]

    def tip_samples(self, frames: Frames, n: int) -> Float[Array, "F n 3"]:
        """`n` points along the core segment of every fingertip [m, palm frame]."""
        s = np.linspace(0, 1, n, dtype=np.float32)[:, None]
        return jnp.stack(
            [
                place(frames, b, (1 - s) * np.asarray(a, np.float32) + s * np.asarray(e, np.float32))
                for b, a, e, _ in self.tips
            ]
        )


def place(frames: Frames, body: int, local: Float[np.ndarray, "k 3"]) -> Float[Array, "k 3"]:
    """Points fixed to a body, in the palm frame; written out so that it stays elementwise."""
    R, out = frames.rotation[body], frames.position[body][None]
    for axis in range(3):
        if np.any(local[:, axis]):
            out = out + local[:, axis, None] * R[:, axis][None]
    return jnp.broadcast_to(out, local.shape)


def allegro() -> Hand:
    """The Allegro hand of this library."""
    from importlib import resources

    import mujoco

    xml = (resources.files("diffopt.robots") / "models" / "allegro.xml").read_text(encoding="utf-8")
    return from_model(mujoco.MjModel.from_xml_string(xml), fingers=("ff", "mf", "rf", "th"))


def from_model(model, fingers: tuple[str, ...], palm: str = "palm") -> Hand:
    """A hand from a MuJoCo model whose geoms are capsules and spheres, bodies named `<finger>_...`, fingertips `<finger>_tip`."""
    import mujoco

    kinematics = Kinematics.from_model(model)
    spheres, tips = [], {}
    for g in range(model.ngeom):
        body, radius = int(model.geom_bodyid[g]), float(model.geom_size[g, 0])
        kind = int(model.geom_type[g])
        if kind not in (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE):
            raise ValueError(
                f"geom {model.geom(g).name!r} is no capsule or sphere; synthesis covers the hand with spheres"
            )
        half = float(model.geom_size[g, 1]) if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
        R = np.zeros(9)
        mujoco.mju_quat2Mat(R, model.geom_quat[g])
        axis = R.reshape(3, 3)[:, 2]
        count = 1 + int(np.ceil(2 * half / (_SPACING * radius) - 1e-6))
        centers = (
            model.geom_pos[g] + np.linspace(-half, half, count)[:, None] * axis
            if count > 1
            else model.geom_pos[g][None]
        )
        centers = np.where(np.abs(centers) < 1e-9, 0, centers)
        spheres.append((body, tuple(map(tuple, centers.tolist())), radius))
        name = model.body(body).name
        if name.endswith("_tip"):
            tips[name[: -len("_tip")]] = (body, tuple(centers[0].tolist()), tuple(centers[-1].tolist()), radius)
    groups = tuple(tuple(b for b in range(model.nbody) if model.body(b).name.startswith(f"{f}_")) for f in fingers)
    return Hand(
        kinematics=kinematics,
        spheres=tuple(spheres),
        groups=(*groups, (kinematics.body(palm),)),
        tips=tuple(tips[f] for f in fingers),
        gain=float(model.actuator_gainprm[0, 0]),
    )
