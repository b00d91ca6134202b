"""Files as laboratories have them: robots of others, odd and broken ones. They load, or are refused in words."""

import pathlib
import re

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffopt
from diffopt.robots import embodiments, sampling
from diffopt.robots.embodiment import Embodiment

TEST_DATA = pathlib.Path(mujoco.__file__).parent / "mjx" / "test_data"
THIRD_PARTY = {
    "shadow_hand/scene_right.xml": dict(tool="rh_palm"),  # meshes, a floor and an object besides the hand
    "barkour_v0/assets/barkour_v0_mjx.xml": dict(
        tool="lower_leg_1to1_front_right", base="chassis"
    ),  # floats, on a height field
    "humanoid/humanoid.xml": dict(tool="hand_right", base="torso"),
    "actuator/arm26.xml": dict(tool="body2"),  # bodies without names, muscles
}


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_robots_of_others_load_and_agree_with_mujoco(name):
    file = TEST_DATA / name
    if not file.is_file():
        pytest.skip(f"this build of MuJoCo MJX came without its test data: {file}")
    robot = Embodiment.from_mjcf(file, tolerance=0.02, **THIRD_PARTY[name])
    assert robot.arm and all(joint in robot.describe() for joint in (*robot.arm, *robot.hand))
    model = mujoco.MjModel.from_xml_string(robot.xml)
    data, fk = mujoco.MjData(model), jax.jit(robot.kinematics.fk)
    rng = np.random.default_rng(0)
    for _ in range(3):
        data.qpos[:] = rng.normal(size=model.nq)
        mujoco.mj_kinematics(model, data)
        frames = fk(jnp.asarray(data.qpos, jnp.float32))
        np.testing.assert_allclose(frames.position, data.xpos, atol=1e-5)
        np.testing.assert_allclose(np.reshape(frames.rotation, (-1, 9)), data.xmat, atol=1e-5)
    hand = robot.hand_lower + 0.3 * (robot.hand_upper - robot.hand_lower)
    data.qpos[:] = robot.qpos(robot.home, hand)
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(robot.tool_pose(robot.home).position, data.body(robot.tool).xpos, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_robots_of_others_solve(name):
    """Poses by forward kinematics from random joints that satisfy all of the robot's constraints are found again."""
    file = TEST_DATA / name
    if not file.is_file():
        pytest.skip(f"this build of MuJoCo MJX came without its test data: {file}")
    robot = Embodiment.from_mjcf(file, tolerance=0.02, **THIRD_PARTY[name])
    joints = robot.seeds[1:65]
    found = diffopt.ik(robot, jax.vmap(robot.tool_pose)(joints))
    assert np.asarray(found.solved).mean() >= 0.95


def test_what_was_done_to_a_file_is_said():
    file = TEST_DATA / "barkour_v0/assets/barkour_v0_mjx.xml"
    if not file.is_file():
        pytest.skip(f"this build of MuJoCo MJX came without its test data: {file}")
    robot = Embodiment.from_mjcf(file, **THIRD_PARTY["barkour_v0/assets/barkour_v0_mjx.xml"])
    text = robot.describe()
    assert (
        "left out, of the world: hfield_floor" in text and "with which the base floats in the file, is left out" in text
    )
    assert "these stay where the file has them: abduction_front_left" in text
    with pytest.raises(ValueError, match=r"is of type free; .*give its body as base= to have it fixed"):
        Embodiment.from_mjcf(file, tool="lower_leg_1to1_front_right")


ARM = """<mujoco model="arm">
  <compiler angle="radian"/>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="base">
      <geom type="cylinder" size=".1 .1"/>
      <body name="upper" pos="0 0 .3">
        <joint name="shoulder" axis="0 1 0" range="-2 2"/>
        <geom type="capsule" size=".05" fromto="0 0 0 0 0 .3"/>
        <body name="palm" pos="0 0 .4">
          <joint name="wrist" axis="1 0 0"/>
          <geom type="box" size=".04 .05 .01"/>
          <body name="finger" pos="0 0 .1"><joint name="bend" axis="1 0 0" range="0 1"/><geom type="sphere" size=".02"/></body>
        </body>
      </body>
    </body>
    <body name="cube" pos="1 0 0"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
  <actuator><position name="servo" joint="wrist" kp="10" ctrlrange="-1 1" forcerange="-3 3"/></actuator>
  <keyframe><key name="home" qpos=".5 .25 .1 1 0 0 1 0 0 0"/></keyframe>
</mujoco>"""


def test_where_each_number_came_from():
    robot = Embodiment.from_mjcf(ARM, tool="palm", velocity={"shoulder": 2.0}, limits={"bend": (0.1, 0.9)})
    origins = dict(robot.origins)
    assert [origins[j].limits for j in ("shoulder", "wrist", "bend")] == ["file", "actuator", "given"]
    assert [origins[j].home for j in ("shoulder", "wrist", "bend")] == ["keyframe"] * 3
    assert (origins["shoulder"].velocity, origins["wrist"].velocity) == ("given", "missing")
    assert (origins["wrist"].torque, origins["wrist"].torque_from, origins["bend"].torque_from) == (
        3,
        "actuator",
        "missing",
    )
    np.testing.assert_allclose((robot.lower, robot.upper), [[-2, -1], [2, 1]])
    np.testing.assert_allclose((robot.hand_lower[0], robot.hand_upper[0]), (0.1, 0.9))
    np.testing.assert_allclose([*robot.home, *robot.hand_home], [0.5, 0.25, 0.1])
    assert {"left out, of the world: floor", "left out, not connected with the tool: cube"} <= set(robot.notes)
    row = next(line.split() for line in robot.describe().splitlines() if line.startswith("shoulder"))
    assert row == [
        "shoulder",
        "arm",
        "hinge",
        "-2.0000",
        "2.0000",
        "file",
        "2.0000",
        "given",
        "-",
        "missing",
        "0.5000",
        "keyframe",
    ]


BAD = {
    "no XML": (ARM[:-20], {}, r"XML string: MuJoCo cannot read it: .*the text is no well-formed XML"),
    "a name twice": (
        ARM.replace('"wrist" axis', '"shoulder" axis'),
        {},
        r"repeated name 'shoulder'.*rename one of the two",
    ),
    "no mass": (
        ARM.replace('<geom type="sphere" size=".02"/>', ""),
        {},
        r"Element name 'finger'.*a body with joints needs mass: give it an <inertial>",
    ),
    "limits the wrong way round": (
        ARM,
        dict(limits={"bend": (1, 0)}),
        r"limits of 'bend' of 'arm': \[1, 0\]; give the lower",
    ),
    "a slide without limits": (
        ARM.replace('"wrist" axis', '"wrist" type="slide" axis')
        .replace("ctrlrange", "user=''  ctrlrange")
        .replace('ctrlrange="-1 1"', ""),
        {},
        r"slide 'wrist' of 'arm' has no limits.*limits=.'wrist': \(low, high\)",
    ),
    "no number": (
        ARM.replace('pos="0 0 .3"', 'pos="0 nan .3"', 1),
        {},
        r"XML string: pos of body 'upper' is \[0. *nan *0.3\]; give numbers",
    ),
    "no axis": (
        ARM.replace('axis="0 1 0"', 'axis="0 nan 0"', 1),
        {},
        r"axis of joint 'shoulder' is .*nan.*; give numbers",
    ),
    "no range": (
        ARM.replace('range="-2 2"', 'range="-2 nan"', 1),
        {},
        r"range of joint 'shoulder' is .*nan.*; give numbers",
    ),
    "too far": (
        ARM.replace('pos="0 0 .3"', 'pos="0 1e300 .3"', 1),
        {},
        r"pos of body 'upper' is .*; give .* below 1e\+06",
    ),
    "too deep": (
        "<mujoco><worldbody>" + "<body><joint/><geom size='.1'/>" * 500 + "</body>" * 500 + "</worldbody></mujoco>",
        {},
        r"XML string: MuJoCo cannot read it: .*; .*MuJoCo reads no chains of so many bodies: cut the model down",
    ),
    "a URDF": (
        "<?xml version='1.0'?> <!-- lab --> <robot name='arm'/>",
        {},
        r"<robot>, not <mujoco>; read URDF with Embodiment.from_urdf",
    ),
    "another tree": (ARM, dict(base="cube"), r"tool 'palm' is not below base 'cube' in XML string, but below 'base'"),
    "the world": (ARM, dict(tool="world"), r"the tool is a body of the robot, not the world"),
    "the world as base": (ARM, dict(base="world"), r"base 'world' is the world in XML string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_answered_in_words(name):
    xml, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Embodiment.from_mjcf(xml, **{"tool": "palm", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tolerance=-0.01), r"tolerance=-0.01: .*positive number"),
        (dict(tolerance={"plam": 0.01}), r"tolerance: no body 'plam' in 'arm'; it has: base, upper, palm, finger"),
        (dict(most_spheres=0), r"most_spheres=0: .*from 1 on"),
        (dict(velocity={"wrist": -1.0}), r"velocity limit of 'wrist' of 'arm': -1.0; give a positive number"),
        (dict(velocity={"wrist": "fast"}), r"velocity limit of 'wrist' of 'arm': 'fast'; give"),
        (dict(limits={"bend": 3}), r"limits of 'bend' of 'arm': 3; give the lower and then the upper"),
        (dict(home={"bend": float("nan")}), r"home of 'bend' of 'arm': nan; give a number"),
        (dict(hand="bend"), r"hand='bend': .*list of names, hand=\['bend'\]"),
        (dict(velocity={"wirst": 1.0}), r"no joint 'wirst' in 'arm'; it has: shoulder, wrist, bend"),
    ],
)
def test_options_that_make_no_sense_are_answered_in_words(options, message):
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        Embodiment.from_mjcf(ARM, tool="palm", **options)


def test_covers_that_are_coarser_than_asked_for_are_named():
    notes = " ".join(Embodiment.from_mjcf(ARM, tool="palm", most_spheres=1).notes)
    assert re.search(r"spheres reach up to \d+ mm outside \(of upper; further .*base, .*most_spheres=1", notes)


def test_missing_meshes_are_named(tmp_path):
    mesh = '<asset><mesh name="skull" file="skull.stl"/></asset><worldbody>'
    file = tmp_path / "arm.xml"
    file.write_text(ARM.replace("<worldbody>", mesh).replace('type="sphere" size=".02"', 'type="mesh" mesh="skull"'))
    with pytest.raises(
        FileNotFoundError, match=r"arm.xml: mesh 'skull' wants the file .*skull.stl', which does not exist; put it"
    ):
        Embodiment.from_mjcf(file, tool="palm")


def test_five_hundred_joints_are_too_many_but_a_few_of_them_are_not():
    joint = '<body pos="0 0 .1"><joint name="j{}" axis="0 1 0"/><geom size=".02"/>'
    fingers = ["".join(joint.format(f"{f}_{i}") for i in range(10)) + "</body>" * 10 for f in range(50)]
    brush = f'<mujoco model="brush"><worldbody><body name="head">{"".join(fingers)}</body></worldbody></mujoco>'
    with pytest.raises(
        ValueError, match=r"'brush' has 0 joints above and 500 below the tool 'head', more than 100 together; choose"
    ):
        Embodiment.from_mjcf(brush, tool="head")
    few = Embodiment.from_mjcf(brush, tool="head", hand=["j3_7", "j0_0"])
    assert few.hand == ("j3_7", "j0_0") and any("these stay where the file has them: j0_1" in n for n in few.notes)


def test_another_package_can_bring_robots(monkeypatch):
    import importlib.metadata as metadata

    entry = metadata.EntryPoint("lab-arm", "tests.test_robot_files:lab_arm", embodiments.GROUP)
    entries = {"lab-arm": entry, "nonsense": metadata.EntryPoint("nonsense", "os:getcwd", embodiments.GROUP)}

    def entry_points(group: str, name: str | None = None):
        assert group == "diffopt.embodiments"
        return [e for e in entries.values() if name in (None, e.name)]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda e: lab_arm if e.name == "lab-arm" else pathlib.Path.cwd)
    assert {"lab-arm", "panda", "xarm7-leap"} <= set(embodiments.available())
    assert embodiments.load.__wrapped__("lab-arm").arm == ("shoulder", "wrist")
    with pytest.raises(TypeError, match=r"entry point 'os:getcwd' of 'nonsense' returned a .*Path, not an Embodiment"):
        embodiments.load.__wrapped__("nonsense")
    with pytest.raises(KeyError, match=r"no embodiment 'lab-arn' \(did you mean 'lab-arm'\?\); there are: allegro, "):
        embodiments.load.__wrapped__("lab-arn")


