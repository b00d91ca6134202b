"""URDF through MuJoCo's loader, which drops some of it: what it drops is read here, and what it would misread is refused.

MuJoCo fuses links without joints, takes mesh paths by their last part, and knows neither velocity limits nor `package://`. Here links
stay, meshes are looked for where ROS would find them, and visual elements, often in formats that MuJoCo does not read, are left out.
"""

from __future__ import annotations

import math
import pathlib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from diffopt.robots import mjcf

if TYPE_CHECKING:
    import mujoco

_MOVES = ("revolute", "continuous", "prismatic")
_KINDS = (*_MOVES, "fixed", "floating", "planar")
_MESHES = (".stl", ".obj", ".msh")

Packages = Mapping[str, str | pathlib.Path]


def read(
    source: str | pathlib.Path, packages: Packages, given: Container[str] = ()
) -> tuple[mujoco.MjSpec, str, dict[str, float]]:
    """A spec, how to call the source in errors, and velocity limits by joint [rad/s or m/s].

    Args:
      given: joints whose limits in the file do not matter.
    Raises:
      FileNotFoundError, ValueError: see `Embodiment.from_urdf`.
    """
    import mujoco

    text, folder, label = _text(source)
    try:
        robot = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{label}: no well-formed XML: {error}; close every tag, and quote every value") from error
    if robot.tag != "robot":
        raise ValueError(
            f"{label}: the outermost element is <{robot.tag}>, not <robot>; read MJCF with Embodiment.from_mjcf"
        )
    if any("xacro" in e.tag or "${" in "".join(e.attrib.values()) for e in robot.iter()):
        raise ValueError(f"{label} holds xacro; expand it first: xacro robot.urdf.xacro > robot.urdf")
    _check_tree(robot, label)
    _check_limits(robot, label, given)
    velocity = {name: v for name, v in _velocities(robot, label).items() if v is not None}
    for link in robot.iter("link"):
        for visual in link.findall("visual"):
            link.remove(visual)
        for mesh in link.iter("mesh"):
            mesh.set("filename", str(_mesh(mesh, link.get("name", ""), folder, packages, label)))
    for extension in robot.findall("mujoco"):
        robot.remove(extension)
    extension = ElementTree.SubElement(robot, "mujoco")
    ElementTree.SubElement(extension, "compiler", fusestatic="false", strippath="false", discardvisual="false")
    try:
        spec = mujoco.MjSpec.from_string(ElementTree.tostring(robot, encoding="unicode"))
    except ValueError as error:
        raise ValueError(f"{label}: MuJoCo cannot read it: {mjcf.in_words(error)}") from error
    mjcf.compile(spec, label)
    return spec, label, velocity


def _text(source: str | pathlib.Path) -> tuple[str, pathlib.Path, str]:
    """The XML, the folder that relative paths start from, and how to call the source."""
    if mjcf.is_xml(str(source)):
        return str(source), pathlib.Path.cwd(), "URDF string"
    path = pathlib.Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no URDF file {str(source)!r} (looked in {path.resolve().parent})")
    try:
        return path.read_text(encoding="utf-8"), path.resolve().parent, str(source)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: no text in UTF-8: {error}; save it in UTF-8") from error


