"""URDFs: what MuJoCo's loader drops is read, meshes are found, and files that make no sense are answered in words."""

import pathlib
import re

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.robots.embodiment import Embodiment

INERTIAL = '<inertial><mass value="1"/><inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial>'


def link(name: str, geometry: str = '<box size=".1 .1 .2"/>') -> str:
    visual = '<visual><geometry><mesh filename="package://nowhere/seen.dae"/></geometry></visual>'
    return f'<link name="{name}">{INERTIAL}{visual}<collision><geometry>{geometry}</geometry></collision></link>'


def joint(name: str, kind: str, parent: str, child: str, rest: str = "", xyz: str = "0 0 .3") -> str:
    ends = f'<parent link="{parent}"/><child link="{child}"/>'
    return (
        f'<joint name="{name}" type="{kind}">{ends}<origin xyz="{xyz}" rpy=".1 0 0"/><axis xyz="0 1 0"/>{rest}</joint>'
    )


LIMIT = '<limit lower="-1" upper="2" effort="7" velocity="1.5"/>'
ARM = f"""<robot name="lab_arm">
  {link("base")} {link("upper")} {
    link("fore", '<mesh filename="package://lab_arm/meshes/fore.stl" scale="0.001 0.001 0.001"/>')
}
  <link name="tool0"/> {link("left")} {link("right")}
  {joint("shoulder", "revolute", "base", "upper", LIMIT)}
  {joint("wrist/roll", "continuous", "upper", "fore", '<limit effort="3" velocity="0"/>')}
  {joint("mount", "fixed", "fore", "tool0")}
  {
    joint(
        "left", "prismatic", "tool0", "left", '<limit lower="0" upper="0.04" effort="5" velocity="0.1"/>', "0 .05 .05"
    )
}
  {
    joint(
        "right",
        "prismatic",
        "tool0",
        "right",
        '<limit lower="-0.02" upper="0" effort="5" velocity="0.1"/><mimic joint="left" multiplier="-1" offset="0"/>',
        "0 -.05 .05",
    )
}
</robot>"""


@pytest.fixture
def file(tmp_path):
    """The URDF of a ROS package, with a mesh in millimetres that is a tetrahedron."""
    corners = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 300]], np.float32)
    facets = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    body = b"".join(np.zeros(3, "<f4").tobytes() + corners[list(f)].tobytes() + b"\0\0" for f in facets)
    package = tmp_path / "lab_arm"
    (package / "meshes").mkdir(parents=True)
    (package / "urdf").mkdir()
    (package / "meshes" / "fore.stl").write_bytes(bytes(80) + np.uint32(4).tobytes() + body)
    (package / "urdf" / "arm.urdf").write_text(ARM)
    return package / "urdf" / "arm.urdf"


@pytest.fixture
def robot(file, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path / "cache"))
    return Embodiment.from_urdf(file, tool="tool0")


def test_joints_limits_velocities_efforts_and_mimics_come_from_the_file(robot):
    assert (robot.name, robot.arm, robot.hand) == ("lab_arm", ("shoulder", "wrist/roll"), ("left",))
    np.testing.assert_allclose(robot.lower, [-1, -np.inf])
    np.testing.assert_allclose(robot.velocity, [1.5, np.inf])  # zero stands for none
    np.testing.assert_allclose(
        (robot.hand_lower[0], robot.hand_upper[0]), (0, 0.02)
    )  # as far as the right finger can follow
    origins = dict(robot.origins)
    assert (origins["shoulder"].torque, origins["shoulder"].torque_from, origins["shoulder"].velocity) == (
        7,
        "file",
        "file",
    )
    assert origins["left"].limits == "file, narrowed by right" and origins["wrist/roll"].limits == "missing"
    assert {"joint wrist/roll has no limits", "joint wrist/roll has no velocity limit"} <= set(robot.notes)
    np.testing.assert_allclose(robot.qpos(jnp.zeros(2), jnp.array([0.01]))[2:], [0.01, -0.01], atol=1e-7)
    assert "follower: right = -1 left" in robot.describe()


def test_frames_of_links_are_those_of_the_file(robot):
    c, s = np.cos(0.1), np.sin(0.1)
    roll = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    q = 0.4
    turn = np.array([[np.cos(q), 0, np.sin(q)], [0, 1, 0], [-np.sin(q), 0, np.cos(q)]])
    z = np.array([0, 0, 0.3])
    upper = roll @ turn
    expected = z + upper @ (z + roll @ z)
    tool = robot.tool_pose(jnp.array([q, 0.0]))
    np.testing.assert_allclose(tool.position, expected, atol=1e-6)
    np.testing.assert_allclose(tool.rotation, upper @ roll @ roll, atol=1e-6)


def test_meshes_are_found_scaled_and_covered(robot, file):
    body = robot.kinematics.body("fore")
    spheres = robot.spheres.take([i for i, b in enumerate(robot.spheres.body) if b == body])
    corners = 1e-3 * np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 300]])
    apart = np.linalg.norm(corners[:, None] - np.array(spheres.center), axis=-1) - spheres.radii
    assert len(spheres) > 1 and apart.min(axis=1).max() < 1e-6
    assert np.max(np.array(spheres.center) + spheres.radii[:, None]) < 0.35
    moved = file.parent.parent / "elsewhere"
    moved.mkdir()
    (file.parent.parent / "meshes").rename(moved / "meshes")
    with pytest.raises(
        FileNotFoundError, match=r"arm.urdf: no mesh 'package://lab_arm/meshes/fore.stl' of link 'fore' .*packages="
    ):
        Embodiment.from_urdf(file, tool="tool0")
    again = Embodiment.from_urdf(file, tool="tool0", packages={"lab_arm": moved})
    assert again.spheres == robot.spheres
    text = ARM.replace("package://lab_arm/meshes/fore.stl", str(moved / "meshes" / "fore.stl"))
    assert Embodiment.from_urdf(text, tool="tool0").spheres == robot.spheres


