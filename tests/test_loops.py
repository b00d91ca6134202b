"""Closed chains: MuJoCo's own residual of `connect` and `weld` is zero where the followers are put, and is ours where they are not."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import diffopt
from diffopt.constraints import JointsLinear, LoopClosure
from diffopt.evaluation.judge import Judge
from diffopt.geometry import Pose
from diffopt.plans import Grasp
from diffopt.robots import couplings
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.kinematics import Kinematics
from diffopt.robots.loops import systems
from diffopt.scenes import objects, tabletop

LINK = '<geom type="capsule" size=".01" fromto="0 0 0 0 0 .05" mass=".1"/>'


def model_of(body: str, rest: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(
        f'<mujoco model="rig"><compiler angle="radian"/><worldbody>{body}</worldbody>{rest}</mujoco>'
    )


def hinge(name: str, pos: str, inner: str = "", more: str = 'axis="0 1 0"') -> str:
    return f'<body name="{name}" pos="{pos}"><joint name="{name}" {more}/>{LINK}{inner}</body>'


# a crank of 0.1, a coupler of 0.3 and a rocker of 0.25 on feet 0.3 apart, cut at the joint between coupler and rocker
CRANK = hinge("crank", "0 0 0", hinge("coupler", "0 0 .1", '<site name="eye" pos=".25 0 .1658"/>'))
ROCKER = hinge("rocker", ".3 0 0", '<site name="pin" pos="-.05 0 .2658"/>')
ARM = f'<body name="base"><joint name="turn" axis="0 0 1"/>{LINK}{CRANK}{ROCKER}</body>'
MOTOR = '<actuator><motor joint="crank"/></actuator>'
RIGS = {
    "connect": (
        ARM,
        '<equality><connect name="pin" body1="coupler" body2="rocker" anchor=".25 0 .1658"/></equality>',
        2,
    ),
    "sites": (ARM, f'<equality><connect name="pin" site1="pin" site2="eye"/></equality>{MOTOR}', 2),
    "to the world": (
        hinge("a", "0 0 0", hinge("b", "0 0 .2", hinge("c", ".2 0 .1"))),
        '<equality><connect name="pin" body1="c" anchor=".1 0 -.2"/></equality><actuator><motor joint="a"/></actuator>',
        2,
    ),
    "weld": (
        hinge("a", "0 0 0", hinge("b", "0 0 .2", hinge("c", ".2 0 .1", hinge("d", ".1 0 -.2")))),
        '<equality><weld name="weld" body1="d" torquescale=".5"/></equality>',
        3,
    ),
    "in space": (
        hinge("a", "0 0 0", hinge("b", "0 0 .2", hinge("c", ".2 .05 .1", more='axis="1 0 0"'), 'axis="0 1 .3"'))
        + hinge("e", ".3 0 0", hinge("f", "0 0 .2", "", 'axis="0 1 .2"'), 'axis="0 .4 1"'),
        '<equality><connect name="tip" body1="c" body2="f" anchor=".05 0 .1"/></equality>'
        '<actuator><motor joint="a"/><motor joint="e"/></actuator>',
        3,
    ),
    "a finger with a tendon": (
        hinge("drive", "0 0 0", hinge("push", ".03 0 .03")) + hinge("swing", ".06 0 0", hinge("pad", ".03 0 .04")),
        '<tendon><fixed name="cable"><joint joint="drive" coef=".5"/></fixed></tendon>'
        '<equality><connect name="knuckle" body1="push" body2="pad" anchor="0 0 .05"/></equality>'
        '<actuator><motor tendon="cable"/></actuator>',
        2,
    ),
}


def opened(model, qpos):
    """MuJoCo's residual of its loops."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_makeConstraint(model, data)
    return data.efc_pos[data.efc_type == mujoco.mjtConstraint.mjCNSTR_EQUALITY].copy()


QUICK = ("sites", "weld")


