"""Reading, joining and placing MJCF models (host side, through `mujoco.MjSpec`)."""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from diffopt.geometry import Pose

if TYPE_CHECKING:
    import mujoco

    Source: TypeAlias = str | pathlib.Path | mujoco.MjSpec

_MARK = "attached-part/"  # stands before every name of an attached part, until it is taken away again


def read(source: Source) -> tuple[mujoco.MjSpec, str]:
    """A spec of its own, and how to call it in errors, from a path, an XML string or an MjSpec.

    Raises:
      FileNotFoundError: no such file.
      ValueError: MuJoCo does not accept it; the message names the file and repeats MuJoCo's.
    """
    import mujoco

    if isinstance(source, mujoco.MjSpec):
        return source.copy(), f"MjSpec {source.modelname!r}"
    text = str(source)
    label = "XML string" if text.lstrip().startswith("<") else text
    try:
        if label == "XML string":
            return mujoco.MjSpec.from_string(text), label
        path = pathlib.Path(text).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no MJCF file {text!r} (looked in {path.resolve().parent})")
        spec = mujoco.MjSpec.from_file(str(path))
        if spec.meshes or spec.hfields:  # their paths are relative to the file, and the XML kept later is in no file
            spec.meshdir = str(path.resolve().parent / spec.meshdir)
        return spec, label
    except ValueError as error:
        raise ValueError(f"{label}: MuJoCo cannot read it: {error}") from error


def compile(spec: mujoco.MjSpec, label: str) -> mujoco.MjModel:
    """Compile, or say which source does not compile and why."""
    try:
        return spec.compile()
    except ValueError as error:
        raise ValueError(f"{label}: MuJoCo cannot compile it: {error}") from error


def body(spec: mujoco.MjSpec, name: str, label: str) -> mujoco.MjsBody:
    """The body `name`, or a KeyError that lists the bodies there are."""
    names = [b.name for b in spec.bodies]
    if name not in names:
        raise KeyError(f"no body {name!r} in {label}; it has: {', '.join(n for n in names if n)}")
    return spec.body(name)


def join(arm: Source, hand: Source, *, to: str, pose: Pose | None = None) -> str:
    """XML of `arm` with the root bodies of `hand` mounted on the body `to`, all names kept.

    Args:
      pose: T_to_hand, of the hand's model frame in the body `to`; default the identity.
    Raises:
      ValueError: both parts use one name for the same kind of element.
    """
    import mujoco

    arm_spec, arm_label = read(arm)
    hand_spec, hand_label = read(hand)
    compile(arm_spec, arm_label)
    compile(hand_spec, hand_label)
    for kind in ("bodies", "joints", "geoms", "sites", "actuators", "meshes"):
        ours = {e.name for e in getattr(arm_spec, kind)} - {"", "world"}
        both = sorted(ours & {e.name for e in getattr(hand_spec, kind)})
        if both:
            raise ValueError(
                f"{arm_label} and {hand_label} both have {kind} named {', '.join(both)}; rename them in one file"
            )
    position, quaternion = pose_to_mujoco(Pose.identity() if pose is None else pose)
    frame = body(arm_spec, to, arm_label).add_frame(pos=position, quat=quaternion)
    # An empty prefix is not saved correctly by MuJoCo, so attach under a mark and strip it from the text. `main` is the root
    # default class of every model and has to be told apart.
    arm_spec.attach(hand_spec, prefix=_MARK, frame=frame)
    arm_spec.compile()
    xml = arm_spec.to_xml().replace(f'"{_MARK}main"', '"attached-main"').replace(_MARK, "")
    return compile_text(mujoco.MjSpec.from_string(xml), f"{arm_label} + {hand_label}")


def compile_text(spec: mujoco.MjSpec, label: str) -> str:
    """The XML of a spec, once it compiles."""
    compile(spec, label)
    return spec.to_xml()


def place(spec: mujoco.MjSpec, base: Pose) -> None:
    """Move everything in the world of `spec` by T_world_base, in place."""
    import mujoco

    offset, turn = pose_to_mujoco(base)
    for part in spec.worldbody.bodies:
        position, quaternion = np.zeros(3), np.zeros(4)
        own = np.array(part.quat, float)
        mujoco.mju_rotVecQuat(position, np.asarray(part.pos, float), np.asarray(turn))
        mujoco.mju_mulQuat(quaternion, np.asarray(turn), own / np.linalg.norm(own))
        part.pos = position + offset
        part.quat = quaternion


def pose_to_mujoco(pose: Pose) -> tuple[list[float], list[float]]:
    """Position [m] and unit quaternion (w x y z) of one pose."""
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(pose.rotation, float).ravel())
    return np.asarray(pose.position, float).tolist(), quaternion.tolist()


def with_gravity_compensation(xml: str) -> str:
    """The model with `gravcomp="1"` on every body: its controller is told the mass of all that is mounted."""
    return re.sub(r"<body (?![^>]*gravcomp)", '<body gravcomp="1" ', xml)