def lab_arm() -> Embodiment:
    return Embodiment.from_mjcf(ARM, tool="palm")


PIECES = (
    "0",
    "-1",
    "nan",
    "inf",
    "1e30",
    "1e-30",
    "shoulder",
    "",
    "tet",
    "<",
    "ball",
    "free",
    "world",
    "cube",
    '"',
    "joint",
    "body",
)
PIECES += ("0 0 0", "0 0 0 0", "1 2", "1 -1", "slide", "palm", "finger", "plane", "hfield", "mesh")

# everything that refers to something: meshes, defaults, pairs, tendons, couplings, a closed chain, motors, sensors, a keyframe
RICH = """<mujoco model="arm">
  <compiler angle="radian"/>
  <default><joint damping="1"/><default class="f"><geom condim="4"/></default></default>
  <asset><mesh name="tet" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/></asset>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="base">
      <geom name="g0" type="cylinder" size=".1 .1"/>
      <body name="upper" pos="0 0 .3">
        <joint name="shoulder" axis="0 1 0" range="-2 2"/>
        <geom name="g1" type="capsule" size=".05" fromto="0 0 0 0 0 .3"/>
        <body name="palm" pos="0 0 .4">
          <joint name="wrist" axis="1 0 0"/>
          <geom name="g2" type="mesh" mesh="tet"/>
          <body name="finger" pos="0 0 .1" childclass="f">
            <joint name="bend" axis="1 0 0" range="0 1"/>
            <geom name="g3" type="sphere" size=".02"/>
            <site name="s1" pos="0 0 .02"/>
          </body>
          <body name="thumb" pos="0 .1 .1">
            <joint name="close" axis="1 0 0" range="-1 1"/>
            <geom name="g4" type="ellipsoid" size=".02 .01 .03"/>
            <body name="tip" pos="0 0 .05">
              <joint name="end" type="slide" axis="0 0 1" range="0 .02"/>
              <geom name="g5" type="box" size=".01 .01 .01"/>
              <site name="s2" pos="0 -.1 -.03"/>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="cube" pos="1 0 0"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
  <contact><exclude body1="base" body2="palm"/><pair geom1="g3" geom2="g4"/></contact>
  <tendon><fixed name="t"><joint joint="bend" coef="1"/><joint joint="close" coef="-1"/></fixed></tendon>
  <equality><joint joint1="close" joint2="bend" polycoef="0 1 0 0 0"/>
    <connect name="c" body1="finger" body2="tip" anchor="0 .1 0"/></equality>
  <actuator><position name="servo" joint="wrist" kp="10" ctrlrange="-1 1" forcerange="-3 3"/><motor tendon="t"/></actuator>
  <sensor><jointpos joint="wrist"/></sensor>
  <keyframe><key name="home" qpos=".5 .25 .1 .1 .01 1 0 0 1 0 0 0"/></keyframe>
</mujoco>"""


