"""The floating Allegro and lift-on-arm: what has to succeed does, and every failure has its own reason."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from diffopt.geometry import Pose
from diffopt.physics import load_engine
from diffopt.plans import Grasp
from diffopt.robots import embodiments
from diffopt.scenes import GraspObject, Part, tabletop
from diffopt.tasks import arm_motion, floating_grasp, lift_on_arm, lift_run
from diffopt.tasks.floating_grasp import FloatingHand
from diffopt.tasks.lift_on_arm import LiftProtocol, LiftTrial

BLOCK = GraspObject(
    name="block", family="test", parts=(Part(kind="box", size=(0.05, 0.06, 0.025)),), mass=0.2, rests=((1.0, 0.0, 0.0),)
)
_WRIST = np.array([-0.0877, 0.0083, -0.0433])  # in the block's frame [m]
_SQUEEZE = 0.15 * np.array([0, 1, 1, 1] * 3 + [0, 0, 1, 1], float)


def _fingers(curl: float, thumb: float) -> np.ndarray:
    """Allegro joints [rad]: three fingers curled alike, the thumb opposed."""
    return np.array([0, curl, 0.9 * curl, 0.7 * curl] * 3 + [1.3, 0.5 * thumb, thumb, 0.8 * thumb])


FINGERS = _fingers(0.4624, 0.8259)


def _grasp(R: np.ndarray, p: np.ndarray) -> Grasp:
    """The block's grasp, the block standing at (R, p)."""
    return Grasp(position=p + R @ _WRIST, rotation=R, joints=FINGERS, squeeze=_SQUEEZE)


def _batch(*grasps: Grasp) -> Grasp:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *grasps)


HELD = _grasp(np.eye(3), np.zeros(3))
AWAY = replace(HELD, position=HELD.position - np.array([0.05, 0.0, 0.0]))
INSIDE = replace(HELD, position=HELD.position + np.array([0.04, 0.0, 0.0]))
NOTHING = replace(HELD, joints=np.full(16, np.nan))


def test_floating_allegro():
    hand = FloatingHand.load("allegro")
    outcome = floating_grasp.evaluate(hand, [BLOCK], _batch(HELD, AWAY, INSIDE, NOTHING), np.zeros(4, int), engine="c")
    assert outcome.success.tolist() == [True, False, False, False]
    assert outcome.reason == ("", "moved", "object penetration", "no plan")
    assert outcome.protocol == "dexgraspbench-v1"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_engines_agree_on_the_allegro(record_property):
    """Eight perturbed grasps of a block and a longer one: MJX decides as C does but for chaotic cases."""
    rng = np.random.default_rng(0)
    hand = FloatingHand.load("allegro")
    longer = replace(BLOCK, parts=(Part(kind="box", size=(0.05, 0.075, 0.022)),))
    n = 8
    shift, curl, thumb = rng.normal(size=(n, 3)) * 0.006, rng.normal(size=n) * 0.08, rng.normal(size=n) * 0.08
    grasps = _batch(
        *(
            replace(HELD, position=HELD.position + shift[i], joints=_fingers(0.4624 + curl[i], 0.8259 + thumb[i]))
            for i in range(n)
        )
    )
    which = np.arange(n) % 2
    ours, theirs = (
        floating_grasp.evaluate(hand, [BLOCK, longer], grasps, which, engine=load_engine(name)) for name in ("c", "mjx")
    )
    agreement = float(np.mean(ours.success == theirs.success))
    record_property("agreement", agreement)
    print(f"agreement {agreement:.3f}: C {ours.success.sum()}, MJX {theirs.success.sum()} of {n}")
    assert agreement >= 0.75


# lift-on-arm: palm down over the block, fingers pointing away from the base
R_WORLD_BLOCK = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
PLACE = np.array([0.5, 0.0, 0.0501])
JOINTS = np.array([-1.0221, 0.5099, 0.8273, -2.8303, 2.8965, 1.6152, -1.1537])


@pytest.fixture(scope="module")
def robot():
    return embodiments.load("panda-allegro")


def _scene(*obstacles: Part):
    return tabletop(BLOCK, placement=Pose(position=PLACE, rotation=R_WORLD_BLOCK), obstacles=obstacles)


def _lift(robot, **changes) -> LiftTrial:
    """The trial whose wrist is where the joints put it, with changes."""
    wrist = robot.tool_pose(JOINTS)
    grasp = replace(HELD, position=np.asarray(wrist.position), rotation=np.asarray(wrist.rotation))
    return replace(LiftTrial(robot=robot, scene=_scene(), grasp=grasp, joints=JOINTS), **changes)


def test_lift_on_arm(robot):
    far = replace(_lift(robot).grasp, position=_lift(robot).grasp.position + np.array([0.2, 0.0, 0.0]))
    post = Part(kind="box", size=(0.05, 0.02, 0.15), position=(0.35, 0.0, 0.15))  # stands in the forearm
    trials = {
        "": _lift(robot),
        "no plan": _lift(robot, joints=np.full(7, np.nan)),
        "unreachable": _lift(robot, grasp=far),
        "collision": _lift(robot, scene=_scene(post)),
        "not lifted": _lift(robot, grasp=replace(_lift(robot).grasp, joints=_fingers(0.2, 0.5), squeeze=0 * _SQUEEZE)),
    }
    outcome = lift_on_arm.evaluate(list(trials.values()))
    print(outcome)
    assert outcome.protocol == "lift-on-arm-v1"
    assert outcome.reason[:4] == tuple(trials)[:4]
    assert outcome.reason[4] in ("not lifted", "dropped")
    assert outcome.success.tolist() == [True, False, False, False, False]
    assert outcome.raised[0] > 0.08
    assert outcome.displacement[0] < 0.05


def test_a_heavy_object_stays_on_the_table(robot):
    scene = _scene()
    heavy = replace(scene, object=replace(BLOCK, mass=2.5))
    outcome = lift_on_arm.evaluate([_lift(robot, scene=heavy)])
    assert outcome.reason[0] in ("dropped", "not lifted")


def test_slow_motors_are_a_limit(robot):
    slow = replace(robot, velocity=robot.velocity * 0.02)
    outcome = lift_on_arm.evaluate([_lift(slow)], replace(LiftProtocol(), speed=10.0, approach=0.5))
    assert outcome.reason == ("limit",)


def test_wrong_joint_counts_name_both_sides(robot):
    with pytest.raises(ValueError, match=r"shape \(6,\); the arm of 'panda-allegro' needs \(7,\)"):
        lift_on_arm.evaluate([_lift(robot, joints=JOINTS[:6])])
    with pytest.raises(ValueError, match="no object to lift"):
        lift_on_arm.evaluate([_lift(robot, scene=tabletop())])


def test_a_tracked_line_is_straight_and_within_limits(robot):
    import mujoco

    model = lift_run.scene_model(_lift(robot), LiftProtocol())
    data = mujoco.MjData(model)
    arm = arm_motion.Arm.of(model, robot.arm, robot.hand, robot.tool)
    path, error = arm_motion.track_line(model, data, arm, JOINTS, np.array([0.0, 0.0, 0.1]), 16)
    assert error < 0.01
    assert (path >= arm.lower).all() and (path <= arm.upper).all()
    ends = [arm_motion.wrist_pose(model, data, arm, q) for q in path[[0, -1]]]
    np.testing.assert_allclose(ends[1][0] - ends[0][0], [0, 0, 0.1], atol=0.01)
    expected = robot.tool_pose(path[-1])  # MuJoCo's kinematics and ours
    np.testing.assert_allclose(ends[1][0], expected.position, atol=1e-4)
