"""Moves leave the constrained posterior as it is, and take plans there from wherever they are."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.evaluation.posteriors import Reference, energy_distance, problem
from diffopt.moves import SHARES
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.samplers import OGD, Snap

N, LEVELS = 384, 32
PROBLEM = problem("union", dim=2, share=0.2, seed=7)


def draw(moves, n=N, sampler="snap", **options):
    return diffopt.sample(
        PROBLEM.policy, PROBLEM.constraints, n=n, key=5, sampler=sampler, levels=LEVELS, moves=moves, **options
    )


def distance(result, reference) -> float:
    plans = np.asarray(result.plans.values)
    return energy_distance(plans[PROBLEM.judge(plans)], reference, resamples=1).estimate


def test_a_biased_sampler_comes_near_to_the_posterior():
    """The snap puts what is infeasible onto the border; after some moves that is forgotten, and nothing feasible was lost."""
    reference = Reference.of(PROBLEM.exact(1, 1024))
    none, some = draw(0), draw(24)
    assert (np.asarray(some.feasible) >= np.asarray(none.feasible)).all()
    far, near = distance(none, reference), distance(some, reference)
    assert far > 0.05 and near < 0.15 * far
    assert 0 < np.asarray(some.stats.moves).mean() < 24 and np.asarray(none.stats.moves).max() == 0


def test_the_posterior_is_left_as_it_is():
    """Exact draws, moved: the first proposals that stay are no further from exact draws than exact draws are."""
    reference = Reference.of(PROBLEM.exact(1, 1024))
    some = draw(6, sampler=diffopt.samplers.load("rejection", draws=64))
    exact = PROBLEM.exact(2, int(np.asarray(some.feasible).sum()))
    floor = np.quantile(
        [energy_distance(PROBLEM.exact(s, len(exact)), reference, resamples=1).estimate for s in range(20)], 0.95
    )
    assert distance(some, reference) < floor + 0.01


def test_costs_are_added_up_and_plans_that_stay_are_the_same():
    none, some = draw(0, n=16), draw(len(SHARES), n=16)
    spent = np.asarray(some.stats.evaluations) - np.asarray(none.stats.evaluations)
    np.testing.assert_array_equal(spent, sum(round(share * LEVELS) for share in SHARES))
    stayed = np.asarray(some.stats.moves) == 0
    assert stayed.any() and not stayed.all()
    np.testing.assert_array_equal(some.plans.values[stayed], none.plans.values[stayed])


def test_inside_jit_it_is_the_same():
    policy = gaussian_mixture(jnp.zeros((1, 2)), 0.5)
    wall = ConstraintSet.of(
        from_residual(lambda plan, x: plan.values[:1] - x, jnp.asarray(0.3), name="wall", plan_type=Point)
    )

    def some(key):
        return diffopt.sample(policy, wall, n=32, key=key, sampler=Snap(), moves=6)

    inside, outside = jax.jit(some)(jax.random.key(2)), some(jax.random.key(2))
    np.testing.assert_array_equal(inside.stats.moves, outside.stats.moves)
    np.testing.assert_allclose(inside.plans.values, outside.plans.values, atol=1e-5)
    assert np.asarray(outside.stats.moves).max() > 1


def test_after_attempts_no_further_program_is_compiled():
    """The proposals of one plan are drawn by the program of its attempts."""
    from diffopt.sample import _sample

    given = dict(key=0, sampler=OGD(plain=0))
    once = diffopt.sample(PROBLEM.policy, PROBLEM.constraints, **given)
    before = _sample.count()
    more = diffopt.sample(PROBLEM.policy, PROBLEM.constraints, **given, moves=4)
    assert _sample.count() == before and int(more.stats.evaluations[0]) > int(once.stats.evaluations[0])


def test_without_constraints_there_is_nothing_to_keep_to():
    policy = gaussian_mixture(jnp.zeros((1, 2)), 0.1)
    few, many = (diffopt.sample(policy, ConstraintSet(), n=3, key=0, moves=moves) for moves in (0, 5))
    np.testing.assert_array_equal(few.plans.values, many.plans.values)


def test_less_than_no_move_is_refused():
    with pytest.raises(ValueError, match="moves=-1"):
        draw(-1, n=1)


def far(plan, x):
    return 2.0 * (plan.values[:1] - x)


def test_soft_constraints_are_paid_for():
    """A normal prior N(0, 1) and 1/2 (2 (x - 1))^2: the posterior is N(0.8, 1/5), whatever the sampler found."""
    policy = gaussian_mixture(jnp.zeros((1, 2)), 1.0)
    cost = ConstraintSet.of(from_residual(far, jnp.asarray(1.0), name="near_one", kind="cost", plan_type=Point))
    result = diffopt.sample(policy, cost, n=2048, key=0, sampler="ddim", levels=LEVELS, moves=24)
    x, turns = np.asarray(result.plans.values), 24 // len(SHARES)
    np.testing.assert_array_equal(
        result.stats.evaluations, LEVELS + turns * sum(round(share * LEVELS) for share in SHARES)
    )
    np.testing.assert_allclose(x.mean(axis=0), [0.8, 0.0], atol=0.1)
    np.testing.assert_allclose(x.var(axis=0), [0.2, 1.0], rtol=0.15)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NearSlack:
    """A cost with an unknown of its own."""

    name = "near_slack"
    kind = "cost"
    plan_type = Point
    tolerance = 1.0

    def auxiliary(self, plan, context):
        return {"slack": jnp.zeros((1, 1))}

    def residual(self, plan, aux, context):
        return plan.values[:1] - aux["slack"]


def test_unknowns_that_only_soft_constraints_have_are_refused():
    policy = gaussian_mixture(jnp.zeros((1, 2)), 1.0)
    with pytest.raises(ValueError, match=r"soft constraints alone \(near_slack\) ask for slack"):
        diffopt.sample(policy, ConstraintSet.of(NearSlack()), sampler="snap", moves=1)
