"""Plans that fail by their own account are drawn again, and only those."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.attempts import INFEASIBLE, TURNS, Attempt, limit, persist, pull, resumes
from diffopt.constraints import ConstraintSet, fit, from_residual
from diffopt.evaluation.path_problems import path_prior, path_problem
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.samplers import DDIM, OGD
from diffopt.samplers.base import Start
from diffopt.solution import Solution, Stats

N, LEVELS, MOST = 24, 12, 6
MODES = np.array([[-1.0, 0.0], [1.0, 0.0]])
POLICY = gaussian_mixture(MODES, 0.1)


def right(plan, x):
    return x - plan.values[:1]


def wall(x: float) -> ConstraintSet:
    """At least x to the right."""
    return ConstraintSet.of(from_residual(right, jnp.asarray(x), name="wall", plan_type=Point))


def draw(sampler, x=0.0, n=N, **options):
    return diffopt.sample(POLICY, wall(x), n=n, key=3, sampler=sampler, levels=LEVELS, **options)


def values(result) -> np.ndarray:
    return np.asarray(result.plans.values)


def test_only_what_failed_is_drawn_again():
    """Half of the plain plans are on the wrong side: the others stay as they were, and nearly all are right in the end."""
    once, more = draw(DDIM()), draw(DDIM(), attempts=MOST)
    first, last = np.asarray(once.feasible), np.asarray(more.feasible)
    kept = np.asarray(more.stats.attempts) == 1
    np.testing.assert_array_equal(values(more)[kept], values(once)[kept])
    assert first[kept].all() and (values(more)[:, 0] >= -1e-3)[last].all()
    assert first.sum() < 0.8 * N and last.sum() >= N - 2
    drawn = np.asarray(more.stats.attempts)
    assert drawn.min() == 1 and 1 < drawn.max() <= MOST
    np.testing.assert_array_equal(more.stats.evaluations, drawn * (LEVELS + 1))
    assert (np.asarray(more.stats.acceptance)[last] >= 1 / drawn[last] - 1e-6).all()


def test_inside_jit_it_is_the_same():
    inside = jax.jit(lambda x: draw(DDIM(), x, attempts=MOST))(0.0)
    outside = draw(DDIM(), attempts=MOST)
    accepted = np.asarray(outside.feasible)
    np.testing.assert_array_equal(inside.feasible, outside.feasible)
    np.testing.assert_allclose(values(inside)[accepted], values(outside)[accepted], atol=1e-5)


def test_a_plan_that_the_policy_would_move_is_drawn_again():
    """A sampler that snaps to the border of the wall finds what is feasible, far from both modes: the limit tells."""
    process = ReverseProcess.of(POLICY.bound(), count=LEVELS)
    bound = float(limit(POLICY.bound(), LEVELS, 1.0))
    at_mode, between = (float(pull(process, jnp.array(x))) for x in ([1.0, 0.0], [0.4, 0.0]))
    assert at_mode < bound < between
    once, more = draw("snap", 0.4), draw("snap", 0.4, attempts=MOST)
    assert np.asarray(once.feasible).all() and np.asarray(more.feasible).all()

    def off(result) -> float:
        return np.mean(np.abs(values(result)[:, 0] - 1) > 0.45)

    assert off(once) > 0.25 and off(more) < 0.5 * off(once)


@pytest.mark.slow
def test_ogd_asks_for_attempts_itself_and_a_gradient_goes_through_them():
    sampler = OGD(hard=False, attempts=3)
    asked = draw(sampler, 1.1, n=4)
    assert int(asked.stats.attempts.max()) <= 3
    assert int(draw(sampler, 1.1, n=4, attempts=1).stats.attempts.max()) == 1
    slope = jax.grad(lambda x: draw(OGD(hard=False), x, n=4, attempts=2).plans.values.mean())(1.1)
    assert np.isfinite(slope)


def test_no_attempt_at_all_is_refused():
    with pytest.raises(ValueError, match="attempts=0"):
        draw(DDIM(), attempts=0)


def test_ogd_draws_with_more_care_what_it_may_draw_again():
    """Every level but the noisiest ones, to the end, with smaller margins; a single draw is steered from the first level."""
    care = OGD().persistent(POLICY)
    levels = np.arange(LEVELS, 0, -1)
    once, often = (np.asarray(s.solved(LEVELS)) for s in (OGD(), care))
    assert once[levels > 0.9 * LEVELS].any() and not often[levels > 0.8 * LEVELS].any()
    assert often[levels <= 0.8 * LEVELS].all() and care.tighten < 0.1
    assert OGD(tighten=0.01).persistent(POLICY).tighten < 0.01
    assert OGD(every=0).persistent(POLICY) == OGD(every=0)
    assert OGD().usual_attempts() > 1 == OGD(every=0).usual_attempts() == OGD(hard=False).usual_attempts()


def test_what_the_policy_has_right_by_itself_is_left_as_it_is():
    """Before anything is steered come draws of the policy's own; on the right side of the wall they stay, however unusual."""
    often = draw(OGD(plain=3, attempts=MOST), attempts=MOST)
    drawn, moved = (np.asarray(x) for x in (often.stats.attempts, often.stats.terminal_move))
    assert np.asarray(often.feasible).all() and (moved[drawn <= 3] == 0).all() and (drawn <= 3).sum() > 0.7 * N
    assert 1 < drawn.max() <= 3 + MOST
    inside = jax.jit(lambda x: draw(OGD(plain=3), x, attempts=MOST))(0.0)
    np.testing.assert_allclose(values(inside), values(often), atol=1e-4)
    for few in (OGD(plain=0), OGD(particles=2), OGD(anchor="zero")):
        assert few.plainly(POLICY, wall(0.0))[1] == 0 < OGD().plainly(POLICY, wall(0.0))[1]
    soft = ConstraintSet.of(from_residual(right, jnp.zeros(()), name="wall", kind="cost", plan_type=Point))
    assert OGD(plain=5).plainly(POLICY, soft)[1] == 0
    with pytest.raises(ValueError, match="plain=-1"):
        OGD(plain=-1)


