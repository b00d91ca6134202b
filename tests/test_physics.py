"""Protocols, engines and pictures, on a gripper small enough that MJX compiles quickly."""

from dataclasses import replace

import numpy as np
import pytest

from diffopt.evaluation import metrics
from diffopt.geometry import Pose
from diffopt.physics import load_engine, load_protocol
from diffopt.physics.engine import HELD, LOST, NOT_RUN, rotation_angle
from diffopt.physics.protocol import PROTOCOLS
from diffopt.plans import Grasp
from diffopt.scenes.solids import GraspObject, Part
from diffopt.tasks.floating_grasp import FloatingHand, evaluate, trials

ROD, BALL = 0.01, 0.03  # radii [m]
_ANGLES = (0.0, 90.0, 180.0, 270.0)


def _gripper() -> FloatingHand:
    """Four upright rods around the origin, each sliding towards it; at q = 0 they touch a ball of 5 cm radius."""
    rods = "".join(
        f'<body name="rod{i}" euler="0 0 {a}"><joint name="rod{i}" type="slide" axis="-1 0 0" range="-0.05 0.05" damping="5"/>'
        f'<geom type="capsule" size="{ROD}" fromto="{0.05 + ROD} 0 -0.03 {0.05 + ROD} 0 0.03" density="2000"/></body>'
        for i, a in enumerate(_ANGLES)
    )
    servos = "".join(f'<position name="rod{i}" joint="rod{i}" kp="400" forcerange="-20 20"/>' for i in range(4))
    xml = (
        '<mujoco model="gripper"><compiler angle="degree" autolimits="true"/><worldbody><body name="palm">'
        f'<geom type="sphere" size="0.01" pos="0 0 -0.09"/>{rods}</body></worldbody><actuator>{servos}</actuator></mujoco>'
    )
    return FloatingHand(name="gripper", xml=xml, root="palm", joint_names=tuple(f"rod{i}" for i in range(4)))


def _ball(radius: float = BALL) -> GraspObject:
    part = Part(kind="sphere", size=(radius,))
    return GraspObject(name="ball", family="test", parts=(part,), mass=0.2, rests=((0.0, 0.0, -1.0),))


def _grasps(joints, squeeze, position=(0.0, 0.0, 0.0)) -> Grasp:
    joints, squeeze = np.broadcast_arrays(np.atleast_1d(joints)[:, None], np.atleast_1d(squeeze)[:, None])
    n = len(joints)
    return Grasp(
        position=np.broadcast_to(np.asarray(position, float), (n, 3)),
        rotation=np.broadcast_to(np.eye(3), (n, 3, 3)),
        joints=np.repeat(joints, 4, axis=1),
        squeeze=np.repeat(squeeze, 4, axis=1),
    )


PROTOCOL = replace(load_protocol("dexgraspbench"), gain=None)
CLOSED, OPEN, DEEP = 0.02, -0.049, 0.045  # of the rods: touching the ball, 7 cm away from it, 2.5 cm inside
HAND = _gripper()


def _run(grasps, protocol=PROTOCOL, engine="c", targets=None, which=None, **kwargs):
    n = len(grasps.position)
    which = np.zeros(n, int) if which is None else which
    return evaluate(HAND, targets or [_ball()], grasps, which, protocol=protocol, engine=engine, **kwargs)


def test_enclosed_ball_is_held_and_an_open_hand_loses_it():
    outcome = _run(_grasps([CLOSED, OPEN], [0.01, 0.001]))
    assert outcome.success.tolist() == [True, False]
    assert outcome.reason == ("", "moved")
    assert (outcome.held[0] == HELD).all()
    assert outcome.held[1].tolist() == [LOST] + [NOT_RUN] * 5
    assert outcome.displacement[0] < 0.02 < 0.05 <= outcome.displacement[1]


def test_success_does_not_depend_on_where_the_scene_stands():
    rng = np.random.default_rng(0)
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    p = np.array([1.0, -2.0, 3.0])
    here = _grasps([CLOSED], [0.01])
    there = replace(here, position=p[None], rotation=R[None])
    outcome = _run(there, placement=Pose(position=p, rotation=R))
    assert outcome.success.all()
    assert outcome.displacement[0] < 0.02


def test_a_light_grip_fails_where_a_firm_one_holds():
    firm, light = _run(_grasps([CLOSED], [0.01])), _run(_grasps([CLOSED], [0.0005]))
    assert firm.success.all() and not light.success.any()


def test_the_squeeze_can_be_left_out():
    grasps = _grasps([CLOSED], [0.01])
    assert _run(grasps, squeeze=1.0).success.all()
    assert not _run(grasps, squeeze=0.0).success.any()


def test_penetration_at_the_start_fails_and_is_measured():
    outcome = _run(_grasps([DEEP], [0.0]))
    assert outcome.reason == ("object penetration",)
    assert outcome.object_penetration[0] == pytest.approx(0.025, abs=1e-6)
    assert (outcome.held == NOT_RUN).all()


def test_self_penetration_at_the_start_fails():
    outcome = _run(_grasps([0.05], [0.0]), targets=[_ball(0.0005)], protocol=replace(PROTOCOL, penetration=0.005))
    assert outcome.reason == ("self penetration",)


def test_no_plan_is_a_failure_and_not_an_error():
    outcome = _run(_grasps([np.nan, CLOSED], [0.01, 0.01]))
    assert outcome.reason == ("no plan", "")


def test_table_protocol_lifts():
    protocol = replace(load_protocol("dexgraspbench-table"), gain=None)
    outcome = _run(_grasps([CLOSED, OPEN], [0.01, 0.001]), protocol=protocol, table_height=-BALL - 1e-4)
    assert outcome.success.tolist() == [True, False]
    with pytest.raises(ValueError, match="table_height"):
        _run(_grasps([CLOSED], [0.01]), protocol=protocol)


