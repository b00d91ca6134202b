"""A robot as a table: joints, limits and where each number came from, couplings, collision bodies, pairs, notes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffopt.robots.couplings import Coupling, Term
from diffopt.robots.kinematics import Kinematics
from diffopt.robots.loops import Closed

if TYPE_CHECKING:
    from diffopt.robots.embodiment import Embodiment


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the numbers of one joint came from, in words; and its torque limit [N m, or N], infinite where there is none."""

    limits: str
    velocity: str
    torque: float
    torque_from: str
    home: str


def table(robot: Embodiment) -> str:
    """What `Embodiment.describe` returns."""
    kinematics, origins = robot.kinematics, dict(robot.origins)
    lines = [f"{robot.name}: {len(robot.arm)} arm joints, {len(robot.hand)} hand joints, tool {robot.tool!r}"]
    rows = [("joint", "part", "type", "lower", "upper", "from", "velocity", "from", "torque", "from", "home", "from")]
    parts = [("arm", *v) for v in zip(robot.arm, robot.lower, robot.upper, robot.velocity, robot.home, strict=True)]
    none = [np.inf] * len(robot.hand)
    parts += [
        ("hand", *v) for v in zip(robot.hand, robot.hand_lower, robot.hand_upper, none, robot.hand_home, strict=True)
    ]
    for part, joint, lower, upper, velocity, home in parts:
        origin = origins[joint]
        pace = (_number(velocity), origin.velocity) if part == "arm" else ("", "")
        torque = (_number(origin.torque), origin.torque_from)
        kind = kinematics.joint(joint).type
        rows.append(
            (
                joint,
                part,
                kind,
                _number(lower),
                _number(upper),
                origin.limits,
                *pace,
                *torque,
                _number(home),
                origin.home,
            )
        )
    lines += _aligned(rows)
    lines += [f"follower: {text(kinematics, coupling)}" for coupling in kinematics.couplings]
    lines += _bodies(robot)
    lines.append(f"pairs that always touch, left out: {_listed('~'.join(p) for p in robot.contacts.always)}")
    lines.append(f"pairs that can collide: {_listed('~'.join(p) for p in robot.contacts.names)}")
    return "\n".join(lines + [f"note: {note}" for note in robot.notes])


def _bodies(robot: Embodiment) -> list[str]:
    """What collisions are computed with."""
    names = robot.kinematics.body_names

    def counted(bodies: list[int]) -> str:
        return f"{len(bodies)} ({_listed(f'{names[b]} {bodies.count(b)}' for b in dict.fromkeys(bodies))})"

    reach = f"largest overshoot: {1e3 * max(robot.spheres.overshoot, default=0.0):.1f} mm"
    if robot.primitives is None:
        return [f"collision spheres: {counted(list(robot.spheres.body))}", reach]
    each = list(zip(robot.primitives.body, robot.primitives.overshoot, strict=True))
    exact, covers = [b for b, over in each if not over], [b for b, over in each if over]
    lines = [f"collision bodies: exact: {counted(exact)}"]
    if covers:
        over = 1e3 * max(robot.primitives.overshoot)
        lines.append(f"spheres that cover meshes: {counted(covers)}, largest overshoot: {over:.1f} mm")
    return lines


def text(kinematics: Kinematics, coupling: Coupling | Closed) -> str:
    """One coupling as a formula."""
    names = {joint.qpos: joint.name for joint in kinematics.joints}
    if isinstance(coupling, Closed):
        lead = ", ".join(names[i] for i in coupling.system.inputs) or "nothing"
        return f"{coupling.joint} follows {lead}, to close {coupling.origin}"

    def term(entry: Term) -> str:
        index, weight, reference = entry
        name = f"({names[index]} - {reference:g})" if reference else names[index]
        return name if weight == 1 else f"{weight:g} {name}"

    constant = coupling.reference + coupling.polynomial[0]
    inner = " + ".join(map(term, coupling.argument))
    powers = [
        f"{c:g} ({inner})" + (f"^{k}" if k > 1 else "") for k, c in enumerate(coupling.polynomial) if k and c and inner
    ]
    summands = [*([f"{constant:g}"] if constant else []), *map(term, coupling.linear), *powers]
    return f"{coupling.joint} = {' + '.join(summands) or '0'}, by {coupling.origin}"


def _number(value: float) -> str:
    return f"{float(value):.4f}" if np.isfinite(value) else "-"


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
