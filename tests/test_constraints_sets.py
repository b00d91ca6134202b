"""Checks that nobody can differentiate, soft constraints, and margins by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_check, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.samplers import OGD

POLICY = gaussian_mixture([[0.0, 0.0], [1.0, 1.5]], 0.4)
ASKED = []


def left(plan, aux, limit):
    ASKED.append(plan.values.shape)
    return bool(plan.values[0] < limit)


def left_by(plan, aux, limit):
    ASKED.append(plan.values.shape)
    return plan.values[:, 0] - limit


def below(plan, limit):
    return plan.values[1:] - limit


LOW = from_residual(below, 0.5, name="low", plan_type=Point)
LEFT = from_check(left, 0.1, name="left", plan_type=Point)
LEFT_BY = from_check(left_by, 0.1, name="left", plan_type=Point, batched=True)


@pytest.mark.parametrize("name", ["rejection", pytest.param("particles", marks=pytest.mark.slow)])
@pytest.mark.parametrize("check", [LEFT, LEFT_BY], ids=["predicate", "value"])
def test_samplers_that_judge_satisfy_a_check(name, check):
    result = diffopt.sample(POLICY, ConstraintSet.of(check, LOW), n=16, key=0, sampler=name, levels=8)
    x = np.asarray(result.plans.values)
    np.testing.assert_array_equal(np.asarray(result.feasible), (x[:, 0] <= 0.1) & (x[:, 1] <= 0.501))
    assert result.feasible.mean() > 0.9


@pytest.mark.parametrize("name", ["dps", pytest.param("ogd", marks=pytest.mark.slow)])
def test_samplers_that_follow_gradients_do_not_see_a_check_and_are_told_the_truth(name):
    both = diffopt.sample(POLICY, ConstraintSet.of(LEFT_BY, LOW), n=16, key=0, sampler=name, levels=8, attempts=1)
    x = np.asarray(both.plans.values)
    expected = (x[:, 0] <= 0.1) & (x[:, 1] <= 0.501)
    np.testing.assert_array_equal(np.asarray(both.feasible), expected)
    np.testing.assert_allclose(both.violation["left"], np.maximum(x[:, 0] - 0.1, 0), atol=1e-6)
    assert 0 < expected.mean() < 1
    if name == "dps":
        alone = diffopt.sample(POLICY, ConstraintSet.of(LOW), n=16, key=0, sampler=name, levels=8)
        np.testing.assert_allclose(both.plans.values, alone.plans.values, atol=1e-5)


def test_a_check_is_asked_once_for_a_batch_and_has_no_derivative():
    def violation(constraint, x):
        return ConstraintSet.of(constraint).report(Point(values=x), {}, None).violation["left"]

    x = jnp.array([[0.0, 1.0], [0.5, 1.0], [0.3, 0.0]])
    for check, expected in ((LEFT, [0, 1, 1]), (LEFT_BY, [0, 0.4, 0.2])):
        ASKED.clear()
        found = jax.jit(jax.vmap(violation, in_axes=(None, 0)))(check, x)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        shapes = [(2,)] * 3 if check is LEFT else [(3, 2)]
        assert shapes == ASKED
        np.testing.assert_array_equal(jax.grad(violation, argnums=1)(check, x[1]), [0, 0])
    wrong = from_check(left_by, 0.1, name="left", batched=True, rows=2)
    with pytest.raises(Exception, match=r"check 'left' gave .*expected rows=2"):
        jax.block_until_ready(wrong.residual(Point(values=x[0]), {}, None))


def test_functions_of_the_user_that_go_wrong_are_named():
    plan = Point(values=jnp.zeros(2))

    def residual(function):
        return jax.jit(lambda plan: from_residual(function, name="mine", plan_type=Point).residual(plan, {}, None))(
            plan
        )

    for function, kind in ((lambda p: p.hight, AttributeError), (lambda p: float(p.values[0]), TypeError)):
        with pytest.raises(kind) as said:
            residual(function)
        assert "constraint 'mine', which was given a Point (values) and 0 numbers" in said.value.__notes__[0]
    with pytest.raises(TypeError, match="'mine' gave nothing; a residual is an array of numbers"):
        residual(lambda p: None)
    with pytest.raises(TypeError, match=r"'mine' gave truth values; .*from_check"):
        residual(lambda p: p.values > 0)
    for function, message in (
        (lambda p, aux: 1 / 0, "failed with ZeroDivisionError"),
        (lambda p, aux: "yes", "gave .*'yes'"),
    ):
        with pytest.raises(Exception, match=rf"check 'mine' {message}"):
            jax.block_until_ready(from_check(function, name="mine", plan_type=Point).residual(plan, {}, None))


def test_a_soft_constraint_is_a_cost_of_its_squared_violation():
    half = from_residual(lambda plan, b: plan.values - b, jnp.array([1.0, 3.0]), name="half", plan_type=Point)
    equal = from_residual(lambda plan: plan.values, name="equal", kind="eq", plan_type=Point)
    constraints = ConstraintSet.of(half, equal, LOW)
    soft = constraints.soften("half", "equal", weight=4.0)
    assert soft.names == constraints.names and [c.kind for c in soft] == ["cost", "cost", "ineq"]
    plan = Point(values=jnp.array([2.0, 2.0]))
    np.testing.assert_allclose(soft["half"].residual(plan, {}, None), [2.0, 0.0])
    np.testing.assert_allclose(soft["equal"].residual(plan, {}, None), [4.0, 4.0])
    assert soft.report(plan, {}, None).violation.keys() == {"low"}
    with pytest.raises(ValueError, match="'left' is a check"):
        ConstraintSet.of(LEFT).soften("left", weight=1.0)
    with pytest.raises(KeyError, match="no constraint 'hlaf'"):
        soft.soften("hlaf", weight=1.0)


def test_a_soft_half_space_moves_plans_as_far_as_the_weight_says():
    """The least of 1/2 |x - c|^2 / s^2 + w/2 max(0, x - b)^2 is c - s^2 w (c - b) / (1 + s^2 w) beyond b."""
    sampler, weight = OGD(every=0, terminal=12), 3.0
    free = diffopt.sample(
        POLICY, ConstraintSet.of(LOW).soften("low", weight=1e-9), n=16, key=2, sampler=sampler, levels=8
    )
    paid = diffopt.sample(
        POLICY, ConstraintSet.of(LOW).soften("low", weight=weight), n=16, key=2, sampler=sampler, levels=8
    )
    c, x = np.asarray(free.plans.values), np.asarray(paid.plans.values)
    s2 = float(np.asarray(POLICY.normalizer.scale)[1]) ** 2
    beyond = np.maximum(c[:, 1] - 0.5, 0)
    np.testing.assert_allclose(x[:, 1], c[:, 1] - s2 * weight * beyond / (1 + s2 * weight), atol=2e-3)
    np.testing.assert_allclose(x[:, 0], c[:, 0], atol=2e-3)
    assert beyond.max() > 0.3 and paid.feasible.all()


def test_margins_are_tightened_by_name():
    from diffopt.constraints import JointLimits, SelfCollision
    from diffopt.robots import embodiments

    robot = embodiments.load("panda-allegro")
    constraints = robot.constraints
    tight = constraints.tightened(0.1, names=["joint_limits"])
    soft = constraints.soften("joint_limits", weight=1.0).tightened(0.1, names=["joint_limits"])
    assert soft["joint_limits"].base.margin == tight["joint_limits"].margin
    assert isinstance(tight["joint_limits"], JointLimits) and isinstance(tight["self_collision"], SelfCollision)
    assert (
        tight["joint_limits"].margin == pytest.approx(0.1) and tight["self_collision"] is constraints["self_collision"]
    )
    with pytest.raises(ValueError, match=r"'reach' has no margin to tighten; these have: joint_limits, self_collision"):
        constraints.tightened(0.1, names=["reach"])
    with pytest.raises(KeyError, match="no constraint 'reech'"):
        constraints.tightened(0.1, names=["reech"])
