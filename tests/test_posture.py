"""Frames that several constraints share are computed once, and never where they would be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import SceneCollision
from diffopt.constraints.posture import frames_at, with_frames
from diffopt.geometry import shapes
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment


@pytest.fixture(scope="module")
def setting():
    robot = diffopt.embodiments.load("panda")
    ball = shapes.sphere(0.2, (0.4, 0.1, 0.5)) | shapes.box((0.5, 0.5, 0.05), (0.0, 0.0, -0.1))
    constraints = robot.constraints.remove("reach") | SceneCollision(shapes=ball, robot=robot)
    plan = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.zeros(0), squeeze=jnp.zeros(0))
    return robot, constraints, plan


def test_a_report_computes_the_frames_once(setting, monkeypatch):
    robot, constraints, plan = setting
    calls, frames = [], Embodiment.frames
    monkeypatch.setattr(Embodiment, "frames", lambda *args, **more: calls.append(1) or frames(*args, **more))
    jax.eval_shape(lambda q: constraints.report(plan, {"joints": q}, None), robot.home)
    assert len(calls) == 1


def test_shared_frames_change_nothing_and_no_derivative(setting):
    robot, constraints, plan = setting
    scene = constraints["scene_collision"]

    @jax.jit
    def both(q):
        aux = {"joints": q}
        framed = with_frames(constraints, plan, aux)
        assert set(framed) == {"joints", "frames"}
        slopes = [
            jax.jacfwd(lambda q, aux=aux: scene.residual(plan, aux | {"joints": q}, None))(q) for aux in (aux, framed)
        ]
        return (
            [scene.residual(plan, a, None) for a in (aux, framed)],
            [scene.jacobian(plan, a, None)[1] for a in (aux, framed)],
            slopes,
        )

    for plain, framed in both(robot.home):
        np.testing.assert_allclose(plain, framed, atol=1e-6)
    assert np.abs(both(robot.home)[2][1]).max() > 0.1


def test_frames_of_another_robot_or_hand_are_not_taken(setting):
    robot, constraints, plan = setting
    framed = with_frames(constraints, plan, {"joints": robot.home})
    assert frames_at(robot, plan, framed) is framed["frames"].frames
    other = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.ones(0), squeeze=jnp.zeros(0))
    assert frames_at(robot, other, framed) is not framed["frames"].frames
    moved = {**framed, "joints": robot.home + 0.1}
    np.testing.assert_allclose(frames_at(robot, plan, moved).position, robot.frames(robot.home + 0.1).position)
    assert with_frames([constraints["scene_collision"]], plan, {"joints": robot.home}).keys() == {"joints"}
