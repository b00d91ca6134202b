"""Reading, joining and placing MJCF models (host side, through `mujoco.MjSpec`)."""

from __future__ import annotations

import itertools
import pathlib
import re
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from diffopt.geometry import Pose
from diffopt.robots.balls import to_hinges

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
    label = "XML string" if is_xml(text) else text
    try:
        if label == "XML string":
            _refuse_urdf(text, label)
            return mujoco.MjSpec.from_string(text), label
        path = pathlib.Path(text).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no MJCF file {text!r} (looked in {path.resolve().parent})")
        _refuse_urdf(path.read_text(encoding="utf-8", errors="replace"), label)
        spec = mujoco.MjSpec.from_file(str(path))
        if spec.meshes or spec.hfields or spec.textures:  # relative to the file, and the XML kept later is in no file
            spec.meshdir = str(path.resolve().parent / spec.meshdir)
            spec.texturedir = str(path.resolve().parent / spec.texturedir)
        return spec, label
    except _NotMJCF:
        raise
    except ValueError as error:
        raise ValueError(f"{label}: MuJoCo cannot read it: {in_words(error)}") from error


class _NotMJCF(ValueError):
    pass


def _refuse_urdf(text: str, label: str) -> None:
    """MuJoCo would read it, and leave out velocity limits, links without joints, and where meshes are."""
    if re.match(r"(\s|\ufeff|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>]*>)*<robot[\s>]", text, re.DOTALL):
        raise _NotMJCF(
            f"{label}: the outermost element is <robot>, not <mujoco>; read URDF with Embodiment.from_urdf, and attach its model_spec()"
        )


def compile(spec: mujoco.MjSpec, label: str) -> mujoco.MjModel:
    """Compile, or say which source does not compile and why.

    Raises:
      FileNotFoundError: a mesh is not where the file says.
      ValueError: anything else that MuJoCo does not accept.
    """
    for mesh in spec.meshes:
        file = pathlib.Path(spec.meshdir, mesh.file)
        if mesh.file and mesh.file not in spec.assets and not file.is_file():
            raise FileNotFoundError(
                f"{label}: mesh {mesh.name or file.stem!r} wants the file {str(file)!r}, which does not exist; "
                "put it there, or correct `file` or the compiler's `meshdir`"
            )
    try:
        model = spec.compile()
    except ValueError as error:
        raise ValueError(f"{label}: MuJoCo cannot compile it: {in_words(error)}") from error
    _refuse_nonsense(model, label)
    return model


_NUMBERS = {
    "body": ("body_pos", "body_quat", "body_ipos", "body_mass", "body_inertia"),
    "joint": ("jnt_pos", "jnt_axis", "jnt_range"),
    "geom": ("geom_pos", "geom_quat", "geom_size"),
    "equality": ("eq_data",),
}
_MOST = 1e6  # of lengths [m] and masses [kg]: single precision ends there


def _refuse_nonsense(model: mujoco.MjModel, label: str) -> None:
    """MuJoCo lets numbers through that are none, and places that are further than any robot reaches."""
    for kind, attributes in _NUMBERS.items():
        for attribute in attributes:
            values = np.asarray(getattr(model, attribute))
            values = values.reshape(len(values), -1 if values.size else 0)
            most = np.inf if attribute in ("jnt_range", "eq_data") else _MOST
            bad = np.flatnonzero(~(np.isfinite(values) & (np.abs(values) <= most)).all(axis=1))
            if bad.size:
                name = getattr(model, kind)(int(bad[0])).name or f"number {bad[0]}"
                what = attribute.split("_", 1)[1]
                raise ValueError(
                    f"{label}: {what} of {kind} {name!r} is {values[bad[0]]}; give numbers that are finite, and lengths and masses "
                    f"below {_MOST:g}"
                )


def is_xml(text: str) -> bool:
    """Whether this is XML, rather than the path of a file."""
    return "<" in text or "\n" in text or not text.strip()


_REMEDIES = {
    "mass and inertia of moving bodies": "a body with joints needs mass: give it an <inertial>, or a geom with a mass",
    "repeated name": "rename one of the two",
    "XML parse error": "the text is no well-formed XML, or nested too deeply",
    "free joint can only be used on top level": "only a child of the world can float",
    "must satisfy A + B >= C": "the inertia is not that of a body; correct it, or set balanceinertia of the compiler",
    "Error opening file": "put the file there, or correct its path",
    "invalid size": "sizes are positive",
    "range[0]": "a range is two numbers, the smaller first",
    "Schema violation": "take it out, or put it where MuJoCo's XML reference has it",
    "bad format in attribute": "numbers, or one of its keywords, are expected there",
    "does not have enough data": "give as many numbers as the attribute takes",
    "missing element": "add it, or take out what needs it",
    "repeated element": "leave one of them",
    "required attribute missing": "give it",
    "not found": "name one that there is, or take the reference out",
    "must be positive": "sizes are positive",
    "valid meshid": "say which mesh it is, mesh=...",
    "nesting is too deep": "MuJoCo reads no chains of so many bodies: cut the model down",
    "perhaps this is an ASCII file": "save the mesh as a binary STL",
    "axis too small": "an axis is a direction, and not zero",
    "geometry specification not found": "give the shape a box, sphere, cylinder or mesh",
}


