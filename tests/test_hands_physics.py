"""Shipped hands in physics: with the masses, gains, friction and couplings of their files they close on an object and hold it."""

import jax
import mujoco
import numpy as np
import pytest

from diffopt.compiling import compiler_options
from diffopt.physics.mjx_step import step
from diffopt.robots import embodiments
from diffopt.robots.embodiments.parts import HANDS

MASS = 0.1  # of the object [kg]
DT = 0.002
_FINGERS = {"leap": ("if", "mf", "rf"), "shadow": ("FF", "MF", "RF", "LF"), "allegro": ("ff", "mf", "rf")}
_ACROSS = (0.7071068, 0.0, 0.7071068, 0.0)

# per hand: the object (kind, size [m], position and quaternion in the palm's frame), where the joints start (zero if not named), and
# where the servos are sent; found by a search over positions of the object
GRASPS = {
    "gripper": (
        ("BOX", (0.02, 0.02, 0.03), (0.0, 0.0, 0.103), (1, 0, 0, 0)),
        {"gripper_left": 0.04},
        {"gripper_left": 0.0},
    ),
    "barrett": (
        ("CYLINDER", (0.025, 0.05, 0), (-0.008, 0.003, 0.139), (1, 0, 0, 0)),
        {},
        {"bh_j12": 2.2, "bh_j22": 2.2, "bh_j32": 2.2},
    ),
    "allegro": (
        ("SPHERE", (0.03, 0, 0), (0.058, -0.018, 0.027), (1, 0, 0, 0)),
        {"thj0": 1.3, "thj1": 0.3},
        {f"{f}j{i}": v for f in _FINGERS["allegro"] for i, v in ((1, 1.2), (2, 1.2), (3, 0.9))}
        | {"thj0": 1.396, "thj1": 0.6, "thj2": 0.9, "thj3": 0.9},
    ),
    "leap": (
        ("CYLINDER", (0.025, 0.05, 0), (0.01, -0.033, -0.06), _ACROSS),
        {"th_cmc": 1.0, "th_axl": 0.6},
        {f"{f}_{j}": v for f in _FINGERS["leap"] for j, v in (("mcp", 1.3), ("pip", 1.0), ("dip", 0.9))}
        | {"th_cmc": 1.3, "th_axl": 0.9, "th_mcp": 0.9, "th_ipl": 1.0},
    ),
    "shadow": (
        ("CYLINDER", (0.025, 0.05, 0), (0.018, -0.059, 0.114), _ACROSS),
        {"rh_THJ4": 1.1, "rh_THJ5": 0.3},
        {f"rh_{f}J{i}": v for f in _FINGERS["shadow"] for i, v in ((3, 1.3), (2, 1.4))}
        | {"rh_THJ4": 1.2, "rh_THJ5": 0.6, "rh_THJ2": 0.4, "rh_THJ1": 0.6},
    ),
}


def test_every_hand_has_a_grasp():
    assert GRASPS.keys() == HANDS.keys()


class Rig:
    """A hand fixed at its palm, with an object that floats until gravity is switched on."""

    def __init__(self, name, thing=None):
        self.robot = embodiments.load(name)
        spec = self.robot.model_spec()
        spec.option.timestep, spec.option.gravity, spec.option.impratio = DT, [0, 0, 0], 10
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        if thing is not None:
            kind, size, position, quaternion = thing
            body = spec.worldbody.add_body(name="object", pos=position, quat=quaternion)
            body.add_freejoint()
            body.add_geom(
                name="object",
                type=getattr(mujoco.mjtGeom, f"mjGEOM_{kind}"),
                size=size,
                mass=MASS,
                friction=[0.8, 0.01, 0.001],
                condim=4,
            )
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)

    def place(self, joints):
        """The hand at some joints, followers where they belong; servos hold it there."""
        k, home = self.robot.kinematics, np.zeros(len(self.robot.hand), np.float32)
        for i, joint in enumerate(self.robot.hand):
            low, high = float(self.robot.hand_lower[i]), float(self.robot.hand_upper[i])
            home[i] = np.clip(joints.get(joint, 0.0), low, high)
        whole = np.asarray(self.robot.qpos(np.zeros(0, np.float32), home))
        for joint in k.joints:
            self.data.joint(joint.name).qpos = whole[joint.qpos]
        self.send(dict(zip(self.robot.hand, map(float, home), strict=True)))
        mujoco.mj_forward(self.model, self.data)

    def send(self, joints, share=1.0):
        for a in range(self.model.nu):
            name = self.model.joint(self.model.actuator_trnid[a, 0]).name
            if name in joints:
                self.data.ctrl[a] += share * (joints[name] - self.data.ctrl[a])

    def touching(self):
        """Depths of the object's contacts [m]."""
        own = self.model.geom("object").id
        return [-c.dist for c in self.data.contact[: self.data.ncon] if own in c.geom]

    def shaken(self):
        """How far the object moves while gravity pulls along each axis, either way, for half a second [m]."""
        start, moved = self.data.body("object").xpos.copy(), 0.0
        for direction in np.concatenate([np.eye(3), -np.eye(3)]):
            self.model.opt.gravity[:] = 9.81 * direction
            for _ in range(round(0.5 / DT)):
                mujoco.mj_step(self.model, self.data)
            moved = max(moved, float(np.linalg.norm(self.data.body("object").xpos - start)))
        return moved


