"""Limits on the velocity, acceleration and jerk of the joints along a path.

With the joints q_h at knots dt apart, and those of the steps before, if given, q_{-1}, q_{-2}, ...,

    +-(D^n q)_h / dt^n - limit (1 - slack) <= 0,     D q = q_h - q_{h-1},  n = 1, 2, 3       [rad/s, rad/s^2, rad/s^3; m for a slide]

What the tolerance lets pass, `slack` times the limit, is the limit itself. Of a motion that moves from knot to knot in straight lines
the first is exact; accelerations and jerks are those that finite differences see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.steps import windows, with_past
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import follow

_NAMES = {1: "velocity", 2: "acceleration", 3: "jerk"}
_UNLIMITED = 1e6


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class MotionLimits:
    """See the module's docstring; made by `velocity_limits`, `acceleration_limits` and `jerk_limits`.

    Attributes:
      robot: whose arm.
      limit: per joint [rad/s^n].
      past: the joints of the steps before the path, dt apart, the latest last; None if the path may start anywhere.
      order: n.
      slack: share of the limit that is kept free.
    """

    robot: Embodiment
    limit: Float[Array, "A"]
    past: Float[Array, "P A"] | None = None
    slack: float | Float[Array, ""] = 0.03
    order: int = field(default=1, metadata=dict(static=True))
    name: str = field(default="velocity_limits", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    @property
    def tolerance(self) -> Float[Array, "A"]:
        return self.slack * jnp.tile(self._limit, 2)

    @property
    def _limit(self) -> Float[Array, "A"]:
        return jnp.minimum(self.limit, _UNLIMITED)

    def auxiliary(self, plan: Path, context: Any) -> dict[str, Float[Array, "seeds H A"]]:
        """The path followed from where the robot is, if that is known, no faster than a velocity limit lets it; and to stay there."""
        if self.past is None or isinstance(plan, JointPath):
            return {}
        longest = self._limit * plan.dt if self.order == 1 else 1.0
        stay = jnp.broadcast_to(self.past[-1], (len(plan.joints), self.past.shape[1]))
        return {"joints": jnp.stack([follow(self.robot, self.past[-1], plan.tool, longest=longest), stay])}

    def differences(self, joints: Float[Array, "H A"], dt: float) -> Float[Array, "R A"]:
        """(D^n q)_h / dt^n of every knot that has n steps before it."""
        return jnp.diff(with_past(self.past, joints), n=self.order, axis=0) / dt**self.order

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "R 2A"]:
        """How far each joint is beyond its limit, less the slack, upwards, then downwards [rad/s^n]; satisfied when <= 0."""
        return self._beyond(self.differences(aux["joints"], plan.dt))

    def _beyond(self, values: Float[Array, "R A"]) -> Float[Array, "R 2A"]:
        return jnp.concatenate([values, -values], axis=1) - (1 - self.slack) * jnp.tile(self._limit, 2)

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        values, n, A = self.differences(aux["joints"], plan.dt), self.order, len(self.limit)
        weights = np.array([(-1) ** (n - i) * math.comb(n, i) for i in range(n + 1)], np.float32) / plan.dt**n
        both = np.concatenate([np.eye(A), -np.eye(A)]).astype(np.float32)
        row = weights[:, None] * both[:, None]  # (2A, n + 1, A)
        return self._beyond(values), windows(jnp.broadcast_to(row, (len(values), *row.shape)), self.past)

    def labels(self) -> tuple[str, ...]:
        return tuple(f"{joint} {way}" for way in ("upwards", "downwards") for joint in self.robot.arm)

    @staticmethod
    def example(key: Any) -> tuple[MotionLimits, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """The velocity limits of the Panda, a slow and a fast (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-gripper")
        slope = jax.random.uniform(key, robot.home.shape, minval=0.2, maxval=0.9) * robot.velocity
        time = 0.1 * jnp.arange(1, 9)[:, None]
        plan = ToolPath(
            position=jnp.zeros((8, 3)),
            rotation=jnp.broadcast_to(jnp.eye(3), (8, 3, 3)),
            joints=jnp.zeros((8, 1)),
            dt=0.1,
        )
        slow, fast = robot.home + slope * time, robot.home + 1.2 * slope / jnp.min(slope / robot.velocity) * time
        return velocity_limits(robot, past=robot.home), (plan, {"joints": slow}), (plan, {"joints": fast})


def velocity_limits(robot: Embodiment, *, past: Any = None, limit: Any = None, slack: float = 0.03) -> MotionLimits:
    """The robot's velocity limits along a path.

    Args:
      past: joints now (A,), or of the last steps (P, A), the latest last [rad]; None if the path may start anywhere.
      limit: instead of the robot's own [rad/s].
      slack: share of the limit that is kept free.
    """
    return _limits(robot, 1, past, robot.velocity if limit is None else limit, slack)


def acceleration_limits(robot: Embodiment, limit: Any, *, past: Any = None, slack: float = 0.03) -> MotionLimits:
    """Limits on the joints' accelerations along a path; `past` must hold the last two steps to hold at its start.

    Args:
      limit: per joint, or one for all [rad/s^2].
      past, slack: as in `velocity_limits`.
    """
    return _limits(robot, 2, past, limit, slack)


def jerk_limits(robot: Embodiment, limit: Any, *, past: Any = None, slack: float = 0.03) -> MotionLimits:
    """Limits on the joints' jerks along a path; `past` must hold the last three steps to hold at its start.

    Args:
      limit: per joint, or one for all [rad/s^3].
      past, slack: as in `velocity_limits`.
    """
    return _limits(robot, 3, past, limit, slack)


def _limits(robot: Embodiment, order: int, past: Any, limit: Any, slack: float) -> MotionLimits:
    count = len(robot.arm)
    limit = jnp.broadcast_to(jnp.asarray(limit, jnp.float32), (count,))
    if not isinstance(limit, jax.core.Tracer) and not bool(jnp.all(limit > 0)):
        raise ValueError(f"{_NAMES[order]} limits are {np.asarray(limit)}; expected positive numbers")
    if past is not None:
        past = jnp.atleast_2d(jnp.asarray(past, jnp.float32))
        if past.shape[1] != count:
            raise ValueError(
                f"past has shape {past.shape}; expected steps of the {count} joints of {robot.name!r}: {', '.join(robot.arm)}"
            )
        past = past[-order:]
    return MotionLimits(robot=robot, limit=limit, past=past, order=order, slack=slack, name=f"{_NAMES[order]}_limits")
