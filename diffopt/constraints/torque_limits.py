"""Torque limits along a path, by inverse dynamics.

At each step r with two steps before it, velocity and acceleration are those of finite differences about step r - 1,

    v = (q_r - q_{r-2}) / (2 dt),   a = (q_r - 2 q_{r-1} + q_{r-2}) / dt^2,      +-tau(q_{r-1}, v, a) - limit (1 - slack) <= 0     [N m]

with tau of `diffopt.robots.dynamics`: gravity, inertia and rotors; neither friction nor what the hand carries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.steps import windows, with_past
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.dynamics import inertias, inverse_dynamics
from diffopt.robots.embodiment import Embodiment


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TorqueLimits:
    """See the module's docstring; made by `torque_limits`.

    Attributes:
      robot: whose arm.
      limit: per joint [N m].
      past: the joints of the last steps before the path (at most two), the latest last; None if it may start anywhere.
      slack: share of the limit that is kept free.
    """

    robot: Embodiment
    limit: Float[Array, "A"]
    past: Float[Array, "P A"] | None = None
    slack: float | Float[Array, ""] = 0.03
    name: str = field(default="torque_limits", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    @property
    def tolerance(self) -> Float[Array, "2A"]:
        return self.slack * jnp.tile(self.limit, 2)

    def _rows(self, three: Float[Array, "3 A"], dt: float) -> Float[Array, "2A"]:
        velocity = (three[2] - three[0]) / (2 * dt)
        acceleration = (three[2] - 2 * three[1] + three[0]) / dt**2
        tau = inverse_dynamics(self.robot, three[1], velocity, acceleration)
        return jnp.concatenate([tau, -tau]) - (1 - self.slack) * jnp.tile(self.limit, 2)

    def _steps(self, joints: Float[Array, "H A"]) -> Float[Array, "R 3 A"]:
        steps = with_past(self.past, joints)
        return jnp.stack([steps[:-2], steps[1:-1], steps[2:]], axis=1)

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "R 2A"]:
        """How far each torque is beyond its limit, less the slack, upwards, then downwards [N m]; satisfied when <= 0."""
        return jax.vmap(lambda three: self._rows(three, plan.dt))(self._steps(aux["joints"]))

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        three = self._steps(aux["joints"])
        units = jnp.eye(three[0].size).reshape(-1, *three.shape[1:])

        def one(three):
            return jax.vmap(lambda t: jax.jvp(lambda x: self._rows(x, plan.dt), (three,), (t,)), out_axes=(None, 1))(
                units
            )

        values, columns = jax.vmap(one)(three)
        return values, windows(columns.reshape(*columns.shape[:2], *three.shape[1:]), self.past)

    def labels(self) -> tuple[str, ...]:
        return tuple(f"{joint} {way}" for way in ("upwards", "downwards") for joint in self.robot.arm)

    @staticmethod
    def example(key: Any) -> tuple[TorqueLimits, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """The torque limits of the Panda, a motion at rest and one that is far too fast (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-gripper")
        time = 0.1 * jnp.arange(1, 6)[:, None]
        plan = ToolPath(
            position=jnp.zeros((5, 3)),
            rotation=jnp.broadcast_to(jnp.eye(3), (5, 3, 3)),
            joints=jnp.zeros((5, 1)),
            dt=0.1,
        )
        sway = jax.random.uniform(key, robot.home.shape, minval=0.5, maxval=1.0)
        still, wild = robot.home + 0.02 * sway * time, robot.home + 0.6 * sway * jnp.sin(12 * time)
        return torque_limits(robot), (plan, {"joints": still}), (plan, {"joints": wild})


def torque_limits(robot: Embodiment, limit: Any = None, *, past: Any = None, slack: float = 0.03) -> TorqueLimits:
    """Limits on the torques of the arm's joints along a path.

    Args:
      limit: per joint, or one for all [N m]; by default those of the motors in the robot's file.
      past: joints of the last two steps (2, A), the latest last [rad]; None if the path may start anywhere.
      slack: share of the limit that is kept free.
    Raises:
      ValueError: no limit is given, and the file has none for some joint.
    """
    if limit is None:
        limit = inertias(robot).limit
        missing = [name for name, most in zip(robot.arm, limit, strict=True) if not np.isfinite(most)]
        if missing:
            raise ValueError(f"{robot.name!r} has no torque limit for {', '.join(missing)}; give limit=...")
    limit = jnp.broadcast_to(jnp.asarray(limit, jnp.float32), (len(robot.arm),))
    past = None if past is None else jnp.atleast_2d(jnp.asarray(past, jnp.float32))[-2:]
    return TorqueLimits(robot=robot, limit=limit, past=past, slack=slack)
