"""Closed chains are closed.

The joints that follow because a loop is closed (see `robots.loops`) go where they close it best, and what is left has to be zero:

    p_1(q, f(q)) - p_2(q, f(q)) = 0  [m],        weld: also  log(R_2' R_1) = 0  [rad]

with f the followers. Where a loop can be closed the residual and its derivative vanish; where the joints that lead are too far apart
they say by how much, and which way leads back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints.base import Auxiliary, Kind
from diffopt.constraints.wrist import held_at
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.loops import systems


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LoopClosure:
    """The closed chains of a robot are closed.

    Attributes:
      robot: whose; the followers of its arm and of its hand.
    """

    robot: Embodiment
    name: str = field(default="loop_closure", metadata=dict(static=True))

    kind: ClassVar[Kind] = "eq"
    plan_type: ClassVar[type] = Grasp

    @property
    def tolerance(self) -> tuple[float, ...]:
        return tuple(2e-4 if label.endswith("[m]") else 2e-3 for label in self.labels())

    def residual(self, plan: Grasp, aux: Auxiliary, context: Any) -> Float[Array, "m"]:
        """How far the loops are open [m], of welds also the turn [rad], in the frame of the base."""
        qpos = self.robot.qpos(aux["joints"], plan.joints)
        return jnp.concatenate([system.residual(qpos) for system in systems(self.robot.kinematics.couplings)])

    def jacobian(self, plan: Grasp, aux: Auxiliary, context: Any) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
        """Residual and its derivative by the arm's joints, through the iteration that finds the followers."""
        return differentiated(lambda joints: self.residual(plan, {"joints": joints}, context), aux["joints"])

    def labels(self) -> tuple[str, ...]:
        out: list[str] = []
        for system in systems(self.robot.kinematics.couplings):
            for loop in system.loops:
                out += [f"{loop.origin} {axis} [m]" for axis in "xyz"]
                out += [f"{loop.origin} turn about {axis} [rad]" for axis in "xyz"] if loop.turns else []
        return tuple(out)

    @staticmethod
    def example(key: Any) -> tuple[LoopClosure, tuple[Grasp, Auxiliary], tuple[Grasp, Auxiliary]]:
        """Two arms that hold one tool; a feasible (plan, aux), and one with the arms too far apart."""
        robot = five_bar()
        joints = robot.home + 0.1 * jax.random.normal(key, robot.home.shape)
        apart = jnp.array([-1.5, 1.5])
        return (
            LoopClosure(robot=robot),
            (held_at(robot, joints), {"joints": joints}),
            (held_at(robot, apart), {"joints": apart}),
        )


def differentiated(
    residual: Callable[[Float[Array, "A"]], Float[Array, "m"]], joints: Float[Array, "A"]
) -> tuple[Float[Array, "m"], Float[Array, "m A"]]:
    """Values and derivative, from one pass."""

    def twice(joints: Float[Array, "A"]) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
        values = residual(joints)
        return values, values

    J, values = jax.jacfwd(twice, has_aux=True)(joints)
    return values, J


@cache
def five_bar() -> Embodiment:
    """Two arms of two links [m] in a plane, the ends of which hold one tool."""
    side = """<body name="{n}1" pos="{x} 0 0"><joint name="{n}_shoulder" axis="0 1 0" range="-1.6 1.6"/>
      <geom type="capsule" size=".02" fromto="0 0 .05 0 0 .15"/>
      <body name="{n}2" pos="0 0 .2"><joint name="{n}_elbow" axis="0 1 0" range="-1 1"/>
        <geom type="capsule" size=".02" fromto="0 0 .03 {half} 0 .2"/>
        <body name="{n}_end" pos="{tip} 0 .2828"><geom type="sphere" size=".02"/></body></body></body>"""
    left, right = (
        side.format(n="left", x=-0.15, half=0.09, tip=0.15),
        side.format(n="right", x=0.15, half=-0.09, tip=-0.15),
    )
    xml = f"""<mujoco model="five-bar"><compiler angle="radian"/><worldbody><body name="stand">
      <geom type="box" size=".2 .02 .01" pos="0 0 -.05"/>{left}{right}</body></worldbody>
      <equality><connect name="tool" body1="left_end" body2="right_end" anchor="0 0 0"/></equality>
      <actuator><motor joint="left_shoulder"/><motor joint="right_shoulder"/></actuator></mujoco>"""
    return Embodiment.from_mjcf(xml, tool="left_end", hand=(), velocity={"left_shoulder": 2.0, "right_shoulder": 2.0})