@pytest.fixture(scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RIGS])
def rig(request):
    body, rest, count = RIGS[request.param]
    model = model_of(body, rest)
    kinematics = Kinematics.from_model(model)
    (system,) = systems(kinematics.couplings)
    assert len(system.passive) == count and np.abs(opened(model, model.qpos0)).max() < 1e-4
    return model, kinematics, system


def test_the_residual_is_mujocos(rig):
    """At postures in which nothing is closed; of a weld MuJoCo gives the sine of half the angle, scaled."""
    model, _, system = rig
    rng, residual = np.random.default_rng(0), jax.jit(system.residual)
    for _ in range(4):
        qpos = np.asarray(0.4 * rng.normal(size=model.nq), np.float32)
        ours, theirs = np.asarray(residual(qpos), float), opened(model, qpos)
        if system.loops[0].turns:
            angle = np.linalg.norm(ours[3:])
            ours[3:] *= 0.5 * np.sin(angle / 2) / angle
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_mujoco_sees_the_loops_closed_where_followers_are_put(rig):
    model, kinematics, system = rig
    rng, free = np.random.default_rng(1), list(system.inputs)
    postures = np.tile(model.qpos0, (6, 1))
    postures[:, free] += rng.uniform(-0.25, 0.25, (6, len(free)))
    assert max(np.abs(opened(model, q)).max() for q in postures) > 1e-3
    placed = kinematics.complete(postures)
    assert couplings.closed(kinematics.couplings, placed).all()
    for before, after in zip(postures, placed, strict=True):
        assert np.abs(opened(model, after)).max() < 2e-5
        np.testing.assert_allclose(after[free], before[free], atol=1e-7)
    traced = jax.jit(kinematics.complete)(jnp.asarray(postures, jnp.float32))
    np.testing.assert_allclose(traced, placed, atol=1e-5)


def test_followers_move_as_the_closed_chain_does(rig):
    """The derivative through the iteration against the implicit one, -J_passive^+ J_inputs, with MuJoCo's Jacobian."""
    model, kinematics, system = rig
    qpos = np.array(model.qpos0)
    qpos[list(system.inputs)] += np.random.default_rng(2).uniform(-0.2, 0.2, len(system.inputs))
    qpos = kinematics.complete(qpos[None])[0]
    found = np.asarray(jax.jit(jax.jacfwd(system.solve))(jnp.asarray(qpos, jnp.float32)))[:, list(system.inputs)]
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_makeConstraint(model, data)
    J = data.efc_J.reshape(-1, model.nv)[data.efc_type == mujoco.mjtConstraint.mjCNSTR_EQUALITY]
    expected = -np.linalg.pinv(J[:, list(system.passive)], rcond=1e-4) @ J[:, list(system.inputs)]
    np.testing.assert_allclose(found, expected, atol=3e-3)


@pytest.mark.slow
def test_the_range_of_a_crank_is_where_its_chain_closes():
    """Where the triangle of crank end, rocker foot and their joint exists, by the law of cosines."""
    crank, coupler, rocker, apart, at = 0.25, 0.15, 0.22, 0.3, np.deg2rad(50)
    end = crank * np.array([np.cos(at), np.sin(at)])
    to_foot = np.array([apart, 0.0]) - end
    reach = np.linalg.norm(to_foot)
    along = (coupler**2 - rocker**2 + reach**2) / (2 * reach)
    across = np.sqrt(coupler**2 - along**2) * np.array([-to_foot[1], to_foot[0]]) / reach
    x, z = along * to_foot / reach + across
    body = hinge("crank", "0 0 0", hinge("coupler", f"{end[0]} 0 {end[1]}")) + hinge("rocker", f"{apart} 0 0")
    loop = f'<equality><connect name="pin" body1="coupler" body2="rocker" anchor="{x} 0 {z}"/></equality>{MOTOR}'
    xml = (
        f'<mujoco><compiler angle="radian"/><worldbody><body name="base">{LINK}{body}</body></worldbody>{loop}</mujoco>'
    )
    robot = Embodiment.from_mjcf(xml, tool="coupler", name="rig")
    assert robot.arm == ("crank",) and "follows crank, to close equality 'pin' (connect)" in robot.describe()
    d = np.array([abs(coupler - rocker), coupler + rocker])
    low, high = np.arccos((crank**2 + apart**2 - d**2) / (2 * crank * apart))
    np.testing.assert_allclose([robot.lower[0], robot.upper[0]], [at - high, at - low], atol=0.02)


