"""The controller: continuity at the seams, what it sends where nothing feasible is found, and chunks that begin in the past."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt import Controller
from diffopt.chunks import best, followed, trailing
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.geometry import Pose, rotation_vector, shapes
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


def slot(robot, room):
    """Two walls beside the hand at home, `room` [m] away from its widest spheres."""
    hand = robot.spheres.take([i for i, b in enumerate(robot.spheres.body) if b in robot.below_tool])
    y = np.asarray(robot.base.rotation @ hand.place(robot.frames(robot.home)) + robot.base.position[:, None])[1]
    low, high = (y - hand.radii).min() - room, (y + hand.radii).max() + room
    x, _, z = np.asarray(robot.tool_pose(robot.home).position)
    walls = [shapes.box((0.1, 0.01, 0.05), (x, side, z - 0.05)) for side in (low - 0.01, high + 0.01)]
    return ConstraintSet.of(SceneCollision(shapes=walls[0] | walls[1]))


def test_a_chunk_is_judged_without_the_clearance_that_it_aims_at(robot):
    """The hand rests between walls 4.7 mm away: nearer than the clearance, further than what is asked for."""
    walls = slot(robot, 0.0047)
    controller = Controller(
        policy=swinging(robot, 0.0), robot=robot, sampler=OGD(every=3, terminal=4), execute=3, levels=6
    )
    chunk, _ = controller.plan(None, controller.start(robot.home), walls)
    assert chunk.source == "planned" and chunk.attempts == 1 and max(chunk.violation.values()) < 1e-3
    aimed, _ = controller.plan(None, controller.start(robot.home), walls.tightened(0.005))
    assert aimed.source != "planned" and aimed.violation["scene_collision"] > 1e-3


def test_attempts_take_turns_with_the_clearances_and_the_best_is_returned(robot, monkeypatch):
    """Of violations that differ by millimetres, too."""
    seen, worst, draw = [], [0.012, 0.011, 0.01, 0.013], diffopt.controller.draw

    def watched(policy, observation, setting, *rest):
        found, excess = draw(policy, observation, setting, *rest)
        depth = worst[len(seen)]
        seen.append(setting.clearance)
        return replace(
            found, violation=found.violation | dict(scene_collision=np.array([depth]))
        ), 0 * excess + 1e3 * depth

    monkeypatch.setattr(diffopt.controller, "draw", watched)
    at = np.asarray(robot.tool_pose(robot.home).position)
    cage = ConstraintSet.of(SceneCollision(shapes=shapes.sphere(0.5, at)))
    quick = dict(policy=swinging(robot, 1.0), robot=robot, sampler=OGD(every=0, terminal=1), execute=3, levels=2)
    controller = Controller(**quick, attempts=4, clearance=(0.01, 0.02, 0.04))
    chunk, _ = controller.plan(None, controller.start(robot.home), cage)
    assert seen == [0.01, 0.02, 0.04, 0.01] and chunk.attempts == 4
    assert chunk.violation["scene_collision"] == min(worst)
    with pytest.raises(ValueError, match="one per attempt"):
        Controller(**quick, clearance=())


def test_what_is_the_best_of_some_draws():
    """Feasible ones by how far they were corrected, others by what they violate; and what is no number is the worst."""

    @dataclass
    class Drawn:
        feasible: np.ndarray
        terminal_move: np.ndarray

        @property
        def stats(self):
            return self

        def __getitem__(self, i):
            return i

    def chosen(feasible, excess, moved):
        return best(Drawn(np.array(feasible), np.array(moved, np.float32)), np.array(excess, np.float32))

    assert chosen([False, True, True], [0.0, 0.0, 0.0], [0.1, 3.0, 2.0]) == (2, (False, 2.0))
    assert chosen([False, False, False], [np.nan, 20.5, 20.25], [0.0, 0.0, 0.0]) == (2, (True, 20.25))


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


def test_servos_go_on_from_where_they_are():
    """T q' = c - q by hand: what is held still is neared like exp(-t / T), from where it was measured or where the past has left it."""
    T, past = np.array([0.1, 0.05], np.float32), np.array([[0.0, 1.0], [0.2, 1.0], [0.3, 0.9]], np.float32)
    still, behind = np.tile(past[-1], (3, 1)), np.array([0.04, -0.02], np.float32)
    t = DT * np.arange(1, 7)[:, None] / 2
    np.testing.assert_allclose(
        followed(past[-1], behind, still, T, DT, 2), past[-1] - behind * np.exp(-t / T), atol=1e-6
    )
    way = past[-1] + np.linspace(0.1, 0.3, 3)[:, None] * np.array([1.0, -1.0])
    whole = followed(past[0], jnp.zeros(2), np.concatenate([past[1:], way]), T, DT, 4)
    np.testing.assert_allclose(followed(past[-1], trailing(past, T, DT), way, T, DT, 4), whole[8:], atol=1e-6)