def test_plans_that_the_policy_has_right_are_spread_as_its_own():
    """A wall through the left mode: three in four plans are feasible, one in three of them on the left, most of those pulled hard."""
    often = values(draw(OGD(plain=8), -1.0, n=400, attempts=2))[:, 0]
    assert often.min() >= -1 - 1e-3 and abs(np.mean(often < 0) - 1 / 3) < 0.08


def attempt(values, merit) -> Attempt:
    """One whose plans are numbers."""
    n = len(values)
    zero, one = np.zeros(n), np.ones(n, int)
    stats = Stats(
        evaluations=one,
        iterations=one,
        control_energy=zero,
        terminal_move=zero,
        acceptance=zero,
        attempts=one,
        moves=one,
    )
    solution = Solution(plans=values, aux={}, violation={}, where={}, status=zero, stats=stats, warm=None, labels={})
    return Attempt(solution=solution, merit=merit)


@pytest.mark.parametrize("block", [3, 5, 64])
def test_a_plans_attempts_are_taken_in_their_order(block):
    """Whatever else is drawn, and however the attempts are cut into calls: the first that is accepted is the answer."""
    accepted = np.array([[9, 12, 13], [4, 5, 21]])  # at which attempts, of each plan

    def draw(plans, numbers, x, goes_on, alone=False) -> Attempt:
        assert {bool(resumes(number)) for number in numbers} == {goes_on}
        good = (accepted[plans] == numbers[:, None]).any(axis=1)
        return attempt(values=numbers.astype(float), merit=np.where(good, 0.0, 1.0))

    best = persist(
        draw(np.arange(2), np.zeros(2, int), None, False), draw, lambda plans: plans[:, None], 32, block=block
    )
    assert best.solution.plans.tolist() == [9.0, 4.0] and best.accepted.all()


