"""A policy in a control loop: chunks of joint positions that the robot can execute, or what to do when there are none.

    controller = diffopt.Controller(policy=policy, robot=robot, constraints=scene.constraints)
    memory = controller.start(joints)
    while True:
        chunk, memory = controller.plan(observation, memory)
        for k in range(controller.execute):
            robot_driver.send(chunk.joints[k], chunk.hand[k])        # one knot every chunk.dt seconds

Every chunk starts at the last command (so that velocity, and acceleration if limited, hold across the seam), stays near what is left of
the last chunk by a cost that fades along the overlap, and is judged whole before it is returned: at its knots by the constraints, and
between them, where the joints will be given the lag of their servos, by the inequalities of one configuration. Where nothing feasible is
found by the deadline, the rest of the last feasible chunk is returned if it still is feasible, and otherwise a stop, which nothing judges.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffopt.chunks import Setting, clear, draw, holds
from diffopt.constraints import ConstraintSet
from diffopt.geometry import Pose
from diffopt.paths import spec_of_paths
from diffopt.policies.base import Policy
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import resolve

if TYPE_CHECKING:
    from diffopt.samplers import Sampler
    from diffopt.solution import Solution

Source = Literal["planned", "rest", "stop"]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What to execute.

    Attributes:
      joints: of the arm at the knots [rad]. hand: of the hand [rad or m]. dt: between knots [s].
      source: "planned"; "rest", what is left of the last chunk, because nothing feasible was found; or "stop".
      attempts: how often the sampler was called. latency: time that all of it took [s].
      changed: how far the terminal correction had to move the chosen plan, in standard deviations of the policy.
      violation: by constraint, of the best plan that was found, in its own units; for a planned chunk within tolerance.
      report: of the best plan in words.
      plan: the best plan that was found, feasible or not.
    """

    joints: Float[np.ndarray, "H A"]
    hand: Float[np.ndarray, "H J"]
    dt: float
    source: Source
    attempts: int
    latency: float
    changed: float
    violation: dict[str, float]
    report: str
    plan: Any


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one call of `plan` leaves to the next.

    Attributes:
      past: the last three commanded postures, dt apart, the latest last [rad].
      hand: last commanded joints of the hand.
      chunk: the last one, from its first knot that is not executed yet, its last knot repeated; None if there is none.
      calls: of `plan` so far.
    """

    past: Float[np.ndarray, "3 A"]
    hand: Float[np.ndarray, "J"]
    chunk: Chunk | None = None
    calls: int = 0


@dataclass(frozen=True, kw_only=True)
class Controller:
    """See the module's docstring.

    Attributes:
      policy: plans `ToolPath`s or `JointPath`s; not bound, `plan` is given the observations.
      robot: in its place.
      constraints: beside the robot's own and its motion limits, which are always there; `plan` takes more that change.
      sampler: name or sampler. levels, eta: as in `sample`.
      particles: plans per attempt, of which the least corrected feasible one is taken.
      attempts: at most so many calls of the sampler, each with new noise.
      deadline: no new attempt begins this long after `plan` was called [s]; the first is always finished.
      execute: knots that are executed of each chunk.
      acceleration: limit per joint [rad/s^2]; None for none.
      velocity: limit per joint [rad/s]; None for the robot's own.
      clearance: that the sampler aims at beyond the constraints' own margins, so that what lies between the knots is clear too [m].
      lag: time constant of the joints' servos, one or per joint [s]. between: postures checked per step of a chunk.
      overlap: weight of staying near the last chunk at its next knot [1/rad], fading to zero at its end.
      seed: of the noise.
    """

    policy: Policy
    robot: Embodiment
    constraints: ConstraintSet = field(default_factory=ConstraintSet)
    sampler: str | Sampler = "ogd"
    levels: int = 16
    eta: float = 1.0
    particles: int = 1
    attempts: int = 3
    deadline: float = np.inf
    execute: int = 8
    acceleration: Any = None
    velocity: Any = None
    clearance: float = 0.005
    lag: Any = 0.0
    between: int = 4
    overlap: float = 2.0
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(f"execute={self.execute}; the policy plans {self.horizon} knots")
        if self.attempts < 1 or self.particles < 1:
            raise ValueError(f"attempts={self.attempts}, particles={self.particles}; expected at least 1")

    @property
    def horizon(self) -> int:
        """Knots of a chunk."""
        return spec_of_paths(self.policy).horizon

    @property
    def dt(self) -> float:
        """Time between knots [s]."""
        return spec_of_paths(self.policy).dt

    def start(self, joints: Float[np.ndarray, "A"], hand: Float[np.ndarray, "J"] | None = None) -> Memory:
        """The memory of a robot at rest at `joints` [rad] (and `hand`, by default its home posture)."""
        joints = np.asarray(joints, np.float32)
        if joints.shape != (len(self.robot.arm),):
            raise ValueError(
                f"joints have shape {joints.shape}; {self.robot.name!r} has {len(self.robot.arm)}: {', '.join(self.robot.arm)}"
            )
        hand = np.asarray(self.robot.hand_home if hand is None else hand, np.float32)
        return Memory(past=np.tile(joints, (3, 1)), hand=hand)

    def plan(self, observation: Any, memory: Memory, more: ConstraintSet | None = None) -> tuple[Chunk, Memory]:
        """The next chunk, and the memory after its first `execute` knots have been sent.

        Args:
          observation: what the policy is given.
          more: constraints that are new at every call, such as obstacles that move.
        """
        began = time.perf_counter()
        setting = self._setting(memory, more)
        sampler = resolve(self.sampler)
        chosen, violation, report, changed, best = None, {}, "", np.inf, 0
        attempt = 0
        while attempt < self.attempts and (attempt == 0 or time.perf_counter() - began < self.deadline):
            marks = np.array([self.seed, memory.calls, attempt], np.uint32)
            result = draw(self.policy, observation, setting, marks, sampler, self.eta, self.levels, self.particles)
            attempt += 1
            result = jax.device_get(result)
            best = _best(result)
            violation = {name: float(values[best]) for name, values in result.violation.items()}
            report, changed = result.explain(best), float(result.stats.terminal_move[best])
            joints, hand = result.aux["joints"][best], result.plans.joints[best]
            if bool(result.feasible[best]):
                if bool(clear(self.policy, setting, joints, hand, self.between)):
                    chosen = result
                    break
                report += " at its knots, but not between them"
        if chosen is not None:
            joints, hand = np.asarray(chosen.aux["joints"][best]), np.asarray(chosen.plans.joints[best])
            source: Source = "planned"
        else:
            joints, hand, source = self._fallback(memory, setting)
        chunk = Chunk(
            joints=joints,
            hand=np.clip(hand, self.robot.hand_lower, self.robot.hand_upper),
            dt=self.dt,
            source=source,
            attempts=attempt,
            latency=time.perf_counter() - began,
            changed=changed,
            violation=violation,
            report=report,
            plan=jax.tree.map(lambda leaf: leaf[best], result.plans),
        )
        return chunk, self.after(chunk, memory, self.execute)

    def after(self, chunk: Chunk, memory: Memory, executed: int) -> Memory:
        """The memory after the first `executed` knots of a chunk have been sent; `plan` returns that for `execute` of them."""
        past = np.concatenate([memory.past, chunk.joints[:executed]])[-3:]
        rest = np.concatenate([chunk.joints[executed:], np.repeat(chunk.joints[-1:], executed, axis=0)])
        grip = np.concatenate([chunk.hand[executed:], np.repeat(chunk.hand[-1:], executed, axis=0)])
        return Memory(
            past=past,
            hand=chunk.hand[executed - 1] if executed else memory.hand,
            chunk=replace(chunk, joints=rest, hand=grip),
            calls=memory.calls + 1,
        )

    def limits(self, memory: Memory, more: ConstraintSet | None = None) -> ConstraintSet:
        """Everything that the next chunk has to satisfy."""
        return self._setting(memory, more).constraints

    def prepare(self, observation: Any, more: ConstraintSet | None = None) -> None:
        """Compile everything that `plan` may run, so that no call in the loop has to."""
        memory = self.start(np.asarray(self.robot.home))
        chunk, memory = self.plan(observation, memory, more)
        setting = self._setting(memory, more)
        holds(self.policy, setting, chunk.joints, chunk.hand)
        clear(self.policy, setting, chunk.joints, chunk.hand, self.between)

    def off(self, memory: Memory, tool: Pose, position: float = 0.03, angle: float = np.deg2rad(20)) -> bool:
        """Whether the tool (T_world_tool, measured) is further from where it was last sent than `position` [m] or `angle` [rad].

        The thresholds are those that RIGVid reports (arXiv 2507.00990).
        """
        sent = self.robot.tool_pose(jnp.asarray(memory.past[-1]))
        turn = np.trace(np.asarray(sent.rotation).T @ np.asarray(tool.rotation))
        gap = float(np.linalg.norm(np.asarray(sent.position) - np.asarray(tool.position)))
        return gap > position or float(np.arccos(np.clip((turn - 1) / 2, -1, 1))) > angle

    def _setting(self, memory: Memory, more: ConstraintSet | None) -> Setting:
        horizon, left = self.horizon, self.horizon - self.execute
        chunk = memory.chunk
        fading = np.clip(1 - np.arange(horizon) / max(left, 1), 0, None)
        return Setting(
            robot=self.robot,
            given=self.constraints if more is None else self.constraints | more,
            past=memory.past,
            velocity=self.robot.velocity if self.velocity is None else self.velocity,
            acceleration=self.acceleration,
            clearance=self.clearance,
            lag=self.lag,
            last=np.tile(memory.past[-1], (horizon, 1)) if chunk is None else chunk.joints,
            weight=(0.0 if chunk is None else self.overlap) * fading.astype(np.float32),
        )

    def _fallback(self, memory: Memory, setting: Setting) -> tuple[np.ndarray, np.ndarray, Source]:
        """The rest of the last chunk if it still satisfies the constraints, else to stay where the robot is."""
        rest = memory.chunk
        if (
            rest is not None
            and holds(self.policy, setting, rest.joints, rest.hand)
            and clear(self.policy, setting, rest.joints, rest.hand, self.between)
        ):
            return rest.joints, rest.hand, "rest"
        horizon = self.horizon
        return np.tile(memory.past[-1], (horizon, 1)), np.tile(memory.hand, (horizon, 1)), "stop"


def _best(result: Solution) -> int:
    """The feasible plan that was corrected least, or else the plan that violates least."""
    worst = np.max([np.asarray(v) for v in result.violation.values()], axis=0)
    merit = np.where(result.feasible, np.asarray(result.stats.terminal_move), 1e6 + worst)
    return int(np.argmin(np.where(np.isfinite(merit), merit, np.inf)))