URDF = """<robot name="arm">
  <link name="base"/>
  <link name="upper"><inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial>
    <collision><origin xyz="0 0 .1"/><geometry><cylinder radius=".05" length=".2"/></geometry></collision>
  </link>
  <link name="palm"><inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/></inertial></link>
  <joint name="shoulder" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 .1"/><axis xyz="0 1 0"/>
    <limit lower="-2" upper="2" effort="10" velocity="1"/>
  </joint>
  <joint name="wrist" type="continuous"><parent link="upper"/><child link="palm"/><origin xyz="0 0 .3"/><axis xyz="0 0 1"/>
    <mimic joint="shoulder" multiplier="2"/>
  </joint>
</robot>"""


@st.composite
def damaged(draw, xml: str) -> str:
    """A file with a few places cut, repeated or overwritten."""
    for _ in range(draw(st.integers(1, 3))):
        words = xml.split('"')
        at = draw(st.integers(0, len(words) - 1))
        kind = draw(st.sampled_from(("value", "drop", "repeat", "line")))
        if kind == "value":  # of an attribute, or what is between two
            words[at] = draw(st.sampled_from(PIECES))
            xml = '"'.join(words)
        else:
            lines = xml.splitlines()
            row = draw(st.integers(0, len(lines) - 1))
            with_row = {"drop": [], "repeat": [lines[row]] * 2, "line": [draw(st.sampled_from(lines))]}[kind]
            xml = "\n".join(lines[:row] + with_row + lines[row + 1 :])
    return xml