@pytest.fixture(scope="module")
def five_bar():
    return LoopClosure.example(jax.random.key(0))[0].robot


@pytest.mark.slow
@pytest.mark.slow
def test_a_parallel_robot_has_closure_in_its_set_and_is_solved(five_bar):
    """Two driven shoulders, two elbows that follow: poses by forward kinematics are found again, and MuJoCo's judge agrees."""
    robot = five_bar
    assert robot.arm == ("left_shoulder", "right_shoulder")
    assert {"loop_closure", "follower_limits"} <= set(robot.constraints.names)
    assert isinstance(robot.constraints["loop_closure"], JointsLinear)
    rng = np.random.default_rng(0)
    joints = jnp.asarray(rng.uniform(-0.4, 0.4, (32, 2)), jnp.float32)
    poses = jax.vmap(robot.tool_pose)(joints)
    found = diffopt.ik(robot, poses, attempts=8)
    assert np.asarray(found.solved).mean() > 0.9
    far = Pose(position=np.array([2.0, 0.0, 0.03], np.float32), rotation=np.eye(3, dtype=np.float32))
    lifted = robot.at(jnp.array([0.0, 0.0, 0.5]))
    judge = Judge.of(lifted, tabletop(objects.box((0.03, 0.03, 0.03), 0.1), placement=far))
    for i in np.flatnonzero(np.asarray(found.solved))[:8]:
        pose = lifted.base @ jax.tree.map(lambda leaf, i=i: leaf[i], poses)
        empty = np.zeros(0, np.float32)
        plan = Grasp(position=pose.position, rotation=pose.rotation, joints=empty, squeeze=empty)
        verdict = judge(plan, np.asarray(found.joints[i]))
        assert verdict.feasible and verdict.loop < 1e-4
    apart = judge(plan, np.array([-1.5, 1.5]))
    assert apart.loop > 0.01 and not apart.feasible


def test_what_cannot_be_closed_is_said():
    both = ARM.replace("base", "stand")
    driven = "".join(f'<motor joint="{j}"/>' for j in ("crank", "coupler", "rocker"))
    pin = '<connect name="pin" site1="pin" site2="eye"/>'
    with pytest.raises(
        ValueError, match=r"equality 'pin' \(connect\) takes 2 degrees of freedom away, but only 0 .*'crank', 'coupler'"
    ):
        Kinematics.from_model(model_of(both, f"<equality>{pin}</equality><actuator>{driven}</actuator>"))
    with pytest.raises(ValueError, match=r"closes a chain with ball or free joints \(crank\); write them as hinges"):
        rest = f"<equality>{pin}</equality>"
        Kinematics.from_model(model_of(ARM.replace('name="crank" axis="0 1 0"', 'name="crank" type="ball"'), rest))
    with pytest.raises(ValueError, match=r"holds together what no joint moves; take it out of the file"):
        rest = '<equality><weld name="glue" body1="crank" body2="extra"/></equality>'
        extra = ARM.replace('<site name="eye"', '<body name="extra"><geom size=".01"/></body><site name="eye"')
        Kinematics.from_model(
            model_of(
                extra.replace('name="coupler" pos="0 0 .1"', 'name="coupler" pos="0 0 .1"'),
                rest.replace("crank", "coupler"),
            )
        )
