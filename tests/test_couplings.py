"""Joints that follow others: MuJoCo's own residual of the couplings is zero where we put the followers, and physics agrees."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from diffopt.geometry import Pose, shapes
from diffopt.plans import Grasp
from diffopt.robots import couplings, embodiments
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Kinematics
from diffopt.robots.motion import screws_of


def chain(joints: str, rest: str = "", option: str = "") -> str:
    """A chain of bodies 0.2 m long, with one joint each; `joints`: attributes of each, separated by |."""
    xml, ends = "", ""
    for i, attributes in enumerate(joints.split("|")):
        geom = '<geom type="capsule" size="0.02" fromto="0 0 0.03 0 0 0.17" mass="0.1"/>'
        xml += f'<body name="b{i}" pos="0 0 0.2"><joint name="j{i}" axis="0 1 0" {attributes}/>{geom}'
        ends += "</body>"
    return f'<mujoco model="chain"><compiler angle="radian"/>{option}<worldbody>{xml}{ends}</worldbody>{rest}</mujoco>'


def residuals(model: mujoco.MjModel, qpos) -> np.ndarray:
    """How far MuJoCo sees its equality constraints violated."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    return data.efc_pos[data.efc_type == mujoco.mjtConstraint.mjCNSTR_EQUALITY]


EQUALITIES = {
    "polynomial": '<equality><joint joint1="j3" joint2="j1" polycoef="0.1 0.5 -0.2 0.3 -0.1"/></equality>',
    "constant": '<equality><joint joint1="j2" polycoef="0.3 0 0 0 0"/></equality>',
    "one after the other": '<equality><joint joint1="j3" joint2="j2" polycoef="0 -2 0 0 0"/>'
    '<joint joint1="j2" joint2="j0" polycoef="0.2 0.7 0.1 0 0"/><joint joint1="j1" joint2="j0"/></equality>',
    "the one with a motor leads": '<equality><joint joint1="j1" joint2="j2" polycoef="0.1 -0.5 0 0 0"/></equality>'
    '<actuator><position joint="j1" kp="1"/></actuator>',
    "tendon": '<tendon><fixed name="t"><joint joint="j1" coef="0.4"/><joint joint="j2" coef="-0.4"/></fixed></tendon>'
    '<equality><tendon tendon1="t"/></equality>',
    "two tendons": '<tendon><fixed name="s"><joint joint="j1" coef="1"/><joint joint="j2" coef="2"/></fixed>'
    '<fixed name="t"><joint joint="j0" coef="1"/><joint joint="j3" coef="0.5"/></fixed></tendon>'
    '<equality><tendon tendon1="s" tendon2="t" polycoef="0.05 0.5 0.1 0 0"/></equality>',
}


