"""Chunks of joint positions for an arm: what the next one has to satisfy, how one is drawn, and whether one may be executed.

`diffopt.Controller` is the loop around these functions, which are compiled once and take numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.attempts import excess
from diffopt.compiling import jit
from diffopt.constraints import AtEveryKnot, ConstraintSet, acceleration_limits, fit, velocity_limits
from diffopt.constraints.later import later
from diffopt.constraints.overlap import Overlap
from diffopt.constraints.set import tightened
from diffopt.geometry import Pose
from diffopt.paths import JointPath, Path, ToolPath, spec_of_paths
from diffopt.policies.base import Policy
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import sample
from diffopt.solution import Solution, Status

GUARD = 3e-3  # by which inequalities have to hold between the knots [m, rad]: neither servos nor fingers follow quite as the model says

Source = Literal["planned", "rest", "stop", "rewind"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What to execute.

    Attributes:
      joints: of the arm at the knots [rad]. hand: of the hand [rad or m]. dt: between knots [s].
      source: "planned"; "rest", what is left of the last chunk, because nothing feasible was found; "stop"; or "rewind", the way back to
        a waypoint, to be executed whole.
      expected: T_world_tool at the knots, as far as the servos follow.
      attempts: how often the sampler was called. latency: time that all of it took [s].
      changed: how far the terminal correction had to move the chosen plan, in standard deviations of the policy.
      violation: by constraint, of the best plan that was found, in its own units; for a planned chunk within tolerance.
      report: of the best plan in words; of the way back, why.
      plan: the best plan that was found, feasible or not, with the knots that lie in the past; None on the way back.
    """

    joints: Float[np.ndarray, "H A"]
    hand: Float[np.ndarray, "H J"]
    dt: float
    source: Source
    expected: Pose
    attempts: int = 0
    latency: float = 0.0
    changed: float = 0.0
    violation: dict[str, float] = field(default_factory=dict)
    report: str = ""
    plan: Any = None

    def tool_at(self, k: int) -> Pose:
        """T_world_tool after knot k has been sent, as far as the servos follow."""
        return Pose(position=self.expected.position[k], rotation=self.expected.rotation[k])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the next chunk has to satisfy, as numbers: joined to constraints where these are compiled.

    Attributes:
      robot: in its place, its hand kept where it was measured (`kept`). given: constraints beside its own.
      past: the last three commanded postures [rad].
      velocity, acceleration: limits of the joints [rad/s], [rad/s^2]; no limit on the acceleration if None.
      clearance: to aim at beyond the margins [m]. lag: time constants of the servos [s].
      behind: how far the joints are behind the last command, measured or by these constants [rad].
      held: how far from where these constants have them; zero where that is no more than servos do [rad].
      opens: by joint of the hand the direction in which it opens, 1 or -1; 0: it is where it is told.
      last, weight: the last chunk's joints [rad], and how much it counts to stay near them [1/rad].
      first: knots of the policy's plan that lie in the past.
    """

    robot: Embodiment
    given: ConstraintSet
    past: Float[Array, "3 A"]
    velocity: Float[Array, "A"]
    acceleration: Any
    clearance: Any
    lag: Any
    behind: Float[Array, "A"]
    held: Float[Array, "A"]
    opens: Float[Array, "J"]
    last: Float[Array, "H A"]
    weight: Float[Array, "H"]
    first: int = field(default=0, metadata=dict(static=True))

    @property
    def constraints(self) -> ConstraintSet:
        out = self.robot.constraints | velocity_limits(self.robot, past=self.past[-1:], limit=self.velocity)
        if self.acceleration is not None:
            out = out | acceleration_limits(self.robot, self.acceleration, past=self.past[-2:])
        return later(out | self.given, self.first)


@partial(jit, static_argnames=("levels", "n"))
def draw(policy, observation, setting: Setting, marks, sampler, eta, levels, n) -> tuple[Solution, Float[Array, "n"]]:
    """`n` chunks for an observation, judged without the clearance that they aim at, and by how many tolerances each violates what is asked
    for; `marks` are whole numbers that say which noise."""
    key = jax.random.key(marks[0])
    for mark in marks[1:]:
        key = jax.random.fold_in(key, mark)
    asked = setting.constraints
    aimed = asked.tightened(setting.clearance) | Overlap(joints=setting.last, weight=setting.weight)
    given = policy.given(observation).bound()
    drawn = sample(given, aimed, n=n, key=key, sampler=sampler, levels=levels, eta=eta)
    fitted = fit(asked, policy.spec)
    report = jax.vmap(lambda plan, aux: fitted.report(plan, aux, given.context))(drawn.plans, drawn.aux)
    violation, where = drawn.violation | report.violation, drawn.where | report.where
    supported = violation["support"] <= 0 if "support" in violation else True
    fine = report.satisfied & supported & (drawn.status != Status.NONFINITE)
    judged = replace(drawn, violation=violation, where=where, status=jnp.where(fine, Status.FEASIBLE, drawn.status))
    return judged, excess(fitted, violation)


def best(drawn: Solution, beyond: Float[np.ndarray, "n"]) -> tuple[Solution, tuple[bool, float]]:
    """Of some draws the feasible one that was corrected least, or else the one that violates least; and its merit, which is the less the
    better it is: whether it is infeasible, and how far it was corrected or how far it violates.

    Args:
      drawn, beyond: as from `draw`, on the host.
    """
    infeasible = ~np.asarray(drawn.feasible)
    value = np.where(infeasible, beyond, drawn.stats.terminal_move)
    value = np.where(np.isfinite(value), value, np.inf)
    i = int(np.lexsort((value, infeasible))[0])
    return drawn[i], (bool(infeasible[i]), float(value[i]))


@jit
def holds(policy: Policy, setting: Setting, joints: Float[Array, "H A"], hand: Float[Array, "H J"]):
    """Whether a motion of the joints satisfies the constraints."""
    dt = spec_of_paths(policy).dt
    plan = _path(policy, setting.robot, joints, widest(hand, setting.opens), dt)
    return fit(setting.constraints, policy.spec).report(plan, {"joints": joints}, None).satisfied


def clear(
    policy: Policy, setting: Setting, joints: Float[np.ndarray, "H A"], hand: Float[np.ndarray, "H J"], between: int
) -> bool:
    """Whether a motion is clear between the knots, too, of an arm that follows what it is sent; one that something holds up has to be clear
    both if that lets go of it now and if it never does, and the arm stays as far away from its commands as it is."""
    if not bool(_clear(policy, setting, joints, hand, between)):
        return False
    if not np.any(setting.held):
        return True
    still = replace(setting, past=setting.past + setting.held, behind=setting.behind + setting.held)
    return bool(_clear(policy, still, joints + setting.held, hand, between))


@partial(jit, static_argnames="between")
def _clear(policy: Policy, setting: Setting, joints: Float[Array, "H A"], hand: Float[Array, "H J"], between: int):
    """Whether the inequalities of one configuration hold where the joints will be, `between` times per step, with `GUARD` to spare.

    The hand is as open as it may be, as closed as it is told, and in the middle: fingers that close meet with their inner sides what stands
    between them. Joint limits need no look: between postures within them, and behind them, everything is. Nor is looked at what moves, or
    at pairs of knots.
    """
    dt = spec_of_paths(policy).dt
    there = followed(setting.past[-1], setting.behind, joints[setting.first :], setting.lag, dt, between)
    lowest, highest = setting.robot.hand_kept or kept_by_nothing(setting.opens)
    wide, told = jnp.clip(widest(hand, setting.opens), lowest, highest), hand
    grips = [jnp.repeat(grip[setting.first :], between, axis=0) for grip in (wide, (wide + told) / 2, told)]
    free = replace(setting.robot, hand_kept=kept_by_nothing(setting.opens))
    fitted = fit(replace(setting, robot=free).constraints, policy.spec)
    alone = [c for c in fitted if isinstance(c, AtEveryKnot) and c.kind == "ineq"]
    there = jnp.tile(there, (len(grips), 1))
    plan = _path(policy, free, there, jnp.concatenate(grips), dt / between)
    rows = [tightened(c, GUARD).residual(plan, {"joints": there}, None) <= c.tolerance for c in alone]
    return jnp.stack([jnp.all(row) for row in rows]).all() if rows else jnp.asarray(True)


def kept_by_nothing(opens: Float[Array, "J"]) -> tuple[Float[np.ndarray, "J"], Float[np.ndarray, "J"]]:
    """Lowest and highest joints of a hand that goes where it is told [rad or m]."""
    infinite = np.full(opens.shape, np.inf, np.float32)
    return -infinite, infinite


def kept(
    measured: Float[np.ndarray, "J"] | None, opens: Float[np.ndarray, "J"]
) -> tuple[Float[np.ndarray, "J"], Float[np.ndarray, "J"]]:
    """Lowest and highest joints of a hand that may not close further than it was measured [rad or m].

    What it is told says how far it closes where nothing lies between its fingers, which is not known. Its outer sides reach furthest where
    it is most open, so a hand that counts as open as it was measured, or as it is told if that is more, is not smaller than it will be.
    """
    lowest, highest = kept_by_nothing(opens)
    if measured is None:
        return lowest, highest
    at = np.asarray(measured, np.float32)
    return np.where(opens > 0, at, lowest), np.where(opens < 0, at, highest)


def widest(hand: Float[Array, "H J"], opens: Float[Array, "J"]) -> Float[Array, "H J"]:
    """Hand postures as open as any before: a hand that is told to close does so late, or not at all where it closes on something."""
    return jnp.where(opens == 0, hand, opens * jax.lax.cummax(opens * hand))


def trailing(past: Float[np.ndarray, "P A"], lag: Float[np.ndarray, "A"], dt: float) -> Float[np.ndarray, "A"]:
    """How far first-order servos are behind the last of these commands, if they were not behind the first one [rad]."""
    T = np.maximum(lag, 1e-6)
    fading, behind = np.exp(-dt / T), np.zeros(len(past[0]))
    for step in np.diff(past, axis=0):
        behind = fading * behind + T * (1 - fading) / dt * step
    return behind.astype(np.float32)


def followed(
    sent: Float[Array, "A"], behind: Float[Array, "A"], joints: Float[Array, "H A"], lag: Any, dt: float, between: int
) -> Float[Array, "H*between A"]:
    """Where the joints are, `between` times per step, when they are sent from knot to knot in straight lines [rad].

    The lag of a first-order servo is that of `constraints.tracking`; at first, after what was last `sent`, it is `behind`.
    """
    knots = jnp.concatenate([sent[None], joints])
    share = jnp.arange(1, between + 1)[:, None] / between
    ramp = (knots[:-1, None] + share * jnp.diff(knots, axis=0)[:, None]).reshape(-1, knots.shape[1])
    T = jnp.maximum(jnp.broadcast_to(jnp.asarray(lag, jnp.float32), knots.shape[1:]), 1e-6)
    fading = jnp.exp(-dt / between / T)

    def lagging(e, step):
        e = fading * e + T * (1 - fading) / (dt / between) * step
        return e, e

    steps = jnp.diff(jnp.concatenate([sent[None], ramp]), axis=0)
    return ramp - jax.lax.scan(lagging, behind, steps)[1]


@partial(jax.jit, static_argnames="dt")
def reached(
    robot: Embodiment,
    sent: Float[Array, "A"],
    behind: Float[Array, "A"],
    joints: Float[Array, "H A"],
    lag: Any,
    dt: float,
) -> Pose:
    """T_world_tool at the ends of the steps, as far as the servos follow (`followed`)."""
    return jax.vmap(robot.tool_pose)(followed(sent, behind, joints, lag, dt, 1))


@jax.jit
def placed(robot: Embodiment, joints: Float[Array, "A"]) -> Pose:
    """T_world_tool where the arm's joints are [rad]."""
    return robot.tool_pose(joints)


def _path(policy: Policy, robot: Embodiment, joints: Float[Array, "H A"], hand: Float[Array, "H J"], dt: float) -> Path:
    """The path, of the policy's type, that a motion of the joints is."""
    if issubclass(policy.spec.plan_type, JointPath):
        return JointPath(arm=joints, joints=hand, dt=dt)
    tool = jax.vmap(robot.tool_pose)(joints)
    return ToolPath(position=tool.position, rotation=tool.rotation, joints=hand, dt=dt)
