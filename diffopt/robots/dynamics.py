"""Inverse dynamics of a robot: the joint torques that a motion takes.

With the velocity w, the angular acceleration a and the acceleration of the origin of every body (recursively from the base, where the
acceleration is minus gravity's), body b with mass m, centre of mass c and inertia I needs the force and the torque about c

    f_b = m (acceleration of c),         n_b = I a_b + w_b x I w_b,

and joint j, with axis s_j through o_j, carries what the bodies beyond it need (Newton and Euler; Featherstone 2008, chapter 5):

    tau_j = sum over b beyond j of  s_j . (n_b + (c_b - o_j) x f_b)  + armature_j qdd_j,       a slide: s_j . f_b.

Everything is in the frame of the base. The joints of the hand are held still.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.robots import mjcf
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import moved_by

GRAVITY = (0.0, 0.0, -9.81)  # [m/s^2] in the world


@dataclass(frozen=True, eq=False)
class Inertias:
    """Masses of a robot's bodies, in the order of its kinematics.

    Attributes:
      mass: [kg]. center: centres of mass in the bodies' frames [m]. inertia: about them, in the bodies' frames [kg m^2].
      armature: rotor inertias of the arm's joints [kg m^2].
      limit: torque limits of the arm's motors [N m]; infinite where the file has none.
    """

    mass: np.ndarray
    center: np.ndarray
    inertia: np.ndarray
    armature: np.ndarray
    limit: np.ndarray = field(default_factory=lambda: np.zeros(0))


def inertias(robot: Embodiment) -> Inertias:
    """The masses and torque limits in the robot's file."""
    return _read(robot.xml, robot.arm)


@lru_cache(maxsize=32)
def _read(xml: str, arm: tuple[str, ...]) -> Inertias:
    import mujoco

    model = mjcf.read(xml)[0].compile()
    rotation = np.zeros((model.nbody, 9))
    for b in range(model.nbody):
        mujoco.mju_quat2Mat(rotation[b], model.body_iquat[b])
    R = rotation.reshape(-1, 3, 3)
    limit = np.full(len(arm), np.inf)
    for i, name in enumerate(arm):
        joint = model.joint(name)
        if model.jnt_actfrclimited[joint.id]:
            limit[i] = min(limit[i], np.abs(model.jnt_actfrcrange[joint.id]).min())
        for a in range(model.nu):
            drives = model.actuator_trntype[a] == mujoco.mjtTrn.mjTRN_JOINT and model.actuator_trnid[a, 0] == joint.id
            if drives and model.actuator_forcelimited[a]:
                limit[i] = min(limit[i], np.abs(model.actuator_forcerange[a] * model.actuator_gear[a, 0]).min())
    return Inertias(
        mass=model.body_mass.astype(np.float32),
        center=model.body_ipos.astype(np.float32),
        inertia=np.einsum("bij,bj,bkj->bik", R, model.body_inertia, R).astype(np.float32),
        armature=np.array([model.dof_armature[model.joint(j).dofadr[0]] for j in arm], np.float32),
        limit=limit.astype(np.float32),
    )


def inverse_dynamics(
    robot: Embodiment,
    joints: Float[Array, "A"],
    velocity: Float[Array, "A"],
    acceleration: Float[Array, "A"],
    hand: Float[Array, "J"] | None = None,
) -> Float[Array, "A"]:
    """Torques of the arm's joints [N m, N], without friction.

    Args:
      joints, velocity, acceleration: of the arm [rad, rad/s, rad/s^2].
      hand: posture of the hand's joints, at rest; by default its home.
    Raises:
      ValueError: joints of the arm have followers, or turn about more than one axis.
    """
    if robot.arm_followers:
        raise ValueError(
            f"inverse dynamics knows no coupled joints, but in {robot.name!r} {', '.join(robot.arm_followers)} follow others"
        )
    own, tree = inertias(robot), robot.kinematics
    frames = robot.frames(joints, hand)
    arm = [tree.joint(name) for name in robot.arm]
    rank = {joint.dof: i for i, joint in enumerate(arm)}
    zero = jnp.zeros(3)
    gravity = robot.base.rotation.T @ jnp.asarray(GRAVITY)
    turning, speeding, lifting = [zero], [zero], [-gravity]  # of the base: w, a, acceleration of the origin
    for b, body in enumerate(tree.bodies[1:], start=1):
        p = body.parent
        w, a, x = turning[p], speeding[p], lifting[p]
        start = frames.position[p]
        for joint in body.joints:
            if joint.dof not in rank:
                continue
            i = rank[joint.dof]
            axis, anchor = frames.axis[joint.dof], frames.anchor[joint.dof]
            if joint.type == "hinge":
                x, start = _moved(x, w, a, anchor - start), anchor
                a = a + axis * acceleration[i] + jnp.cross(w, axis * velocity[i])
                w = w + axis * velocity[i]
            else:
                x = x + axis * acceleration[i] + 2 * jnp.cross(w, axis * velocity[i])
        turning.append(w)
        speeding.append(a)
        lifting.append(_moved(x, w, a, frames.position[b] - start))
    w, a, x = jnp.stack(turning), jnp.stack(speeding), jnp.stack(lifting)
    center = jnp.einsum("bij,bj->bi", frames.rotation, own.center)
    force = own.mass[:, None] * (x + jnp.cross(a, center) + jnp.cross(w, jnp.cross(w, center)))
    inertia = jnp.einsum("bij,bjk,blk->bil", frames.rotation, own.inertia, frames.rotation)
    torque = jnp.einsum("bij,bj->bi", inertia, a) + jnp.cross(w, jnp.einsum("bij,bj->bi", inertia, w))
    moment = torque + jnp.cross(frames.position + center, force)
    beyond = jnp.asarray(moved_by(robot, tuple(range(len(tree.bodies)))).T)  # (A, bodies)
    total_moment, total_force = beyond @ moment, beyond @ force
    dofs = np.array([joint.dof for joint in arm])
    axis, anchor = frames.axis[dofs], frames.anchor[dofs]
    turns = np.array([joint.type == "hinge" for joint in arm])
    tau = jnp.where(
        turns,
        jnp.sum(axis * (total_moment - jnp.cross(anchor, total_force)), axis=1),
        jnp.sum(axis * total_force, axis=1),
    )
    return tau + own.armature * acceleration


def _moved(x, w, a, arm):
    """Acceleration of a point `arm` [m] away on the same body."""
    return x + jnp.cross(a, arm) + jnp.cross(w, jnp.cross(w, arm))