@pytest.mark.parametrize("name", GRASPS)
def test_a_hand_holds_an_object_that_it_closes_on_and_drops_it_when_it_does_not(name):
    thing, start, closed = GRASPS[name]
    rig = Rig(name, thing)
    rig.place(start)
    assert max(rig.touching(), default=0.0) < 1e-3
    for k in range(round(1.0 / DT)):
        rig.send(closed, 1.0 if k >= 350 else 1 / (350 - k))  # along a straight line, for 0.7 s
        mujoco.mj_step(rig.model, rig.data)
    assert len(rig.touching()) >= 2
    assert rig.shaken() < 0.02 and max(rig.touching()) < 5e-3
    assert np.isfinite(rig.data.qpos).all() and np.abs(rig.data.qvel).max() < 1.0
    whole = rig.robot.kinematics.complete(np.array(rig.data.qpos[: rig.robot.kinematics.nq]))
    np.testing.assert_allclose(rig.data.qpos[: len(whole)], whole, atol=0.1)  # couplings of physics give way under load
    loose = Rig(name, thing)
    loose.place(start)
    assert loose.shaken() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", GRASPS)
def test_mjx_moves_the_hand_as_c_mujoco_does(name):
    """The first half of closing, in free air, with the servos of some hands at their limits."""
    from mujoco import mjx

    _, start, closed = GRASPS[name]
    rig = Rig(name)
    rig.place(start)
    own = mjx.put_model(rig.model, impl="jax")
    advance = jax.jit(
        lambda d: jax.lax.fori_loop(0, 5, lambda _, d: step(own, d), d), compiler_options=compiler_options(least=False)
    )
    other = mjx.put_data(rig.model, rig.data, impl="jax")
    for k in range(10):
        rig.send(closed, 1 / (20 - k))
        other = advance(other.replace(ctrl=jax.numpy.asarray(rig.data.ctrl)))
        for _ in range(5):
            mujoco.mj_step(rig.model, rig.data)
        assert rig.data.ncon == 0 or max(rig.data.contact.dist[: rig.data.ncon]) > 0
        np.testing.assert_allclose(other.qpos, rig.data.qpos, atol=2e-4)
    assert np.abs(rig.data.qpos).max() > 0.01


def test_a_servo_at_its_limit_speeds_its_joint_up_as_in_c_mujoco():
    """By hand: at the limit F a slide of mass m has the speed n h F / m after n steps; with room, kv is in the step's inertia. Twice the
    same joint, one servo of which is at its limit."""
    from mujoco import mjx

    spec = mujoco.MjSpec.from_string(
        """<mujoco><option integrator="implicitfast" timestep="0.01" gravity="0 0 0"/><worldbody>
        <body name="a"><joint name="a" type="slide"/><geom size=".1" mass="2" contype="0" conaffinity="0"/></body>
        <body name="b"><joint name="b" type="slide"/><geom size=".1" mass="2" contype="0" conaffinity="0"/></body></worldbody><actuator>
        <position joint="a" kp="100" kv="50" forcerange="-3 3"/><position joint="b" kp="100" kv="50"/></actuator></mujoco>"""
    )
    model = spec.compile()
    data = mujoco.MjData(model)
    data.ctrl[:] = 1.0
    own, other = mjx.put_model(model, impl="jax"), mjx.put_data(model, data, impl="jax")
    assert own.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    both = jax.jit(lambda d: (step(own, d), mjx.step(own, d).qvel))
    # what is mended: MJX by itself has the servo's damping in the inertia still. When it no longer has, `mjx_step` can go.
    np.testing.assert_allclose(both(other)[1][0], 0.01 * 3 / (2 + 0.01 * 50), rtol=1e-5)
    for n in range(1, 6):
        mujoco.mj_step(model, data)
        other, _ = both(other)
        np.testing.assert_allclose(other.qvel, data.qvel, rtol=1e-5)
        np.testing.assert_allclose(other.qvel[0], n * 0.01 * 3 / 2, rtol=1e-5)
        if n == 1:
            np.testing.assert_allclose(other.qvel[1], 0.01 * 100 / (2 + 0.01 * 50), rtol=1e-5)
