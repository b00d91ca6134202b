"""What counts as lifting, read off the record of a motion: the same for every engine.

The verdict is a fold over the checks, so that it can be carried on piece by piece while a simulation runs, and
`extend(extend(v, first), second) == extend(v, both)`. Its first failure is final.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from diffopt.physics.course import Record
from diffopt.physics.engine import rotation_angle

if TYPE_CHECKING:
    from diffopt.tasks.lift_on_arm import LiftProtocol

PALM, OBJECT = 0, 1  # of the record's bodies
ARM_PRESS, FINGER_PRESS = 0, 1  # of its forces


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a record is measured against.

    Attributes:
      closed: number of checks before the lift.
      height: of the object at the start [m].
      joints, dofs: addresses of the arm's joints in qpos and qvel.
      lower, upper: their limits [rad]; velocity: their largest speeds, slack included [rad/s].
    """

    closed: int
    height: float
    joints: Int[np.ndarray, "A"]
    dofs: Int[np.ndarray, "A"]
    lower: Float[np.ndarray, "A"]
    upper: Float[np.ndarray, "A"]
    velocity: Float[np.ndarray, "A"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known after `checks` checks; the figures are those of `LiftOutcome`.

    Attributes:
      reason: the first failure; empty while there is none.
      held: pose of the object in the palm's frame at the end of the squeeze.
    """

    reason: str = ""
    checks: int = 0
    raised: float = 0.0
    displacement: float = 0.0
    rotation: float = 0.0
    palm_force: float = 0.0
    finger_force: float = 0.0
    reach_error: float = 0.0
    held: tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]] | None = None


def extend(rules: LiftProtocol, measure: Measure, verdict: Verdict, record: Record) -> Verdict:
    """The verdict after further checks."""
    for k in range(len(record)):
        if verdict.reason:
            break
        verdict = replace(_check(rules, measure, verdict, record, k), checks=verdict.checks + 1)
    return verdict


def conclude(rules: LiftProtocol, verdict: Verdict) -> Verdict:
    """The verdict after the last check."""
    return replace(verdict, reason=verdict.reason or ("not lifted" if verdict.raised < rules.raised else ""))


def _check(rules: LiftProtocol, measure: Measure, verdict: Verdict, record: Record, k: int) -> Verdict:
    if not record.stable[k]:
        return replace(verdict, reason="unstable")
    q, speed = record.qpos[k, measure.joints], np.abs(record.qvel[k, measure.dofs])
    if (
        (speed > measure.velocity).any()
        or (q < measure.lower - rules.slack).any()
        or (q > measure.upper + rules.slack).any()
    ):
        return replace(verdict, reason="limit")
    verdict = replace(verdict, raised=float(record.position[k, OBJECT, 2]) - measure.height)
    if verdict.checks < measure.closed:
        verdict = replace(
            verdict,
            palm_force=max(verdict.palm_force, float(record.force[k, ARM_PRESS])),
            finger_force=max(verdict.finger_force, float(record.force[k, FINGER_PRESS])),
        )
        if verdict.palm_force > rules.palm_force or verdict.finger_force > rules.finger_force:
            return replace(verdict, reason="collision")
    place, R = in_palm(record, k)
    if verdict.held is None:
        return verdict if verdict.checks + 1 < measure.closed else replace(verdict, held=(place, R))
    verdict = replace(
        verdict,
        displacement=max(verdict.displacement, float(np.linalg.norm(place - verdict.held[0]))),
        rotation=max(verdict.rotation, float(rotation_angle(verdict.held[1], R))),
    )
    lost = verdict.displacement >= rules.displacement or verdict.rotation >= rules.rotation
    return replace(verdict, reason="dropped" if lost else "")


def in_palm(record: Record, k: int) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
    """Pose of the object in the palm's frame at one check."""
    R = record.rotation[k, PALM]
    return R.T @ (record.position[k, OBJECT] - record.position[k, PALM]), R.T @ record.rotation[k, OBJECT]