def test_attempts_that_go_on_begin_at_the_best_plan_of_the_turns_before():
    """Attempts are numbered from 0; some begin with noise, some go on, and again."""
    begun = []

    def draw(plans, numbers, x, goes_on, alone=False) -> Attempt:
        assert goes_on == resumes(numbers[0])
        begun.extend(zip(numbers.tolist(), x[:, 0].tolist(), strict=True))
        return attempt(values=-numbers.astype(float), merit=2.0 - numbers / 100)

    noise, turn = TURNS[0], sum(TURNS)
    persist(attempt(values=np.zeros(1), merit=np.full(1, 3.0)), draw, lambda plans: plans[:, None], turn + 4, block=1)
    assert [number for number, _ in begun] == list(range(1, turn + 4))
    assert all(x == 1 - noise for number, x in begun if noise <= number < turn) and begun[-1] == (turn + 3, 1 - turn)
    ends = [bool(resumes(k)) for k in (0, noise - 1, noise, turn - 1, turn, turn + noise - 1, turn + noise)]
    assert ends == [False, False, True, True, False, False, True]


def test_a_draw_that_goes_on_stays_near_to_where_it_began():
    process = ReverseProcess.of(POLICY.bound(), count=LEVELS)

    def ends(level: int, x: float) -> np.ndarray:
        def one(key):
            begun = Start(x=jnp.array([x, 0.0]), level=jnp.asarray(level))
            return OGD()(process, fit(wall(-9.0), POLICY.spec), key, None, begun).x

        return np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(0), 64)))[:, 0]

    assert (ends(LEVELS // 4, 1.0) > 0).all() and (ends(LEVELS // 4, -1.0) < 0).all()
    assert (ends(LEVELS, 1.0) == ends(LEVELS, -1.0)).all() and 0.2 < np.mean(ends(LEVELS, 1.0) > 0) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("x", [0.0, 1.3])
def test_attempts_that_go_on_are_the_same_inside_jit(x):
    """The second wall is so far out that nothing is accepted: all attempts are made."""
    asked = TURNS[0] + 6
    inside = jax.jit(lambda x: draw(OGD(plain=2), x, n=6, attempts=asked))(x)
    outside = draw(OGD(plain=2), x, n=6, attempts=asked)
    np.testing.assert_allclose(values(inside), values(outside), atol=1e-5)
    np.testing.assert_array_equal(inside.status, outside.status)
    assert (np.asarray(outside.stats.attempts).max() == 2 + asked) == (x > 1)


def test_attempts_go_on_from_feasible_plans_only():
    """Of two plans, one of which has found nothing feasible: each has its draws with its own kind of beginning."""
    asked = []

    def draw(plans, numbers, x, goes_on, alone=False) -> Attempt:
        asked.extend((int(plan), int(number), goes_on) for plan, number in zip(plans, numbers, strict=True))
        return attempt(values=numbers.astype(float), merit=np.where(plans == 0, 2.0, 2 * INFEASIBLE))

    first, most = attempt(values=np.zeros(2), merit=np.array([3.0, 3 * INFEASIBLE])), sum(TURNS) + 4
    persist(first, draw, lambda plans: plans[:, None], most, block=2, hopeless=most)
    for plan in (0, 1):
        own = dict(sorted((number, goes_on) for p, number, goes_on in asked if p == plan))
        assert own == {number: plan == 0 and TURNS[0] <= number < sum(TURNS) for number in range(1, most)}


@pytest.mark.slow
def test_the_noisiest_levels_look_for_another_route():
    """On paths among discs, where the nearest feasible path is hardly ever another route, more of single draws are right."""
    policy = path_prior("avoiding", each=2)
    draws = np.asarray(policy.denoiser.sample(jax.random.key(0), 1024))
    constraints = path_problem("avoiding", draws, (0.005, 0.03), number=1).constraints
    care = OGD().persistent(policy)
    assert care.guided == 0 and OGD(guided=0.5).persistent(POLICY).guided == 0.5
    few, more = (
        np.asarray(diffopt.sample(policy, constraints, n=128, key=1, sampler=sampler).feasible).sum()
        for sampler in (care, replace(care, guided=0.5))
    )
    assert more > few + 10
    with pytest.raises(ValueError, match="guided=2"):
        OGD(guided=2.0)
