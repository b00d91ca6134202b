"""Plans that fail by their own account are drawn again, and only those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffopt
from diffopt.attempts import _blocks, limits, pull
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.plans import Point
from diffopt.policies import gaussian_mixture
from diffopt.process import ReverseProcess
from diffopt.samplers import DDIM, OGD

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
    bound, strict = (float(v) for v in limits(POLICY.bound(), LEVELS, 1.0))
    at_mode, between = (float(pull(process, jnp.array(x))) for x in ([1.0, 0.0], [0.4, 0.0]))
    assert at_mode < strict < bound < between
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


def test_settings_of_ogd_take_turns():
    """Draws steered from the middle and draws steered to the end, in turn; a single draw from the first level."""
    (once,), turns = OGD().persistent(POLICY, 1).samplers, OGD().persistent(POLICY, 256)
    patient, stubborn = turns.samplers
    assert once.tighten > patient.tighten > stubborn.tighten > 0
    levels = np.arange(LEVELS, 0, -1)
    first, middle, last = (np.asarray(s.solved(LEVELS)) for s in (once, patient, stubborn))
    assert first[levels > 0.9 * LEVELS].any()
    assert not middle[levels > 0.7 * LEVELS].any() and not middle[-1] and last[-1]
    order = [int(turns.turn(k)) for k in range(32)]
    assert order == [0] * 4 + [1] * 12 + [2] * 4 + [3] * 12
    assert order == turns.turn(np.arange(32)).tolist() == jax.vmap(turns.turn)(jnp.arange(32)).tolist()
    assert [turns.at(k) for k in range(4)] == [patient, stubborn] * 2
    chosen = jax.jit(lambda k: turns.at(turns.turn(k)).window[0])
    assert [float(chosen(k)) for k in (0, 4)] == pytest.approx([patient.window[0], stubborn.window[0]])
    assert OGD().usual_attempts() > 1 == OGD(every=0).usual_attempts() == OGD(hard=False).usual_attempts()


def test_a_plans_attempts_are_taken_in_their_order():
    """Whatever else is drawn, and however the attempts are cut into calls: the first that is accepted is the answer."""
    turns = OGD().persistent(POLICY, 256)
    plans, numbers = np.repeat([3, 5], 12), np.tile(np.arange(10, 22), 2)
    made = []
    for part, number, turn in _blocks(plans, numbers, turns, 5):
        assert len(part) <= 5 and set(turns.turn(number)) == {turn}
        made += zip(part.tolist(), number.tolist(), strict=True)
    for plan in (3, 5):
        assert [number for p, number in made if p == plan] == list(range(10, 22))
