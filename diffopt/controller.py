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

A chunk is watched while it is executed, and given up where the world is not as it was planned (`diffopt.monitor`):

    chunk, after = controller.plan(observation, memory)
    for k in range(controller.execute):
        robot_driver.send(chunk.joints[k], chunk.hand[k])
        belief, deviation = monitor.look(belief, chunk.tool_at(k), chunk.hand[k], tool, object)
        if deviation is not None:
            chunk, after = controller.rewind(controller.after(chunk, memory, k + 1))    # then send all of this chunk, and plan anew
            break
    memory = after

An arm that is held up is not where its servos should have it: `plan(joints=)` and `holds` judge from where it is.
A robot that finds nothing feasible any more goes back the same way, `if controller.stuck(after)` (docs/controller.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffopt.chunks import Chunk, Setting, Source, best, clear, draw, holds, kept, placed, reached, trailing
from diffopt.constraints import ConstraintSet
from diffopt.geometry import Pose
from diffopt.memory import Memory, advanced, gone_back, way_back, waypoint
from diffopt.monitor import Deviation, gap
from diffopt.paths import spec_of_paths
from diffopt.policies.base import Policy
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import resolve

if TYPE_CHECKING:
    from diffopt.samplers import Sampler


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
      execute: knots that are executed of each chunk; None: as many as the policy's checkpoint says, else 8.
      acceleration: limit per joint [rad/s^2]; None for none.
      velocity: limit per joint [rad/s]; None for the robot's own.
      clearance: that the sampler aims at beyond the constraints' own margins, so that what lies between the knots is clear too [m]; of
        several, attempts take turns: what fails is mostly not clear between the knots.
      lag: time constant of the joints' servos, one or per joint [s]. between: postures checked per step of a chunk.
      opens: the direction in which a joint of the hand opens, 1 or -1, one or per joint; 0: it is taken to be where it is told. With a
        direction, closing is not believed within a chunk, and not beyond the posture measured before it (`plan`).
      guard: how far the tool may be from where a chunk predicts it, before the rest of the chunk is judged again from where the arm is
        (`holds`), and new chunks as well as if it stayed so far off [m], [rad]; None: never.
      patience: so many plans without anything feasible, one after the other, and the robot is `stuck`.
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
    execute: Any = None
    acceleration: Any = None
    velocity: Any = None
    clearance: float | Sequence[float] = (0.005, 0.0125, 0.03)
    lag: Any = 0.0
    between: int = 4
    opens: Any = 0.0
    guard: tuple[float, float] | None = (0.005, 0.05)
    patience: int = 2
    overlap: float = 2.0
    seed: int = 0

    def __post_init__(self):
        if self.execute is None:
            first, beyond = self.policy.executed or (0, min(8, self.horizon))
            object.__setattr__(self, "execute", beyond - first)
        if not 1 <= self.execute <= self.horizon:
            raise ValueError(f"execute={self.execute}; the policy plans {self.horizon} knots")
        if self.attempts < 1 or self.particles < 1:
            raise ValueError(f"attempts={self.attempts}, particles={self.particles}; expected at least 1")
        if not self.clearances:
            raise ValueError(f"clearance={self.clearance}; expected a number or some, one per attempt [m]")

    @property
    def clearances(self) -> tuple[float, ...]:
        """By attempt, in turns [m]."""
        return tuple(float(c) for c in np.ravel(self.clearance))

    @property
    def first(self) -> int:
        """Knots at the beginning of the policy's plans that lie in the past: the knot `first` is the next command."""
        return self.policy.executed[0] if self.policy.executed else 0

    @property
    def horizon(self) -> int:
        """Knots of a chunk, those in the past not counted."""
        return spec_of_paths(self.policy).horizon - self.first

    @property
    def dt(self) -> float:
        """Time between knots [s]."""
        return spec_of_paths(self.policy).dt

    def start(self, joints: Float[np.ndarray, "A"], hand: Float[np.ndarray, "J"] | None = None) -> Memory:
        """The memory of a robot at rest at `joints` [rad] (and `hand`, by default its home posture)."""
        joints = self._of_arm(joints)
        hand = np.asarray(self.robot.hand_home if hand is None else hand, np.float32)
        return Memory(past=np.tile(joints, (3, 1)), hand=hand, trail=joints[None], grips=hand[None])

    def plan(
        self,
        observation: Any,
        memory: Memory,
        more: ConstraintSet | None = None,
        hand: Float[np.ndarray, "J"] | None = None,
        joints: Float[np.ndarray, "A"] | None = None,
    ) -> tuple[Chunk, Memory]:
        """The next chunk, and the memory after its first `execute` knots have been sent.

        Args:
          observation: what the policy is given.
          more: constraints that are new at every call, such as obstacles that move.
          hand: joints of the hand as measured now [rad or m]: what it holds may keep them from where they are told to go. With `opens`, the
            hand counts as at least so open all along the chunk.
          joints: of the arm as measured now [rad], from which it goes on to follow what it is sent; by default where its servos should have
            brought it. Where the tool is further from there than `guard`, the chunk is clear both if the arm catches up and if it does
            not. Commands stay continuous all the same: the first knot is near the last command, not near the measured joints.
        Raises:
          ValueError: `hand` is given, but no joint of the hand has a direction in which it opens; `joints` are not those of the arm.
        """
        began = time.perf_counter()
        setting = self._setting(memory, more, hand, joints)
        sampler = resolve(self.sampler)
        found, merit, fine, attempt = None, (True, np.inf), False, 0
        while not fine and attempt < self.attempts and (attempt == 0 or time.perf_counter() - began < self.deadline):
            marks = np.array([self.seed, memory.calls, attempt], np.uint32)
            aim = replace(setting, clearance=self.clearances[attempt % len(self.clearances)])
            result = draw(self.policy, observation, aim, marks, sampler, self.eta, self.levels, self.particles)
            drawn, worth = best(*jax.device_get(result))
            motion = drawn.aux["joints"][0], drawn.plans.joints[0]
            fine = bool(drawn.feasible[0]) and clear(self.policy, setting, *motion, self.between)
            if found is None or fine or worth < merit:
                found, merit = drawn, worth
            attempt += 1
        assert found is not None
        report = found.explain(0)
        if fine:
            sent, grip = (np.asarray(x[0])[self.first :] for x in (found.aux["joints"], found.plans.joints))
            source: Source = "planned"
        else:
            report += " at its knots, but not between them" if found.feasible[0] else ""
            sent, grip, source = self._fallback(memory, setting)
        chunk = self._chunk(
            sent,
            grip,
            setting,
            source=source,
            attempts=attempt,
            latency=time.perf_counter() - began,
            changed=float(found.stats.terminal_move[0]),
            violation={name: float(values[0]) for name, values in found.violation.items()},
            report=report,
            plan=jax.tree.map(lambda leaf: leaf[0], found.plans),
        )
        return chunk, self.after(chunk, memory, self.execute)

    def holds(
        self,
        chunk: Chunk,
        k: int,
        memory: Memory,
        joints: Float[np.ndarray, "A"],
        more: ConstraintSet | None = None,
        hand: Float[np.ndarray, "J"] | None = None,
    ) -> bool:
        """Whether the rest of a chunk may be sent, a period after its knot k was.

        It may where the tool is within `guard` of where the chunk predicts it. Where it is not, the arm does not follow as was thought, and
        the rest is judged again from where the arm is. What holds an arm up may let go of it, and then the way back to the commands
        leads where nobody has looked; or it may not, and then the arm passes things at another distance than was thought. A rest that
        does not hold is not sent; plan from `after(chunk, memory, k + 1)`.

        Args:
          memory: before the chunk. joints: of the arm as measured now [rad]. more, hand: as in `plan`.
        """
        if self._within(chunk.tool_at(k), self._of_arm(joints)):
            return True
        after = self.after(chunk, memory, k + 1)
        assert after.chunk is not None
        rest = [x[np.minimum(np.arange(self.horizon), len(x) - 1)] for x in (after.chunk.joints, after.chunk.hand)]
        return self._fine(self._setting(after, more, hand, joints), *rest)

    def stuck(self, memory: Memory) -> bool:
        """Whether the last `patience` plans found nothing feasible: time to `rewind`."""
        return memory.barren >= self.patience

    def rewind(
        self,
        memory: Memory,
        deviation: Deviation | None = None,
        more: ConstraintSet | None = None,
        hand: Float[np.ndarray, "J"] | None = None,
        joints: Float[np.ndarray, "A"] | None = None,
    ) -> tuple[Chunk, Memory]:
        """The way back to the last waypoint that was reached, and the memory after all of it has been sent: from there `plan` samples
        again, with new noise and without regard to the last chunk.

        A waypoint is where a feasible chunk began. The way back is that of the commands that came here, as fast or, where the limits do not
        allow that, two or four times as slow; it is judged like a chunk, and where something stands in its way now, it is a stop. One
        rewinding after the other, no chunk being executed whole between them, goes back one waypoint more.

        Args:
          memory: after what has been sent: `after(chunk, memory, k)` where a chunk was broken off behind its first k knots.
          deviation: why, for the report. more, hand, joints: as in `plan`.
        """
        began = time.perf_counter()
        goal = waypoint(memory)
        setting = self._setting(replace(memory, chunk=None), more, hand, joints)
        source: Source = "rewind"
        for slower in (1, 2, 4):
            way, grips = (way_back(commands[goal:], slower) for commands in (memory.trail, memory.grips))
            if self._judged(memory, way, grips, more, hand, joints):
                break
        else:
            way, grips, source = memory.past[-1:], memory.hand[None], "stop"
        chunk = self._chunk(
            way,
            grips,
            setting,
            source=source,
            latency=time.perf_counter() - began,
            report=str(deviation) if deviation is not None else "",
        )
        back = self.after(chunk, memory, len(way))
        return chunk, gone_back(memory, back, goal if source == "rewind" else None)

    def after(self, chunk: Chunk, memory: Memory, executed: int) -> Memory:
        """The memory after the first `executed` knots of a chunk have been sent; `plan` returns that for `execute` of them."""
        return advanced(memory, chunk, executed, self.execute)

    def limits(self, memory: Memory, more: ConstraintSet | None = None) -> ConstraintSet:
        """Everything that the next chunk has to satisfy."""
        return self._setting(memory, more).constraints

    def prepare(self, observation: Any, more: ConstraintSet | None = None) -> None:
        """Compile everything that `plan` may run, so that no call in the loop has to."""
        memory = self.start(np.asarray(self.robot.home))
        chunk, memory = self.plan(observation, memory, more)
        self._fine(self._setting(memory, more), chunk.joints, chunk.hand)
        jax.block_until_ready(placed(self.robot, memory.past[-1]))

    def off(self, memory: Memory, tool: Pose, position: float = 0.03, angle: float = np.deg2rad(20)) -> bool:
        """Whether the tool (T_world_tool, measured) is further from where it was last sent than `position` [m] or `angle` [rad]; of a tool
        in motion, `diffopt.Monitor` knows better."""
        distance, turn = gap(self.robot.tool_pose(jnp.asarray(memory.past[-1])), tool)
        return distance > position or turn > angle

    def _of_arm(self, joints: Float[np.ndarray, "A"]) -> Float[np.ndarray, "A"]:
        """Joints of the arm, or `ValueError` [rad]."""
        joints = np.asarray(joints, np.float32)
        if joints.shape != (len(self.robot.arm),):
            raise ValueError(
                f"joints have shape {joints.shape}; {self.robot.name!r} has {len(self.robot.arm)}: {', '.join(self.robot.arm)}"
            )
        return joints

    def _setting(
        self,
        memory: Memory,
        more: ConstraintSet | None,
        hand: Float[np.ndarray, "J"] | None = None,
        joints: Float[np.ndarray, "A"] | None = None,
    ) -> Setting:
        opens = np.broadcast_to(np.asarray(self.opens, np.float32), (len(self.robot.hand),))
        if hand is not None and not opens.any():
            raise ValueError(
                f"hand={hand} was measured, but opens={self.opens} says of no joint in which direction it opens (1 or -1): "
                f"{', '.join(self.robot.hand)}"
            )
        lag = np.broadcast_to(np.asarray(self.lag, np.float32), (len(self.robot.arm),))
        behind, held = trailing(memory.past, lag, self.dt), np.zeros(len(self.robot.arm), np.float32)
        if joints is not None:
            usual, behind = behind, memory.past[-1] - self._of_arm(joints)
            held = self._held(memory.past[-1] - usual, memory.past[-1] - behind)
        horizon, left = self.horizon, self.horizon - self.execute
        chunk = memory.chunk
        fading = np.clip(1 - np.arange(horizon) / max(left, 1), 0, None)
        last = np.tile(memory.past[-1], (horizon, 1)) if chunk is None else chunk.joints
        gone = np.tile(memory.past[-1], (self.first, 1))  # what comes before counts for nothing
        weight = (0.0 if chunk is None else self.overlap) * fading
        return Setting(
            robot=replace(self.robot, hand_kept=kept(hand, opens)),
            given=self.constraints if more is None else self.constraints | more,
            past=memory.past,
            velocity=self.robot.velocity if self.velocity is None else self.velocity,
            acceleration=self.acceleration,
            clearance=self.clearances[0],
            lag=lag,
            behind=behind,
            held=held,
            opens=opens,
            last=np.concatenate([gone, last]),
            weight=np.concatenate([np.zeros(self.first), weight]).astype(np.float32),
            first=self.first,
        )

    def _held(self, expected: Float[np.ndarray, "A"], joints: Float[np.ndarray, "A"]) -> Float[np.ndarray, "A"]:
        """How far an arm is from where its servos should have it, where the tool is so by more than `guard` [rad]."""
        near = self._within(jax.device_get(placed(self.robot, expected)), joints)
        return np.zeros_like(joints) if near else joints - expected

    def _within(self, tool: Pose, joints: Float[np.ndarray, "A"]) -> bool:
        """Whether the tool of an arm is within `guard` of where it is expected; always where there is no guard."""
        if self.guard is None:
            return True
        distance, angle = gap(tool, jax.device_get(placed(self.robot, joints)))
        return distance <= self.guard[0] and angle <= self.guard[1]

    def _chunk(self, joints, hand, setting: Setting, *, source: Source, plan: Any = None, **about: Any) -> Chunk:
        """With where its servos should bring the tool."""
        beyond = -len(joints) % self.horizon
        padded = np.concatenate([joints, np.repeat(joints[-1:], beyond, axis=0)])
        expected = jax.device_get(reached(self.robot, setting.past[-1], setting.behind, padded, setting.lag, self.dt))
        return Chunk(
            joints=joints,
            hand=np.clip(hand, self.robot.hand_lower, self.robot.hand_upper),
            dt=self.dt,
            source=source,
            expected=jax.tree.map(lambda leaf: leaf[: len(joints)], expected),
            plan=plan,
            **about,
        )

    def _fallback(self, memory: Memory, setting: Setting) -> tuple[np.ndarray, np.ndarray, Source]:
        """The rest of the last chunk if it still satisfies the constraints, else to stay where the robot is."""
        rest = memory.chunk
        if rest is not None and self._fine(setting, rest.joints, rest.hand):
            return rest.joints, rest.hand, "rest"
        horizon = self.horizon
        return np.tile(memory.past[-1], (horizon, 1)), np.tile(memory.hand, (horizon, 1)), "stop"

    def _fine(self, setting: Setting, joints: np.ndarray, hand: np.ndarray) -> bool:
        """Whether a motion as long as a chunk satisfies the constraints, at its knots and between them."""
        joints, hand = (np.concatenate([np.repeat(x[:1], self.first, axis=0), x]) for x in (joints, hand))
        there = holds(self.policy, setting, joints, hand)
        return bool(there) and clear(self.policy, setting, joints, hand, self.between)

    def _judged(
        self,
        memory: Memory,
        way: np.ndarray,
        grips: np.ndarray,
        more: ConstraintSet | None,
        hand: np.ndarray | None,
        joints: np.ndarray | None,
    ) -> bool:
        """Whether a motion of any length satisfies the constraints, one chunk's length after the other."""
        for k in range(0, len(way), self.horizon):
            past = np.concatenate([memory.past, way[:k]])[-3:]
            setting = self._setting(replace(memory, past=past, chunk=None), more, hand, None if k else joints)
            part = [x[np.minimum(np.arange(k, k + self.horizon), len(x) - 1)] for x in (way, grips)]
            if not self._fine(setting, *part):
                return False
        return True
