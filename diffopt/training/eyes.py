"""From where a hand sees: the points of `diffopt.policies.view.HandView`, read from a hand's model."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffopt.policies.view import HandView
from diffopt.training.hand import Hand

DEPTH = (1, 1, 2, 2, 3, 3, 3)  # hinge of each point of a finger: proximal, medial, distal link with the tip
_PALM = [(0.0, y, z) for y in (-0.036, 0.0, 0.036) for z in (-0.065, -0.035)]  # [m, palm frame] on the palm's core
_AHEAD = [
    (x, y, z) for x in (0.04, 0.08, 0.12) for y in (-0.045, 0.0, 0.045) for z in (-0.04, 0.04)
]  # where objects are


def view_of(hand: Hand) -> HandView:
    """The points from which the hand sees: along the core of every finger's links, on the palm's core, and ahead of the palm."""
    kinematics = hand.kinematics
    frames = kinematics.fk(jnp.asarray(kinematics.qpos0, jnp.float32))
    origin, turn = np.asarray(frames.position, np.float64), np.asarray(frames.rotation, np.float64)
    rotation, position, tips = [], [], []
    for bodies in hand.groups[:-1]:
        R, p, chain = np.eye(3), np.zeros(3), []
        for body in (b for b in bodies if kinematics.bodies[b].joints):
            (joint,) = kinematics.bodies[body].joints
            R_hinge = turn[body] @ _hinge_frame(np.asarray(joint.axis))
            p_hinge = origin[body] + turn[body] @ np.asarray(joint.anchor)
            chain.append((R.T @ R_hinge, R.T @ (p_hinge - p)))
            R, p = R_hinge, p_hinge
        rotation.append([a for a, _ in chain])
        position.append([b for _, b in chain])
        tips.append(_points_of_finger(hand, bodies, origin, turn, np.asarray(rotation[-1]), np.asarray(position[-1])))
    radii = {body: radius for body, _, radius in hand.spheres}
    tip_radius = [np.full(len(DEPTH), radii[tip[0]]) for tip in hand.tips]
    fixed_radius = [hand.palm_radius] * len(_PALM) + [0.0] * len(_AHEAD)

    def array(values):
        return jnp.asarray(np.asarray(values), jnp.float32)

    return HandView(
        rotation=array(rotation),
        position=array(position),
        tips=array(tips),
        fixed=array(_PALM + _AHEAD),
        radius=array(np.concatenate([fixed_radius, *tip_radius])),
        depth=DEPTH,
    )


def _points_of_finger(hand: Hand, bodies, origin, turn, rotation, position) -> list[np.ndarray]:
    """Points of `DEPTH` [m, hinge frame]: at equal distances along the core of each link, from its sphere nearest to the hinge to the
    one furthest away; a single point stands there."""
    moved_by, hinge = {}, -1
    for body in bodies:
        hinge += bool(hand.kinematics.bodies[body].joints)
        moved_by[body] = hinge
    out: list[np.ndarray] = []
    R, p = np.eye(3), np.zeros(3)
    for depth in range(len(rotation)):
        p, R = p + R @ position[depth], R @ rotation[depth]
        core = np.concatenate(
            [np.asarray(local) @ turn[b].T + origin[b] for b, local, _ in hand.spheres if moved_by.get(b) == depth]
        )
        core = core[np.argsort(np.linalg.norm(core - p, axis=1))]
        count = DEPTH.count(depth)
        share = np.linspace(0, 1, count)[:, None] if count > 1 else np.ones((count, 1))
        out += list((core[0] + share * (core[-1] - core[0]) - p) @ R)
    return out


def _hinge_frame(axis: np.ndarray) -> np.ndarray:
    """A rotation matrix whose third column is the unit vector `axis`."""
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    x = np.cross(helper, axis)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(axis, x), axis], axis=1)