@pytest.mark.parametrize("name", EQUALITIES)
@pytest.mark.parametrize("reference", [0.0, 0.2])
def test_mujoco_sees_no_violation_where_followers_are_put(name, reference):
    joints = "|".join(f'ref="{reference * i}" range="-3 3"' for i in range(4))
    model = mujoco.MjModel.from_xml_string(chain(joints, EQUALITIES[name]))
    kinematics = Kinematics.from_model(model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        free = rng.uniform(-1, 1, model.nq)
        assert np.abs(residuals(model, free)).max() > 1e-3  # the oracle does see violations
        on_host, traced = kinematics.complete(free), kinematics.complete(jnp.asarray(free, jnp.float32))
        assert np.abs(residuals(model, on_host)).max() < 1e-9
        np.testing.assert_allclose(traced, on_host, atol=1e-5)
        followers = {c.index for c in kinematics.couplings}
        kept = [i for i in range(model.nq) if i not in followers]
        np.testing.assert_array_equal(on_host[kept], free[kept])
    assert len(kinematics.couplings) == len(residuals(model, free))


@pytest.mark.parametrize("name", ["shadow", "barrett", "gripper"])
def test_coupled_hands_satisfy_their_couplings_in_mujoco(name):
    robot = embodiments.load(name)
    model = mujoco.MjModel.from_xml_string(robot.xml)
    rng = np.random.default_rng(0)
    for _ in range(4):
        hand = robot.hand_lower + (robot.hand_upper - robot.hand_lower) * rng.uniform(size=len(robot.hand))
        qpos = np.asarray(robot.qpos(robot.home, hand))
        assert len(residuals(model, qpos)) == len(robot.followers) and np.abs(residuals(model, qpos)).max() < 1e-5
        assert np.all(qpos >= model.jnt_range[:, 0] - 1e-5) and np.all(qpos <= model.jnt_range[:, 1] + 1e-5)
        data, frames = mujoco.MjData(model), robot.frames(robot.home, jnp.asarray(hand, jnp.float32))
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(frames.position, data.xpos, atol=1e-5)


def test_the_judge_looks_at_the_posture_that_satisfies_the_couplings():
    from diffopt.evaluation.judge import Judge
    from diffopt.scenes import objects, tabletop

    robot = embodiments.load("panda-gripper").at(jnp.array([-0.6, 0.0, 0.0]))
    far = Pose(position=np.array([0.6, 0.0, 0.03]), rotation=np.eye(3))
    judge = Judge.of(robot, tabletop(objects.box((0.03, 0.03, 0.03), 0.1), placement=far))
    tool = robot.tool_pose(robot.home)
    grasp = Grasp(position=tool.position, rotation=tool.rotation, joints=jnp.array([0.03]), squeeze=jnp.zeros(1))
    assert judge(grasp, np.asarray(robot.home)).feasible
    fingers = [judge.data.joint(name).qpos[0] for name in ("gripper_left", "gripper_right")]
    np.testing.assert_allclose(fingers, 0.03, atol=1e-6)


def test_simulated_fingers_come_to_rest_where_the_couplings_say():
    robot = embodiments.load("shadow")
    model = mujoco.MjModel.from_xml_string(robot.xml)
    model.opt.gravity[:] = 0
    model.dof_frictionloss[:] = 0
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    data = mujoco.MjData(model)
    target = robot.hand_lower + 0.4 * (robot.hand_upper - robot.hand_lower)
    data.ctrl[:] = target
    for _ in range(4000):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, robot.qpos(robot.home, target), atol=2e-3)


UNDERACTUATED = chain(
    "|".join(['range="-0.5 1.6" damping="0.5"'] * 3),
    '<tendon><fixed name="pull"><joint joint="j1" coef="2"/><joint joint="j2" coef="1"/></fixed></tendon>'
    '<actuator><position name="m" tendon="pull" kp="1"/><position joint="j0" kp="1"/></actuator>',
    '<option gravity="0 0 0"/>',
)


def test_joints_on_one_motor_are_assumed_to_move_as_in_free_motion():
    robot = Embodiment.from_mjcf(UNDERACTUATED, tool="b0", couple_tendons=True)
    assert robot.hand == ("j1",) and robot.followers == ("j2",)
    assert "follower: j2 = 0.5 j1, by tendon 'pull' of actuator 'm' (assumed)" in robot.describe()
    model = mujoco.MjModel.from_xml_string(UNDERACTUATED)
    model.body_mass[:], model.body_inertia[:] = 1e-4, 1e-7  # as slow motion: only the joints' damping resists
    data = mujoco.MjData(model)
    data.ctrl[0] = 1.0
    for _ in range(500):
        mujoco.mj_step(model, data)
    assert data.qpos[1] > 0.1
    np.testing.assert_allclose(data.qpos[2], robot.qpos(jnp.zeros(1), data.qpos[1:2].astype(np.float32))[2], atol=5e-3)
    free = Embodiment.from_mjcf(UNDERACTUATED, tool="b0", couple_tendons=False)
    assert free.hand == ("j1", "j2") and free.followers == ()


FOLLOWING_ARM = chain(
    'range="-1 1"|range="-2 2"|range="-3 3"|range="-1 1"',
    '<equality><joint joint1="j2" joint2="j1" polycoef="0.1 -0.8 0.3 0 0"/></equality>',
)


