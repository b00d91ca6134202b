"""Postures for a block of poses: attempts in rounds, until every pose has one that satisfies all, or has used up its attempts.

In a round every lane makes one attempt: a guess, a descent, a verdict. The lanes go to the poses that are still open, those with the
fewest attempts first; when there are fewer open poses than lanes, a pose gets several, each with its own guess. So no lane waits for a
hard pose of another. A descent looks at the pose and the joint limits alone and the verdict decides about the rest: most of what is found
is clear of everything anyway, and another descent costs a fraction of one that watches obstacles on its way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffopt.constraints import ConstraintSet
from diffopt.constraints.set import Report
from diffopt.geometry import Pose, rotation_vector
from diffopt.inverse.guesses import Bank, guess, nearest
from diffopt.plans import Grasp
from diffopt.robots.descent import descend
from diffopt.robots.embodiment import Embodiment

BLOCK, LANES = 512, 256
STEPS = 12  # of a descent


class Tolerance(NamedTuple):
    """Largest distance [m] and angle [rad] of the tool from its pose."""

    position: Float[Array, ""]
    rotation: Float[Array, ""]


class Verdict(NamedTuple):
    """What holds at one posture: errors of the tool [m], [rad], the report on the constraints, and whether all of it is satisfied."""

    position: Float[Array, ""]
    rotation: Float[Array, ""]
    report: Report
    satisfied: Bool[Array, ""]


class Found(NamedTuple):
    """Per pose: the best posture, the verdict on it, and how many attempts were made."""

    joints: Float[Array, "C A"]
    verdict: Verdict
    attempts: Int[Array, "C"]


def judge(
    robot: Embodiment, constraints: ConstraintSet, tolerance: Tolerance, plan: Grasp, joints: Float[Array, "A"]
) -> Verdict:
    """The verdict on a posture for the wrist pose of a plan, by `Kinematics.fk` and the constraints, which the descents do not use."""
    tool = robot.tool_pose(joints)
    position = jnp.linalg.norm(tool.position - plan.position)
    rotation = jnp.linalg.norm(rotation_vector(plan.rotation.T @ tool.rotation))
    report = constraints.report(plan, {"joints": joints}, None)
    close = (position <= tolerance.position) & (rotation <= tolerance.rotation)
    return Verdict(position, rotation, report, close & report.satisfied)


def search(
    robot: Embodiment,
    constraints: ConstraintSet,
    tolerance: Tolerance,
    plans: Grasp,
    wanted: Bool[Array, "C"],
    bank: Bank,
    attempts: Int[Array, ""],
) -> Found:
    """Search postures for the wrist poses of C plans.

    Args:
      wanted: poses that are not, are left alone.
      attempts: a pose is given up when it has had as many.
    """
    if "joints" in constraints.bounds():
        lower, upper = constraints.bounds()["joints"]
        robot = replace(robot, lower=lower, upper=upper)
    base = robot.base.inverse()
    pose = jax.vmap(lambda p, R: base @ Pose(position=p, rotation=R))(plans.position, plans.rotation)
    target = jnp.concatenate([pose.position.T, *(pose.rotation[:, :, j].T for j in range(3))])
    near = nearest(robot, bank, target)
    count, lane = wanted.shape[0], jnp.arange(LANES)

    def assess(plans: Grasp, joints: Float[Array, "L A"]) -> tuple[Float[Array, "L"], Verdict]:
        verdict = jax.vmap(lambda plan, q: judge(robot, constraints, tolerance, plan, q))(plans, joints)
        return _miss(constraints, tolerance, verdict), verdict

    def round(state):
        tried, open, miss, best = state
        order = jnp.argsort(jnp.where(open, tried, jnp.iinfo(jnp.int32).max))
        left = jnp.sum(open)
        which = order[lane % left]
        attempt = tried[which] + lane // left
        q = descend(robot, guess(robot, bank, near, which, attempt), target[:, which], STEPS).T
        new_miss, verdict = assess(jax.tree.map(lambda leaf: leaf[which], plans), q)
        least = miss.at[which].min(new_miss)
        winner = jnp.full(count, LANES, jnp.int32).at[which].min(jnp.where(new_miss == least[which], lane, LANES))
        better = (winner < LANES) & (least < miss)
        take = jnp.minimum(winner, LANES - 1)
        best = jax.tree.map(
            lambda old, new: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new[take], old), best, (q, verdict)
        )
        tried = tried.at[which].max(attempt + 1)
        return tried, open & (least > 0) & (tried < attempts), least, best

    shapes = jax.eval_shape(assess, plans, jnp.zeros((count, len(robot.arm))))[1]
    nothing = jax.tree.map(_worst, shapes)
    home = jnp.broadcast_to(robot.home, (count, len(robot.arm)))
    start = jnp.zeros(count, jnp.int32), wanted, jnp.full(count, jnp.inf), (home, nothing)
    tried, _, _, (joints, verdict) = jax.lax.while_loop(lambda state: jnp.any(state[1]), round, start)
    return Found(joints=joints, verdict=verdict, attempts=tried)


def _miss(constraints: ConstraintSet, tolerance: Tolerance, verdict: Verdict) -> Float[Array, "L"]:
    """0 where all is satisfied, else how far from it, in tolerances; finite unless the posture is not, and then not taken."""
    miss = jnp.maximum(verdict.position / tolerance.position, verdict.rotation / tolerance.rotation)
    for k in constraints:
        miss = miss + verdict.report.violation[k.name] / jnp.maximum(jnp.min(jnp.asarray(k.tolerance)), 1e-6)
    miss = jnp.where(jnp.isfinite(miss), jnp.maximum(miss, 1e-6), jnp.inf)
    return jnp.where(verdict.satisfied, 0.0, miss)


def _worst(leaf: jax.ShapeDtypeStruct) -> Array:
    """What stands where no finite posture was found: infinite errors, no row, not satisfied."""
    return jnp.full(leaf.shape, jnp.inf if jnp.issubdtype(leaf.dtype, jnp.floating) else 0, leaf.dtype)