def in_words(error: ValueError) -> str:
    """MuJoCo's message on one line, with what to do about it where that is known."""
    said = " ".join(str(error).split())
    remedies = [remedy for sign, remedy in _REMEDIES.items() if sign in said]
    return "; ".join([said, *(dict.fromkeys(remedies) or ["correct the file there"])])


def tidy(spec: mujoco.MjSpec, tool: str, base: str | None, label: str) -> list[str]:
    """Reduce a model in place to the tree of the body `tool`, every body and joint named; what was changed, in words.

    Other trees (a table, the second arm, a cube to play with), planes and height fields of the world, and keyframes go.

    Args:
      base: the root of the tree, moved into the world's frame, and fixed there if it floats; or None.
    Raises:
      KeyError, ValueError: no such body; a base that is not the root above the tool.
    """
    import mujoco

    named = name_all(spec)
    notes: list[str] = []
    root = above = body(spec, tool, label)
    if tool == "world":
        raise ValueError(f"{label}: the tool is a body of the robot, not the world")
    while above.name != "world":
        root, above = above, above.parent
    if base is not None and body(spec, base, label).name != root.name:
        parent = body(spec, base, label).parent
        if parent is None or parent.name != "world":
            hangs = "is the world" if parent is None else f"hangs on {parent.name!r}"
            raise ValueError(f"base {base!r} {hangs} in {label}; a base is a child of the world")
        raise ValueError(f"tool {tool!r} is not below base {base!r} in {label}, but below {root.name!r}")
    others = [b for b in spec.worldbody.bodies if b.name != root.name]
    if others:
        notes.append(f"left out, not connected with the tool: {', '.join(b.name for b in others)}")
    bound = {e.name for e in spec.equalities}
    for part in others:
        spec.delete(part)
    freed = sorted(bound - {e.name for e in spec.equalities} - {""})
    if freed:
        notes.append(f"left out with them, equalities that bind the robot to them: {', '.join(freed)}")
    unbounded = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
    floors = [g for g in spec.worldbody.geoms if g.type in unbounded]
    if floors:
        notes.append(f"left out, of the world: {', '.join(g.name or 'a plane' for g in floors)}")
    for geom in floors:
        spec.delete(geom)
    if list(spec.worldbody.geoms):
        notes.append("geoms of the world are in the physics, but no part of the robot: they do not move with its base")
    if base is not None:
        root.pos, root.quat = [0, 0, 0], [1, 0, 0, 0]
        for joint in list(root.joints):
            if joint.type == mujoco.mjtJoint.mjJNT_FREE:
                notes.append(f"joint {joint.name}, with which the base floats in the file, is left out")
                spec.delete(joint)
    geoms = {g.name for g in spec.geoms}
    for pair in [p for p in spec.pairs if not {p.geomname1, p.geomname2} <= geoms]:
        spec.delete(pair)
    for key in list(spec.keys):
        spec.delete(key)
    notes += to_hinges(spec)
    named &= {e.name for e in (*spec.bodies, *spec.joints)}
    return [*([f"named here, without a name in the file: {', '.join(sorted(named))}"] if named else []), *notes]


def name_all(spec: mujoco.MjSpec) -> set[str]:
    """Name the bodies and joints that have no name, in place; the names given."""
    given: set[str] = set()
    for part, stem in ((spec.bodies, "body"), (spec.joints, "")):
        taken = {e.name for e in part}
        for i, element in enumerate(part):
            if not element.name:
                own = stem or f"{element.parent.name}_joint"
                element.name = next(n for k in range(i, i + len(taken) + 2) if (n := f"{own}{k}") not in taken)
                taken.add(element.name)
                given.add(element.name)
    return given


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
    for kind in ("bodies", "joints", "geoms", "sites", "actuators", "meshes", "tendons", "equalities"):
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
    xml = arm_spec.to_xml()
    root = next(n for k in itertools.count() if (n := f'"attached-main{k or ""}"') not in xml)
    xml = xml.replace(f'"{_MARK}main"', root).replace(_MARK, "")
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