def _check_tree(robot: ElementTree.Element, label: str) -> None:
    """Refuse what is no tree of links: missing and repeated names, unknown links, several roots, circles, odd mimics."""
    for tag in ("link", "joint"):
        names = Counter(e.get("name", "") for e in robot.findall(tag))
        twice = [n for n, count in names.items() if count > 1 or not n]
        if twice:
            listed = ", ".join(repr(n) for n in twice)
            raise ValueError(f"{label}: {tag}s need names of their own; given twice, or empty: {listed}; rename them")
    links = [e.get("name", "") for e in robot.findall("link")]
    parent: dict[str, str] = {}
    kinds = {e.get("name", ""): e.get("type", "") for e in robot.findall("joint")}
    for joint in robot.findall("joint"):
        name = joint.get("name", "")
        if kinds[name] not in _KINDS:
            raise ValueError(f"{label}: joint {name!r} is of type {kinds[name]!r}; there are: {', '.join(_KINDS)}")
        ends = {}
        for end in ("parent", "child"):
            element = joint.find(end)
            ends[end] = "" if element is None else element.get("link", "")
            if ends[end] not in links:
                raise ValueError(
                    f"{label}: joint {name!r} has the {end} {ends[end]!r}, which is no link; the links are: {', '.join(links)}"
                )
        if ends["child"] in parent:
            raise ValueError(
                f"{label}: link {ends['child']!r} is the child of several joints; a robot is a tree, cut the loop open"
            )
        parent[ends["child"]] = ends["parent"]
        mimic = joint.find("mimic")
        if mimic is not None and (kinds[name] not in _MOVES or kinds.get(mimic.get("joint", "")) not in _MOVES):
            raise ValueError(
                f"{label}: joint {name!r} mimics {mimic.get('joint')!r}; both have to be revolute, continuous or prismatic joints"
            )
    roots = [link for link in links if link not in parent]
    if not links or len(roots) != 1:
        what = "has no links" if not links else f"has {len(roots)} roots: {', '.join(roots) or 'none (a circle)'}"
        raise ValueError(f"{label} {what}; connect all links with joints, as one tree")
    for link in links:
        seen = {link}
        while link in parent:
            link = parent[link]
            if link in seen:
                raise ValueError(f"{label}: link {link!r} is its own ancestor; a robot is a tree, cut the loop open")
            seen.add(link)


def _check_limits(robot: ElementTree.Element, label: str, given: Container[str]) -> None:
    """Refuse limits that MuJoCo would take for none: the wrong way round, equal, or no numbers."""
    for joint in robot.findall("joint"):
        limit, name = joint.find("limit"), joint.get("name", "")
        if joint.get("type") not in ("revolute", "prismatic") or limit is None or name in given:
            continue
        ends = [limit.get("lower"), limit.get("upper")]
        if ends == [None, None]:
            continue  # which is missing, and will be said
        try:
            low, high = (float(end or 0.0) for end in ends)
        except ValueError:
            low = high = math.nan
        if not low < high:
            raise ValueError(
                f"{label}: the limits of joint {name!r} are [{ends[0]}, {ends[1]}]; give the lower and then the upper, make it a fixed "
                f"or a continuous joint, or give limits={{{name!r}: (low, high)}}"
            )


def _velocities(robot: ElementTree.Element, label: str) -> dict[str, float | None]:
    """Velocity limits of the joints that move; None where there is none (zero stands for none in many files)."""
    out: dict[str, float | None] = {}
    for joint in robot.findall("joint"):
        limit, name = joint.find("limit"), joint.get("name", "")
        if joint.get("type") not in _MOVES or limit is None or limit.get("velocity") is None:
            continue
        try:
            value = float(limit.get("velocity", ""))
        except ValueError as error:
            raise ValueError(
                f"{label}: the velocity limit of joint {name!r} is {limit.get('velocity')!r}; give a number"
            ) from error
        out[name] = value if math.isfinite(value) and value > 0 else None
    return out


def _mesh(mesh: ElementTree.Element, link: str, folder: pathlib.Path, packages: Packages, label: str) -> pathlib.Path:
    """Where the file of a mesh is."""
    name = mesh.get("filename", "")
    scheme, _, rest = name.rpartition("://")
    tried: list[pathlib.Path] = []
    if scheme in ("package", "model"):
        package, _, inside = rest.partition("/")
        if package in packages:
            tried = [pathlib.Path(packages[package]).expanduser() / inside]
        else:
            tried = [above / package / inside for above in (folder, *folder.parents)]
            tried += [above / inside for above in (folder, *folder.parents) if above.name == package]
    elif scheme in ("", "file"):
        tried = [folder / rest]
    else:
        raise ValueError(
            f"{label}: mesh {name!r} of link {link!r}: only package://, file:// and plain paths can be read"
        )
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        package = rest.partition("/")[0]
        remedy = (
            f"give packages={{{package!r}: folder}}"
            if scheme == "package"
            else "put the file there, or correct the path"
        )
        raise FileNotFoundError(f"{label}: no mesh {name!r} of link {link!r} (looked for {tried[0]}); {remedy}")
    if found.suffix.lower() not in _MESHES:
        raise ValueError(
            f"{label}: mesh {name!r} of link {link!r} is in a format that MuJoCo does not read; convert it to one of "
            f"{', '.join(_MESHES)} (trimesh.load('{found.name}', force='mesh').export('{found.stem}.stl'))"
        )
    return found.resolve()