def test_a_chunk_is_judged_from_where_the_arm_is(robot):
    """The arm is not where it was sent, and a ball lies where it is: to stand still is fine by the commands, not by what is measured."""
    controller = Controller(policy=swinging(robot, 1.0), robot=robot, execute=3, lag=0.1)
    memory = controller.start(robot.home)
    measured = np.asarray(robot.home) + np.array([0.3, 0, 0, 0, 0, 0, 0])
    ball = ConstraintSet.of(SceneCollision(shapes=shapes.sphere(0.02, robot.tool_pose(jnp.asarray(measured)).position)))
    still, open_hand = np.tile(robot.home, (H, 1)), np.full((H, 1), 0.04)
    assert controller._fine(controller._setting(memory, ball), still, open_hand)
    assert controller._fine(controller._setting(memory, ball, joints=np.asarray(robot.home)), still, open_hand)
    assert not controller._fine(controller._setting(memory, ball, joints=measured), still, open_hand)
    chunk = controller._chunk(still, open_hand, controller._setting(memory, ball, joints=measured), source="planned")
    behind = [np.linalg.norm(chunk.tool_at(k).position - robot.tool_pose(robot.home).position) for k in range(H)]
    assert 0.03 < behind[0] < 0.08 and behind[-1] < 1e-3  # exp(-1) of 0.3 rad, and as good as there
    with pytest.raises(ValueError, match="panda_joint1"):
        controller.plan(None, memory, joints=np.zeros(3))


def test_an_arm_that_stays_held_up_passes_things_elsewhere(robot):
    """Held 15 mm off commands that lead past a ball 8 mm away: let go of, the arm is back on them before it gets there; else not."""
    hand = diffopt.plans.Grasp(
        position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.array([0.04]), squeeze=jnp.zeros(1)
    )

    def moved(q):
        pose = robot.tool_pose(q)
        return jnp.concatenate([pose.position, rotation_vector(robot.tool_pose(robot.home).rotation.T @ pose.rotation)])

    home, inverse = np.asarray(robot.home), np.linalg.pinv(np.asarray(jax.jacfwd(moved)(robot.home)))
    ahead, aside = np.asarray(robot.tool_pose(home).rotation)[:, :2].T
    way = home + np.linspace(0.01, 0.08, H)[:, None] * (inverse[:, :3] @ ahead)
    off = inverse[:, :3] @ (0.015 * aside)
    end = robot.tool_pose(way[-1])
    centre = np.asarray(end.position) + 0.094 * aside + 0.1 * np.asarray(end.rotation)[:, 2]
    ball = SceneCollision(shapes=shapes.sphere(0.02, centre))
    clear = -replace(ball, robot=robot).residual(hand, {"joints": jnp.asarray(way[-1])}, None).max()
    assert 0.006 < clear < 0.01

    controller = Controller(policy=swinging(robot, 1.0), robot=robot, execute=3, lag=0.1)
    memory, scene, grip = controller.start(home), ConstraintSet.of(ball), np.full((H, 1), 0.04)

    def fine(joints, **options):
        judge = replace(controller, **options)
        return judge._fine(judge._setting(memory, scene, joints=joints), way.astype(np.float32), grip)

    assert fine(home) and fine(home - off) and fine(home + 0.3 * off)
    assert not fine(home + off) and fine(home + off, guard=None)


def test_the_rest_of_a_chunk_holds_from_where_the_arm_is(robot):
    """The arm is held 15 mm off its commands, which are 8 mm clear of a ball. Let go of on the far side of the ball, it goes back in free
    space; on the side of the ball it goes back through it."""
    tool = robot.tool_pose(robot.home)
    aside = np.asarray(tool.rotation)[:, 1]
    hand = diffopt.plans.Grasp(
        position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.array([0.04]), squeeze=jnp.zeros(1)
    )

    centre = np.asarray(tool.position) + 0.094 * aside + 0.1 * np.asarray(tool.rotation)[:, 2]
    ball = SceneCollision(shapes=shapes.sphere(0.02, centre))
    clear = -replace(ball, robot=robot).residual(hand, {"joints": robot.home}, None).max()
    assert 0.006 < clear < 0.01
    scene = ConstraintSet.of(ball)

    def moved(q):
        pose = robot.tool_pose(q)
        return jnp.concatenate([pose.position, rotation_vector(tool.rotation.T @ pose.rotation)])

    off = np.linalg.pinv(np.asarray(jax.jacfwd(moved)(robot.home))) @ np.array([*(0.015 * aside), 0, 0, 0])

    controller = Controller(policy=swinging(robot, 1.0), robot=robot, execute=3, lag=0.1)
    memory, still = controller.start(robot.home), np.tile(robot.home, (H, 1))
    chunk = controller._chunk(still, np.full((H, 1), 0.04), controller._setting(memory, scene), source="planned")
    home = np.asarray(robot.home)
    np.testing.assert_allclose(robot.tool_pose(home + off).position - tool.position, 0.015 * aside, atol=1e-3)
    for k in (0, 2):
        assert controller.holds(chunk, k, memory, home - off, scene) and controller.holds(chunk, k, memory, home, scene)
        assert not controller.holds(chunk, k, memory, home + off, scene)
        assert controller.holds(chunk, k, memory, home + off)  # without a ball
        assert controller.holds(chunk, k, memory, home + 0.3 * off, scene)  # as far off as arms are that follow
        assert replace(controller, guard=None).holds(chunk, k, memory, home + off, scene)
    after = controller.after(chunk, memory, 2)  # from which to plan: the commands that were sent
    assert len(after.trail) == 3 and after.waypoints == (0,) and after.barren == 0
    assert controller._fine(controller._setting(after, scene), still, chunk.hand)
    assert not controller._fine(controller._setting(after, scene, joints=home + off), still, chunk.hand)
