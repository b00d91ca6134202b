"""Trackability: the arm's servos bring the tool where the path says, although they lag.

A servo with time constant T follows the ramp from one command to the next; its lag e = (command) - (where the joint is) at the knots is

    e_h = E e_{h-1} + T (1 - E) / dt (q_h - q_{h-1}),     E = exp(-dt / T),

the solution of T q' = r - q for a ramp r, and what counts is how far the tool then is from where it was sent:

    | p(q_h) - p(q_h - e_h) | - position <= 0  [m],         | log(R(q_h - e_h)' R(q_h)) | - angle <= 0  [rad].

The lag of `MEMORY` steps before counts; what came earlier has faded by E^MEMORY. Together with velocity limits, within which the servo
does not saturate, this is the controller's roll-out that the paper of OGD puts into its cost (arXiv 2606.24208), as a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.steps import windows, with_past
from diffopt.geometry import rotation_vector
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment

MEMORY = 3  # steps


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The tool within bounds of where it is sent.

    Attributes:
      robot: the arm.
      past: the last `MEMORY` commanded postures before the path, the latest last [rad].
      lag: T of the servos, one for all or per joint [s].
      position, angle: bounds [m], [rad].
      slack: share of the bounds that is kept free.
    """

    robot: Embodiment
    past: Float[Array, "3 A"]
    lag: float | Float[Array, "A"] = 0.05
    position: float | Float[Array, ""] = 0.02
    angle: float | Float[Array, ""] = 0.1
    slack: float | Float[Array, ""] = 0.05
    name: str = field(default="tracking", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    @property
    def tolerance(self) -> Float[Array, "2"]:
        return self.slack * jnp.stack([jnp.asarray(self.position), jnp.asarray(self.angle)])

    def lags(self, joints: Float[Array, "M A"], dt: float) -> Float[Array, "A"]:
        """e at the last of some steps [rad], as if it had been zero at the first."""
        T = jnp.broadcast_to(jnp.asarray(self.lag), joints.shape[1:])
        fading = jnp.exp(-dt / T)
        e = jnp.zeros(joints.shape[1])
        for step in jnp.diff(joints, axis=0):
            e = fading * e + T * (1 - fading) / dt * step
        return e

    def _rows(self, joints: Float[Array, "M A"], dt: float) -> Float[Array, "2"]:
        sent = self.robot.tool_pose(joints[-1])
        there = self.robot.tool_pose(joints[-1] - self.lags(joints, dt))
        gap, turn = sent.position - there.position, rotation_vector(there.rotation.T @ sent.rotation)
        return jnp.stack([_norm(gap) - (1 - self.slack) * self.position, _norm(turn) - (1 - self.slack) * self.angle])

    def _steps(self, joints: Float[Array, "H A"]) -> Float[Array, "H M A"]:
        steps = with_past(self.past[-MEMORY:], joints)
        return jnp.stack([steps[i : i + len(joints)] for i in range(MEMORY + 1)], axis=1)

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H 2"]:
        """Distance [m] and turn [rad] between the tool and where it is sent, less the bounds; satisfied when <= 0."""
        return jax.vmap(lambda steps: self._rows(steps, plan.dt))(self._steps(aux["joints"]))

    def windows(self, plan: Path, aux: Auxiliary, context: Any):
        """The residual and its derivatives by the joints; see `Windowed`."""
        steps = self._steps(aux["joints"])
        values = self.residual(plan, aux, context)
        blocks = jax.vmap(jax.jacrev(lambda steps: self._rows(steps, plan.dt)))(steps)
        return values, windows(blocks, self.past[-MEMORY:])

    def labels(self) -> tuple[str, ...]:
        return ("distance [m]", "turn [rad]")

    @staticmethod
    def example(key: Any) -> tuple[Tracking, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """A Panda whose servos lag 50 ms, a slow and a fast (plan, aux)."""
        from diffopt.robots import embodiments

        robot = embodiments.load("panda-gripper")
        time = 0.1 * jnp.arange(1, 7)[:, None]
        plan = ToolPath(
            position=jnp.zeros((6, 3)),
            rotation=jnp.broadcast_to(jnp.eye(3), (6, 3, 3)),
            joints=jnp.zeros((6, 1)),
            dt=0.1,
        )
        rate = jax.random.uniform(key, robot.home.shape, minval=0.5, maxval=1.0)
        slow, fast = robot.home + 0.1 * rate * time, robot.home + 2.0 * rate * time
        return (
            Tracking(robot=robot, past=jnp.tile(robot.home, (3, 1))),
            (plan, {"joints": slow}),
            (plan, {"joints": fast}),
        )


def _norm(v: Float[Array, "3"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(v**2) + 1e-14)