@pytest.mark.slow
def test_derivatives_count_the_followers_of_an_arm_in():
    from diffopt.constraints import SceneCollision

    robot = Embodiment.from_mjcf(FOLLOWING_ARM, tool="b3")
    assert robot.arm == ("j0", "j1", "j3") and robot.arm_followers == ("j2",)
    robot = robot.at(Pose(position=jnp.array([0.1, 0.2, 0.3]), rotation=jnp.eye(3)))
    joints = jnp.array([0.4, 0.7, -0.3])
    frames = robot.frames(joints)
    turning, base = screws_of(robot, frames, tool := robot.kinematics.body("b3"))
    exact = jax.jacfwd(lambda q: robot.frames(q).position[tool])(joints)
    np.testing.assert_allclose(base + jnp.cross(turning, frames.position[tool]), exact.T, atol=1e-5)
    scene = SceneCollision(robot=robot, shapes=shapes.box((0.1, 0.1, 0.1), (0.5, 0.2, 0.8)), rows="sphere")
    plan = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=jnp.zeros(0), squeeze=jnp.zeros(0))
    _, jacobian = scene.jacobian(plan, {"joints": joints}, None)
    exact = jax.jacfwd(lambda q: scene.residual(plan, {"joints": q}, None))(joints)
    assert np.abs(exact[:, 1]).max() > 0.05
    np.testing.assert_allclose(jacobian, exact, atol=1e-4)


def test_a_leader_elsewhere_in_the_tree_becomes_a_joint_of_the_arm():
    xml = """<mujoco model="m"><worldbody><body name="a"><geom size=".1"/>
      <body name="crank" pos="1 0 0"><joint name="motor" range="-1 1"/><geom size=".1"/></body>
      <body name="link" pos="0 0 1"><joint name="passive"/><geom size=".1"/><body name="tool" pos="0 0 1"/></body>
      </body></worldbody><equality><joint joint1="passive" joint2="motor" polycoef="0 -1 0 0 0"/></equality></mujoco>"""
    robot = Embodiment.from_mjcf(xml, tool="tool")
    assert robot.arm == ("motor",) and robot.hand == () and robot.arm_followers == ("passive",)


def test_leaders_are_kept_where_followers_are_within_their_limits():
    equality = '<equality><joint joint1="j2" joint2="j1" polycoef="{}"/></equality>'
    joints = 'range="-1 1"|range="-1 1"|range="-1 0.5"'
    robot = Embodiment.from_mjcf(chain(joints, equality.format("0 2 0 0 0")), tool="b0")
    np.testing.assert_allclose((robot.hand_lower[0], robot.hand_upper[0]), (-0.5, 0.25), atol=1e-6)
    assert "file, narrowed by j2" in robot.describe()
    robot = Embodiment.from_mjcf(chain(joints, equality.format("0 0 2 0 0")), tool="b0")
    np.testing.assert_allclose((robot.hand_lower[0], robot.hand_upper[0]), (-0.5, 0.5), atol=2e-3)
    with pytest.raises(
        ValueError, match=r"equality 0 \(joint\): no position within its limits puts 'j2' within \[-1, 0.5\]"
    ):
        Embodiment.from_mjcf(chain(joints, equality.format("3 0.1 0 0 0")), tool="b0")


def test_couplings_that_make_no_sense_are_refused():

    def model(rest):
        return mujoco.MjModel.from_xml_string(chain("|".join(["range='-1 1'"] * 3), rest))

    circle = (
        '<joint joint1="j0" joint2="j1" polycoef="0 1 1 0 0"/><joint joint1="j1" joint2="j0" polycoef="0 1 1 0 0"/>'
    )
    with pytest.raises(ValueError, match=r"in a circle: 'j0' .*'j1'.* take one of these"):
        couplings.from_model(model(f"<equality>{circle}</equality>"))
    twice = '<joint joint1="j0" joint2="j1" polycoef="0 1 1 0 0"/><joint joint1="j0" joint2="j2" polycoef="0 1 1 0 0"/>'
    with pytest.raises(ValueError, match=r"equality 1 \(joint\) binds 'j0', which follow"):
        couplings.from_model(model(f"<equality>{twice}</equality>"))
    with pytest.raises(ValueError, match=r"joint 'rh_FFJ1' of 'hand' follows others .* leave it out of the hand"):
        path = embodiments.MODELS / "shadow.xml"
        Embodiment.from_mjcf(path, tool="rh_palm", hand=["rh_FFJ2", "rh_FFJ1"], name="hand")
    rope = '<tendon><spatial name="rope"><site site="s"/><site site="t"/></spatial></tendon>'
    spatial = rope + '<equality><tendon name="pull" tendon1="rope"/></equality>'
    ends = '<body name="p"><site name="s"/></body><body name="q" pos="0 0 1"><site name="t"/></body></worldbody>'
    held = mujoco.MjModel.from_xml_string(chain("range='-1 1'", spatial).replace("</worldbody>", ends))
    assert couplings.unread(held) == ("equality 'pull' (tendon) is not seen: spatial tendons are not solved",)
