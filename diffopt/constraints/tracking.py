"""Trackability: the robot's controller, rolled out along the path, keeps the tool where the path wants it.

With r_h the joints that the path asks for at knot h (and before it, what was commanded), the controller sends c_h, and a servo with time
constant T follows the ramp from c_{h-1} to c_h with the lag l_h:

    o_h = clip(T (r_h - r_{h-1}) / dt, -offset, offset)                                      the lead, a bounded offset
    w_h = r_h + o_h - c_{h-1}                                                                by="joints"
        = J' (J J' + damping^2)^-1 log(tool(c_{h-1}), tool(r_h + o_h)),  J = J(c_{h-1})      by="tool": damped least squares
    c_h = clip(c_{h-1} + clip(w_h, -longest, longest), lower, upper)                         velocity and torque, joint limits
    l_h = E l_{h-1} + T (1 - E) / dt (c_h - c_{h-1}),        E = exp(-dt / T)                q_h = c_h - l_h

    | p(q_h) - p(r_h) | - position <= 0  [m],         | log(R(q_h)' R(r_h)) | - angle <= 0  [rad].

The last line of the roll-out solves T q' = c - q for a ramp. It is the roll-out that the paper of OGD puts into its cost (arXiv
2606.24208: damping 0.05, longest = min(velocity dt, torque / k_p)), as a bound.

Without a lead the lag of a motion at constant speed v is T v, and whoever minimises it can do nothing but slow the path down. What is sent
may instead run ahead of the path: at constant speed the lead T v cancels the lag exactly, and as long as it is within `offset` the
residual does not ask for a slower path. Since the offset is bounded, what is sent stays near the path, and a path that would need more
of a lead is not trackable. `commands` is what has to be sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.geometry import Pose, rotation_vector
from diffopt.paths import JointPath, Path, ToolPath
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.motion import resolved

WAYS = ("joints", "tool")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Tracking:
    """The tool within bounds of where the path wants it, when the controller follows the path.

    Attributes:
      robot: the arm.
      past: the last commanded postures before the path, dt apart, the latest last [rad]; at the first of them nothing lagged.
      lag: T of the servos, one for all or per joint [s].
      position, angle: bounds [m], [rad].
      offset: bound of the lead, one for all or per joint [rad, m for a slide]; 0 for a controller that sends the path as it is.
      longest: largest change of a command from knot to knot [rad]; None: the robot's velocity limits times dt.
      slack: share of the bounds that is kept free.
      by: whether the controller is given "joints", or follows the "tool" by damped least squares.
      damping: lambda of that [m, rad].
    """

    robot: Embodiment
    past: Float[Array, "P A"]
    lag: float | Float[Array, "A"] = 0.05
    position: float | Float[Array, ""] = 0.02
    angle: float | Float[Array, ""] = 0.1
    offset: float | Float[Array, "A"] = 0.0
    longest: float | Float[Array, "A"] | None = None
    slack: float | Float[Array, ""] = 0.05
    damping: float | Float[Array, ""] = 0.05
    by: str = field(default="joints", metadata=dict(static=True))
    name: str = field(default="tracking", metadata=dict(static=True))

    kind: ClassVar[Kind] = "ineq"
    plan_type: ClassVar[tuple[type, ...]] = (ToolPath, JointPath)

    @property
    def tolerance(self) -> Float[Array, "2"]:
        return self.slack * jnp.stack([jnp.asarray(self.position), jnp.asarray(self.angle)])

    def commands(self, joints: Float[Array, "H A"], dt: float) -> Float[Array, "H A"]:
        """c_h, what the controller sends for a path through these joints [rad]."""
        return self._rolled(joints, dt)[0]

    def followed(self, joints: Float[Array, "H A"], dt: float) -> Float[Array, "H A"]:
        """q_h, where the joints then are [rad]."""
        return self._rolled(joints, dt)[1]

    def _rolled(self, joints: Float[Array, "H A"], dt: float) -> tuple[Float[Array, "H A"], Float[Array, "H A"]]:
        if self.by not in WAYS:
            raise ValueError(f"a controller by {self.by!r} in {self.name!r}; there are: {', '.join(WAYS)}")
        robot, past = self.robot, jnp.atleast_2d(jnp.asarray(self.past))
        if past.shape[1] != joints.shape[1]:
            raise ValueError(f"past of {self.name!r} has shape {past.shape}; expected steps of {', '.join(robot.arm)}")
        T = jnp.maximum(jnp.broadcast_to(jnp.asarray(self.lag, joints.dtype), joints.shape[1:]), 1e-6)
        E = jnp.exp(-dt / T)
        longest = robot.velocity * dt if self.longest is None else self.longest

        def lagging(lag, moved):
            return E * lag + T * (1 - E) / dt * moved, None

        def knot(state, step):
            sent, lag = state
            before, wanted = step
            led = wanted + jnp.clip(T / dt * (wanted - before), -self.offset, self.offset)
            way = led - sent if self.by == "joints" else resolved(robot, sent, robot.tool_pose(led), self.damping)
            after = jnp.clip(sent + jnp.clip(way, -longest, longest), robot.lower, robot.upper)
            lag, _ = lagging(lag, after - sent)
            return (after, lag), (after, after - lag)

        lag, _ = jax.lax.scan(lagging, jnp.zeros_like(joints[0]), jnp.diff(past, axis=0))
        before = jnp.concatenate([past[-1:], joints[:-1]])
        return jax.lax.scan(knot, (past[-1], lag), (before, joints))[1]

    def residual(self, plan: Path, aux: Auxiliary, context: Any) -> Float[Array, "H 2"]:
        """Distance [m] and turn [rad] between the tool and where the path wants it, less the bounds; satisfied when <= 0."""
        joints = aux["joints"]
        return jax.vmap(self._apart)(self.followed(joints, plan.dt), joints)

    def _apart(self, there: Float[Array, "A"], wanted: Float[Array, "A"]) -> Float[Array, "2"]:
        a: Pose = self.robot.tool_pose(there)
        b: Pose = self.robot.tool_pose(wanted)
        gap, turn = _norm(a.position - b.position), _norm(rotation_vector(a.rotation.T @ b.rotation))
        return jnp.stack([gap - (1 - self.slack) * self.position, turn - (1 - self.slack) * self.angle])

    def jacobian(self, plan: Path, aux: Auxiliary, context: Any) -> tuple[Float[Array, "H 2"], Float[Array, "H 2 H A"]]:
        """The residual, and its derivative by all joints of the path."""
        joints = aux["joints"]
        H, A = joints.shape
        there = self.followed(joints, plan.dt)
        rows = jax.vmap(self._apart)(there, joints)
        by_there, by_wanted = jax.vmap(jax.jacrev(self._apart, argnums=(0, 1)))(there, joints)
        if self.by == "joints":  # joint by joint: q_h's derivative by r_k is diagonal, and one push per knot finds it
            one = jnp.broadcast_to(jnp.eye(H)[:, :, None], (H, H, A))
            moved = jax.vmap(lambda t: jax.jvp(lambda r: self.followed(r, plan.dt), (joints,), (t,))[1])(one)
            through = by_there[:, :, None, :] * jnp.swapaxes(moved, 0, 1)[:, None]
        else:
            moved = jax.jacfwd(lambda r: self.followed(r, plan.dt))(joints)  # (H, A, H, A)
            through = jnp.einsum("hma,hakb->hmkb", by_there, moved)
        return rows, through + jnp.eye(H)[:, None, :, None] * by_wanted[:, :, None, :]

    def labels(self) -> tuple[str, ...]:
        return ("distance [m]", "turn [rad]")

    @staticmethod
    def example(key: Any) -> tuple[Tracking, tuple[ToolPath, Auxiliary], tuple[ToolPath, Auxiliary]]:
        """A Panda whose servos lag 50 ms, with a lead of up to 0.05 rad, a slow and a fast (plan, aux)."""
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
        slow, fast = robot.home + 0.2 * rate * time, robot.home + 2.0 * rate * time
        return (
            Tracking(robot=robot, past=jnp.tile(robot.home, (3, 1)), offset=0.05),
            (plan, {"joints": slow}),
            (plan, {"joints": fast}),
        )


def _norm(v: Float[Array, "3"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.sum(v**2) + 1e-14)