def test_the_kept_xml_is_the_same_robot_in_mujoco(robot):
    model = mujoco.MjModel.from_xml_string(robot.xml)
    assert [model.body(b).name for b in range(1, model.nbody)] == ["base", "upper", "fore", "tool0", "left", "right"]
    data = mujoco.MjData(model)
    data.qpos[:] = robot.qpos(jnp.array([0.3, -0.5]))
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(data.body("tool0").xpos, robot.tool_pose(jnp.array([0.3, -0.5])).position, atol=1e-6)


PLAIN = ARM.replace(
    '<mesh filename="package://lab_arm/meshes/fore.stl" scale="0.001 0.001 0.001"/>', '<sphere radius=".1"/>'
)
BAD = {
    "cut off": (PLAIN[:-10], r"URDF string: no well-formed XML"),
    "MJCF": ("<mujoco/>", r"the outermost element is <mujoco>, not <robot>"),
    "xacro": (PLAIN.replace('"7"', '"${effort}"'), r"holds xacro; expand it first"),
    "limits the wrong way round": (
        PLAIN.replace('lower="-1" upper="2"', 'lower="2" upper="-1"'),
        r"limits of joint 'shoulder' are \[2, -1\]; give",
    ),
    "limits that leave no room": (
        PLAIN.replace('lower="-1" upper="2"', 'lower="0" upper="0"'),
        r"'shoulder' are \[0, 0\]; .*a fixed or a cont",
    ),
    "limits that are no numbers": (
        PLAIN.replace('lower="-1"', 'lower="low"'),
        r"limits of joint 'shoulder' are \[low, 2\]; give",
    ),
    "two links of one name": (
        PLAIN.replace('link name="left"', 'link name="right"'),
        r"links need names of their own.*'right'",
    ),
    "two joints of one name": (PLAIN.replace('joint name="left"', 'joint name="right"'), r"joints need names.*'right'"),
    "unknown link": (
        PLAIN.replace('parent link="upper"', 'parent link="uper"'),
        r"'wrist/roll' has the parent 'uper'.*base, upper",
    ),
    "unknown kind": (PLAIN.replace("prismatic", "linear", 1), r"'left' is of type 'linear'; there are: revolute"),
    "two roots": (PLAIN.replace("</robot>", f"{link('lost')}</robot>"), r"has 2 roots: base, lost; connect all links"),
    "circle": (
        PLAIN.replace("</robot>", joint("back", "fixed", "tool0", "base") + "</robot>"),
        r"has 0 roots: none \(a circle\)",
    ),
    "two parents": (
        PLAIN.replace("</robot>", joint("again", "fixed", "base", "fore") + "</robot>"),
        r"link 'fore' is the child of several joints",
    ),
    "unknown mimic": (PLAIN.replace('mimic joint="left"', 'mimic joint="lft"'), r"joint 'right' mimics 'lft'"),
    "velocity": (PLAIN.replace('velocity="1.5"', 'velocity="fast"'), r"velocity limit of joint 'shoulder' is 'fast'"),
    "no mass": (
        PLAIN.replace(link("upper"), '<link name="upper"/>'),
        r"Element name 'upper'.*a body with joints needs mass",
    ),
    "no range": (
        PLAIN.replace('lower="0" upper="0.04"', "").replace("mimic", "note"),
        r"slide 'left' of 'lab_arm' has no limits.*limits=.'left'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_answered_in_words(name):
    text, message = BAD[name]
    assert text != PLAIN
    with pytest.raises(ValueError, match=message):
        Embodiment.from_urdf(text, tool="tool0")


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(KeyError, match=r"no body 'hand' in URDF string; it has: world, base, upper, fore, tool0"):
        Embodiment.from_urdf(PLAIN, tool="hand")
    with pytest.raises(FileNotFoundError, match=r"no URDF file .*missing.urdf"):
        Embodiment.from_urdf(tmp_path / "missing.urdf", tool="tool0")
    (tmp_path / "fore.dae").write_text("")
    with pytest.raises(
        ValueError, match=r"mesh '.*fore.dae' of link 'fore' is in a format that MuJoCo does not read; convert it"
    ):
        Embodiment.from_urdf(ARM.replace("package://lab_arm/meshes/fore.stl", str(tmp_path / "fore.dae")), tool="tool0")


def test_the_example_of_the_guide_works_as_printed(tmp_path, monkeypatch, capsys):
    guide = (pathlib.Path(__file__).parent.parent / "docs" / "robots.md").read_text()
    blocks = re.findall(r"```(xml|python)\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "lab.urdf").write_text(next(text for kind, text in blocks if kind == "xml"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(next(text for kind, text in blocks if "from_urdf" in text), names)
    robot = names["robot"]
    assert (robot.arm, robot.hand, robot.followers) == (("turn", "elbow"), ("left",), ("right",))
    assert set(names["constraints"].names) >= {"reach", "joint_limits"}
    assert "follower: right = -1 left" in capsys.readouterr().out
    assert [n for n in robot.notes if "collision spheres reach" not in n] == []