@pytest.mark.parametrize("kind", ["mjcf", "urdf", pytest.param("rich", marks=pytest.mark.slow)])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damaged_files_load_or_are_refused_in_words(kind, data):
    source = {"mjcf": ARM, "rich": RICH, "urdf": URDF}[kind]
    read = Embodiment.from_urdf if kind == "urdf" else Embodiment.from_mjcf
    xml = data.draw(damaged(source))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_SAMPLES", 20)
        try:
            robot = read(xml, tool="palm")
        except (ValueError, KeyError) as error:
            said = str(error.args[0])
            assert len(said) > 20 and "\n" not in said and ";" in said  # what, and after it the remedy
        else:
            assert np.all(np.isfinite(robot.qpos(robot.home))) and robot.describe()
            tool = robot.tool_pose(robot.home)
            assert np.isfinite(tool.position).all() and np.isfinite(tool.rotation).all()
            assert np.isfinite(robot.seeds).all() and np.isfinite(robot.spheres.radii).all()


def test_what_is_disconnected_or_weightless_is_said():
    lone = '<body name="shelf"><geom size=".1"/></body><body name="cube"'
    robot = Embodiment.from_mjcf(ARM.replace('<body name="cube"', lone), tool="palm")
    assert "left out, not connected with the tool: shelf, cube" in robot.notes
    held = ARM.replace("<actuator>", '<equality><weld name="grip" body1="palm" body2="cube"/></equality><actuator>')
    notes = Embodiment.from_mjcf(held, tool="palm").notes
    assert "left out with them, equalities that bind the robot to them: grip" in notes
    massless = '<inertial pos="0 0 0" mass="0" diaginertia="0 0 0"/>'
    light = ARM.replace('<geom type="capsule" size=".05" fromto="0 0 0 0 0 .3"/>', massless)
    with pytest.raises(ValueError, match=r"Element name 'upper'.*a body with joints needs mass"):
        Embodiment.from_mjcf(light, tool="palm")
    with pytest.raises(KeyError, match=r"no body 'hand' in XML string; it has: world, base, upper, palm, finger, cube"):
        Embodiment.from_mjcf(ARM, tool="hand")