@pytest.mark.parametrize("name", [n for n in PROTOCOLS if n != "dexgraspbench-table"])
def test_every_protocol_tells_a_firm_grip_from_none(name):
    protocol = replace(load_protocol(name), gain=None)
    assert _run(_grasps([CLOSED, OPEN], [0.015, 0.001]), protocol=protocol).success.tolist() == [True, False]


def test_threads_do_not_change_results():
    grasps = _grasps([CLOSED] * 6, np.linspace(0.0005, 0.01, 6))
    one, two = (_run(grasps, engine=load_engine("c", threads=k)) for k in (1, 2))
    np.testing.assert_array_equal(one.held, two.held)
    np.testing.assert_array_equal(one.displacement, two.displacement)


def test_names_that_do_not_exist_are_answered():
    with pytest.raises(ValueError, match="there are: dexgraspbench"):
        load_protocol("dexgrasbench")
    with pytest.raises(ValueError, match="there are: auto, c, mjx"):
        load_engine("bullet")
    with pytest.raises(ValueError, match="there are models of: allegro"):
        FloatingHand.load("alegro")


def test_wrong_shapes_name_both_sides():
    grasps = _grasps([CLOSED], [0.01])
    with pytest.raises(ValueError, match=r"\(1, 3\); hand 'gripper' needs \(1, 4\)"):
        _run(replace(grasps, joints=grasps.joints[:, :3], squeeze=grasps.squeeze[:, :3]))
    with pytest.raises(ValueError, match="there are 1 objects"):
        _run(grasps, which=np.array([1]))


def test_rotation_angle_near_zero_and_near_pi():
    for angle in (1e-9, 1e-3, 1.0, np.pi - 1e-6):
        c, s = np.cos(angle), np.sin(angle)
        R = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        assert rotation_angle(np.eye(3), R) == pytest.approx(angle, rel=1e-6)


# One structure, one compilation: three balls, grips from firm to none, beside and off centre.
_N = 12
_SWEEP = _grasps(np.linspace(0.0, 0.028, _N), np.tile([0.001, 0.006, 0.012], _N // 3), position=(0.004, 0.0, 0.005))
_BALLS = [_ball(0.028), _ball(0.03), _ball(0.034)]


def test_engines_agree(record_property):
    which = np.arange(_N) % 3
    ours = _run(_SWEEP, targets=_BALLS, which=which)
    theirs = _run(_SWEEP, targets=_BALLS, which=which, engine="mjx")
    agreement = float(np.mean(ours.success == theirs.success))
    both = ours.success & theirs.success
    record_property("agreement", agreement)
    record_property(
        "largest difference of displacement [m]", float(np.abs(ours.displacement - theirs.displacement)[both].max())
    )
    assert 0 < ours.success.sum() < _N
    assert agreement >= 11 / 12
    np.testing.assert_allclose(ours.displacement[both], theirs.displacement[both], atol=2e-3)
    np.testing.assert_allclose(ours.object_penetration, theirs.object_penetration)


def test_force_closure_quality_of_opposed_and_of_one_sided_contacts():
    centre, length = np.zeros(3), 1.0
    six = np.concatenate([np.eye(3), -np.eye(3)])
    assert metrics.epsilon_quality(six, -six, centre, 0.5, length) > 0.1
    half = np.concatenate([np.eye(3), -np.eye(3)])[[0, 1, 3, 4]] + np.array([0.0, 0.0, 0.5])
    assert metrics.epsilon_quality(half, np.tile([[0.0, 0.0, -1.0]], (4, 1)), centre, 0.5, length) == 0.0
    assert metrics.epsilon_quality(six, -six, centre, 0.8, length) > metrics.epsilon_quality(
        six, -six, centre, 0.3, length
    )


def test_static_metrics_of_the_gripper():
    batch = trials(
        HAND, [_ball()], _grasps([CLOSED, CLOSED + 0.005, OPEN, np.nan], [0.0] * 4), np.zeros(4, int), PROTOCOL
    )
    found = metrics.grasp_metrics(batch)
    np.testing.assert_allclose(found.penetration, [0.0, 0.005, 0.0, np.nan], atol=1e-6)
    np.testing.assert_allclose(found.contact_distance, [0.0, 0.005, 0.01, np.nan], atol=1e-6)
    assert found.contacts.tolist() == [4, 0, 0, 0]
    assert np.isfinite(found.quality[:3]).all()


def test_diversity_of_a_line_is_none():
    line = np.linspace(0, 1, 20)[:, None] * np.ones((1, 6))
    np.testing.assert_allclose(metrics.diversity(line), 1.0)
    spread = metrics.diversity(np.random.default_rng(0).normal(size=(5000, 6)))
    np.testing.assert_allclose(spread, np.arange(1, 6) / 6, atol=0.03)


def test_pictures_are_drawn_or_the_remedy_is_named(tmp_path, monkeypatch):
    import mujoco

    from diffopt.physics.engine import reset
    from diffopt.physics.render import View, png, render_grid

    trial = trials(HAND, [_ball()], _grasps([CLOSED], [0.01]), np.zeros(1, int), PROTOCOL)[0]
    data = mujoco.MjData(trial.model)
    reset(trial, data)
    view = View(model=trial.model, data=data, lookat=np.zeros(3), distance=0.4)
    picture = render_grid([view] * 3, tmp_path / "grid.png", columns=2, size=(64, 48))
    if picture.path is None:
        assert "install" in picture.advice
    else:
        assert picture.path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    nothing = render_grid([view], tmp_path / "none.png")
    assert nothing.path is None and "install" in nothing.advice
    assert png(np.zeros((2, 3, 3), np.uint8)).startswith(b"\x89PNG")
