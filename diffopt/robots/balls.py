"""Ball joints as three hinges, so that an arm or a hand may have them: its posture is a vector of numbers with ranges.

A ball joint becomes hinges about the x, y and z axes of its body, in that order, at the same point: R = R_x(a) R_y(b) R_z(c) with b within
a right angle reaches every rotation. A limited ball joint, whose rotation angle is at most t, gets the largest cube |a|, |b|, |c| <= r in
which no rotation is larger, which is where the corner (r, r, r) is as large as t:

    cos^3(r/2) - sin^3(r/2) = cos(t/2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mujoco

_KEPT = ("armature", "damping", "stiffness", "frictionloss", "group", "margin", "actgravcomp")


def to_hinges(spec: mujoco.MjSpec) -> list[str]:
    """Replace the ball joints of a spec in place; what was done, in words.

    Raises:
      ValueError: a hinge would have a name that is taken.
    """
    import mujoco

    notes = []
    radians = not spec.compiler.degree
    for joint in [j for j in spec.joints if j.type == mujoco.mjtJoint.mjJNT_BALL]:
        name, body = joint.name, joint.parent
        taken = {j.name for j in spec.joints} & {f"{name}_{axis}" for axis in "xyz"}
        if taken:
            raise ValueError(
                f"ball joint {name!r} becomes hinges, but {sorted(taken)[0]!r} is taken; rename one of the two"
            )
        limited = joint.limited == mujoco.mjtLimited.mjLIMITED_TRUE or (
            joint.limited == mujoco.mjtLimited.mjLIMITED_AUTO and joint.range[1] > joint.range[0]
        )
        most = float(joint.range[1] if radians else np.deg2rad(joint.range[1])) if limited else np.inf
        kept = {key: getattr(joint, key) for key in _KEPT}
        anchor = np.array(joint.pos)
        gone = _users(spec, name)
        for element in gone:
            spec.delete(element)
        spec.delete(joint)
        for axis, unit, turn in zip("xyz", np.eye(3), (np.pi, np.pi / 2, np.pi), strict=True):
            reach = min(turn, widest(most))
            hinge = body.add_joint(name=f"{name}_{axis}", type=mujoco.mjtJoint.mjJNT_HINGE, pos=anchor, axis=unit)
            hinge.limited = mujoco.mjtLimited.mjLIMITED_TRUE
            hinge.range = np.array([-reach, reach]) if radians else np.rad2deg([-reach, reach])
            for key, value in kept.items():
                setattr(hinge, key, value)
        note = f"ball joint {name} is taken as the hinges {name}_x, {name}_y and {name}_z"
        note += (
            f", within {widest(most):.3g} rad each, so that none of its turns is beyond {most:.3g}" if limited else ""
        )
        notes.append(note)
        if gone:
            notes.append(
                f"what acts on or measures ball joint {name} is left out: {', '.join(e.name or '(unnamed)' for e in gone)}"
            )
    return notes


def widest(most: float) -> float:
    """r of the largest cube in which no rotation is beyond `most` [rad]."""
    if most >= np.pi:
        return float(np.pi)
    low, high = 0.0, most
    for _ in range(60):
        r = 0.5 * (low + high)
        low, high = (r, high) if np.cos(r / 2) ** 3 - np.sin(r / 2) ** 3 > np.cos(most / 2) else (low, r)
    return low


def _users(spec: mujoco.MjSpec, joint: str) -> list:
    """Actuators and sensors of a joint."""
    import mujoco

    moves = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)
    actuators = [a for a in spec.actuators if a.trntype in moves and a.target == joint]
    measured = [s for s in spec.sensors if s.objtype == mujoco.mjtObj.mjOBJ_JOINT and s.objname == joint]
    driven = {a.name for a in actuators} - {""}
    indirect = [s for s in spec.sensors if s.objtype == mujoco.mjtObj.mjOBJ_ACTUATOR and s.objname in driven]
    return [*measured, *indirect, *actuators]
