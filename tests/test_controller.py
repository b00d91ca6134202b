"""The controller: continuity at the seams, what it sends where nothing feasible is found, and chunks that begin in the past."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt import Controller
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.geometry import Pose, shapes
from diffopt.paths import JointPath, JointPathSpec
from diffopt.policies import gaussian_mixture
from diffopt.policies.base import Normalizer
from diffopt.samplers import OGD

H, DT = 6, 0.1
DATA = Path(__file__).parent / "data" / "lerobot" / "state"


@pytest.fixture(scope="module")
def robot():
    return diffopt.embodiments.load("panda-gripper")


def swinging(robot, rate):
    """A policy of joint paths that always swings the first joint from where home is, at `rate` [rad/s]."""
    spec = JointPathSpec(arm_names=robot.arm, joint_names=robot.hand, horizon=H, dt=DT)
    arm = jnp.tile(robot.home, (H, 1)).at[:, 0].add(rate * DT * jnp.arange(1, H + 1))
    vector = spec.encode(JointPath(arm=arm, joints=jnp.full((H, 1), 0.04), dt=DT), Pose.identity())
    policy = gaussian_mixture(np.zeros((1, spec.dim)), 0.05, spec=spec)
    return replace(policy, normalizer=Normalizer(mean=vector, scale=jnp.full(spec.dim, 0.1)))


def test_policies_that_do_not_plan_motions_are_refused(robot):
    with pytest.raises(TypeError, match="ToolPath or JointPath"):
        Controller(policy=gaussian_mixture([[0.0, 0.0]], 1.0), robot=robot)
    with pytest.raises(ValueError, match="execute=9"):
        Controller(policy=swinging(robot, 1.0), robot=robot, execute=9)
    with pytest.raises(ValueError, match="panda_joint1"):
        Controller(policy=swinging(robot, 1.0), robot=robot, execute=3).start(np.zeros(3))


@pytest.mark.slow
def test_commands_are_continuous_and_never_violate(robot):
    """A policy that swings too fast, and a wall that stands in its way from the third call on."""
    wall = shapes.box((0.02, 0.5, 0.5), (0.0, 0.45, 0.5))
    away = replace(wall, position=wall.position + jnp.array([0.0, 5.0, 0.0]))
    quick = OGD(every=3, terminal=4)
    controller = Controller(policy=swinging(robot, 4.0), robot=robot, sampler=quick, execute=3, levels=6, lag=0.05)
    memory = controller.start(robot.home)
    commands, sources = [np.asarray(robot.home)], []
    for call in range(6):
        chunk, memory = controller.plan(
            None, memory, ConstraintSet.of(SceneCollision(shapes=away if call < 2 else wall))
        )
        sources += [chunk.source] * 3
        commands += list(chunk.joints[:3])
        assert chunk.attempts >= 1 and (chunk.source == "planned") == (
            "feasible" in chunk.report and "infeasible" not in chunk.report and "but" not in chunk.report
        )
    steps = np.abs(np.diff(commands, axis=0))
    assert (steps <= np.asarray(robot.velocity) * DT + 1e-5).all()
    assert sources[:6] == ["planned"] * 6 and steps[:6, 0].min() > 0.9 * 0.97 * float(robot.velocity[0]) * DT
    clear = SceneCollision(shapes=wall, robot=robot)
    hand = diffopt.plans.Grasp(
        position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.array([0.04]), squeeze=jnp.zeros(1)
    )
    sent = [q for q, source in zip(commands[7:], sources[6:], strict=True) if source != "stop"]
    rows = np.array([clear.residual(hand, {"joints": jnp.asarray(q)}, None).max() for q in sent])
    assert (rows <= clear.margin).all()
    stopped = [step.max() for step, source in zip(steps[6:], sources[6:], strict=True) if source == "stop"]
    assert (np.array(stopped) < 1e-6).all()


@pytest.mark.slow
def test_it_stops_where_nothing_is_feasible(robot):
    """A scene that encloses the hand: no plan, no rest of an earlier chunk, so it stays where it is and says why."""
    tool = np.asarray(robot.tool_pose(robot.home).position)
    cage = SceneCollision(shapes=shapes.sphere(0.5, tool))
    controller = Controller(
        policy=swinging(robot, 1.0), robot=robot, sampler=OGD(every=3, terminal=4), execute=3, levels=6
    )
    chunk, memory = controller.plan(None, controller.start(robot.home), ConstraintSet.of(cage))
    assert chunk.source == "stop" and chunk.attempts == controller.attempts and "scene_collision" in chunk.report
    np.testing.assert_allclose(chunk.joints, np.tile(robot.home, (H, 1)), atol=1e-6)
    assert controller.off(
        memory, Pose(position=jnp.asarray(tool) + 0.05, rotation=robot.tool_pose(robot.home).rotation)
    )
    assert not controller.off(memory, robot.tool_pose(robot.home))


def test_it_executes_what_the_checkpoint_says(robot):
    """LeRobot's policy with two observed steps and four executed: its first knot lies in the past."""
    spec = JointPathSpec(arm_names=robot.arm[:4], joint_names=robot.hand, horizon=8)
    policy = diffopt.policies.from_lerobot(DATA, spec=spec)
    controller = Controller(policy=policy, robot=robot)
    assert (controller.first, controller.horizon, controller.execute) == (1, 7, 4)
    assert Controller(policy=policy, robot=robot, execute=2).execute == 2
    with pytest.raises(ValueError, match="execute=8; the policy plans 7 knots"):
        Controller(policy=policy, robot=robot, execute=8)


@pytest.mark.slow
def test_knots_in_the_past_are_skipped(robot):
    """A policy whose chunks begin a step ago: the first command is the second knot, and the limits hold from where the robot is."""
    policy = replace(swinging(robot, 1.0), executed=(1, 4))  # its knots lie 0.1, 0.2, ... rad away
    quick = OGD(every=3, terminal=4)
    controller = Controller(policy=policy, robot=robot, sampler=quick, levels=6, lag=0.05)
    memory = controller.start(robot.home)
    commands = [np.asarray(robot.home)]
    for _ in range(2):
        chunk, memory = controller.plan(None, memory)
        assert chunk.source == "planned" and chunk.joints.shape == (H - 1, 7) and len(chunk.expected.position) == H - 1
        np.testing.assert_allclose(chunk.joints, chunk.plan.arm[1:], atol=1e-3)
        commands += list(chunk.joints[:3])
    steps = np.abs(np.diff(commands, axis=0))
    assert (steps <= np.asarray(robot.velocity) * DT + 1e-5).all()
    np.testing.assert_allclose(commands[1][0] - robot.home[0], 0.2, atol=0.03)  # knot 1
