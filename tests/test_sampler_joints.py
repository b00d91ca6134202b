"""Every sampler on plans that an arm has to realise: a planar arm of two links, whose kinematics NumPy recomputes."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.samplers import available, load

LINK = 0.5  # [m]
WALL = 0.35  # the elbow stays below [m]
QUICK = {"mpgd", "projected", "task_to_joint"}
SMALL = {
    "rejection": dict(draws=4),
    "ogd": dict(every=2, attempts=1),
    "ogd_chain": dict(iterations=4),
    "latent": dict(iterations=4),
    "particles": dict(count=4),
    "twisted": dict(count=4),
    "model_based": dict(rollouts=32),
}
POLICY = gaussian_mixture([[0.6, 0.3], [-0.4, 0.9]], 0.2)  # the second mode is at the rim of what can be reached


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PlanarReach:
    """The tool of two links is where the plan says [m]."""

    name: str = field(default="reach", metadata=dict(static=True))
    kind: ClassVar[str] = "eq"
    plan_type: ClassVar[type] = Point
    tolerance: ClassVar[float] = 2e-3
    realises: ClassVar[tuple[str, ...]] = ("values",)

    @staticmethod
    def tool(q):
        return LINK * jnp.array([jnp.cos(q[0]) + jnp.cos(q[0] + q[1]), jnp.sin(q[0]) + jnp.sin(q[0] + q[1])])

    def auxiliary(self, plan, context):
        return {"joints": jnp.array([[0.2, 1.0], [1.2, -1.0], [2.0, 1.0], [2.5, -1.0]])}

    def residual(self, plan, aux, context):
        return self.tool(aux["joints"]) - plan.values

    def realise(self, plan, aux, context):
        return Point(values=self.tool(aux["joints"]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LowElbow:
    """The elbow below the wall [m], and both joints within bounds [rad]."""

    wall: float = WALL
    name: str = field(default="low_elbow", metadata=dict(static=True))
    kind: ClassVar[str] = "ineq"
    plan_type: ClassVar[type] = object
    tolerance: ClassVar[float] = 2e-3

    def residual(self, plan, aux, context):
        return jnp.atleast_1d(LINK * jnp.sin(aux["joints"][0]) - self.wall)


ARM = ConstraintSet.of(PlanarReach(), LowElbow())


def feasible(plans, joints):
    """By NumPy: whether the arm with its elbow below the wall has its tool at the plan."""
    elbow = LINK * np.stack([np.cos(joints[:, 0]), np.sin(joints[:, 0])], axis=1)
    total = joints.sum(1)
    tool = elbow + LINK * np.stack([np.cos(total), np.sin(total)], axis=1)
    return (np.abs(tool - plans).max(1) <= 2e-3) & (elbow[:, 1] <= WALL + 2e-3)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in available()])
def test_status_of_plans_with_joints(name):
    """The status is what the returned plan and joints say, and some plan of the reachable mode is found feasible."""
    result = diffopt.sample(POLICY, ARM, n=16, key=1, sampler=load(name, **SMALL.get(name, {})), levels=8)
    expected = feasible(np.asarray(result.plans.values, np.float64), np.asarray(result.joints, np.float64))
    margin = np.abs(np.asarray(result.violation["reach"]) - 2e-3) > 1e-5  # rounding may decide on the line
    np.testing.assert_array_equal(np.asarray(result.feasible)[margin], expected[margin])
    assert expected.any()
    if name in ("projected", "clean_projection", "direct", "pcd", "task_to_joint"):
        assert expected.mean() > 0.8


def test_plans_without_joints_cannot_be_lifted():
    from diffopt.constraints import from_residual

    low = ConstraintSet.of(from_residual(lambda plan: plan.values[:1], name="low", plan_type=Point))
    with pytest.raises(ValueError, match=r"Reach; this set has: low"):
        diffopt.sample(POLICY, low, sampler="task_to_joint")
