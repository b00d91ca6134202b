"""Solvers against independent oracles (cvxpy for convex problems, SciPy for others) and against laws that hold for any of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from diffopt.solvers import AugmentedLagrangian, GaussNewton, Problem, Status
from diffopt.solvers.cvxpy_reference import solve_by_cvxpy

HARD = AugmentedLagrangian()
SOFT = GaussNewton()


def run(solver, problem, z, args=None, warm=None):
    """One solve, compiled."""
    return jax.jit(solver.__call__, static_argnums=0)(problem, z, args, warm)


@functools.cache
def compiled(solver_name, problem, batched=False):
    solver = {"hard": HARD, "soft": SOFT}[solver_name]
    function = functools.partial(solver, problem)
    return jax.jit(jax.vmap(function) if batched else function)


# --- convex problems: the oracle is cvxpy -----------------------------------------------------------------------------------------


def _affine(name):
    return lambda z, args: args[name][0] @ z - args[name][1]


def _box(args):
    return args["lower"], args["upper"]


def _halfspaces_and_ball(z, args):
    normals, offsets = args["ineq"]
    center, radius = args["ball"]
    return jnp.append(normals @ z - offsets, jnp.sum((z - center) ** 2) - radius**2)


CONVEX = {
    "equalities": Problem(cost=_affine("cost"), eq=_affine("eq")),
    "halfspaces": Problem(cost=_affine("cost"), ineq=_affine("ineq")),
    "box": Problem(cost=_affine("cost"), bounds=_box),
    "ball and halfspaces": Problem(cost=_affine("cost"), ineq=_halfspaces_and_ball),
    "everything": Problem(cost=_affine("cost"), eq=_affine("eq"), ineq=_halfspaces_and_ball, bounds=_box),
}


def convex_args(seed, n=5):
    """Numbers of a strictly convex problem with a known feasible point inside."""
    rng = np.random.default_rng(seed)
    inside = rng.uniform(-0.5, 0.5, n)
    normals, equalities = rng.normal(size=(6, n)), rng.normal(size=(2, n))
    numbers = {
        "cost": (np.eye(n) + 0.3 * rng.normal(size=(n, n)), 2 * rng.normal(size=n)),
        "eq": (equalities, equalities @ inside),
        "ineq": (normals, normals @ inside + rng.uniform(0.05, 0.6, 6)),
        "ball": (inside + 0.1 * rng.normal(size=n), np.asarray(0.9)),
        "lower": inside - rng.uniform(0.1, 0.8, n),
        "upper": inside + rng.uniform(0.1, 0.8, n),
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), numbers)


@pytest.mark.parametrize("name", CONVEX)
def test_convex_problems_agree_with_cvxpy(name):
    problem, seeds = CONVEX[name], range(40)
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(convex_args, seeds))
    result = compiled("hard", problem, batched=True)(jnp.zeros((len(seeds), 5)), args)
    assert (result.status == Status.converged).all(), np.asarray(result.status)
    for seed in seeds:
        expected = solve_by_cvxpy(problem, jnp.zeros(5), convex_args(seed))
        np.testing.assert_allclose(result.z[seed], expected.z, atol=1e-4)
        np.testing.assert_allclose(result.cost[seed], expected.cost, rtol=1e-4, atol=1e-4)


def test_multipliers_agree_with_cvxpy():
    problem, args = CONVEX["everything"], convex_args(3)
    problem = Problem(cost=problem.cost, eq=problem.eq, ineq=problem.ineq)
    warm, expected = run(HARD, problem, jnp.zeros(5), args).warm, solve_by_cvxpy(problem, jnp.zeros(5), args).warm
    np.testing.assert_allclose(warm.eq_multiplier, expected.eq_multiplier, atol=2e-3)
    np.testing.assert_allclose(warm.ineq_multiplier, expected.ineq_multiplier, atol=2e-3)


def test_the_oracle_refuses_what_it_cannot_be_told():
    with pytest.raises(ValueError, match="affine and quadratic"):
        solve_by_cvxpy(Problem(cost=lambda z, _: jnp.sin(z)), jnp.zeros(2))
    with pytest.raises(ValueError, match="not affine"):
        solve_by_cvxpy(Problem(cost=lambda z, _: z, eq=lambda z, _: z @ z - 1), jnp.zeros(2))
    with pytest.raises(ValueError, match="not convex"):
        solve_by_cvxpy(Problem(cost=lambda z, _: z, ineq=lambda z, _: 1 - z @ z), jnp.zeros(2))


# --- problems that are not convex: the oracle is SciPy's local optimum from the same start -------------------------------------------


def _rosenbrock(z, args):
    return jnp.array([10 * (z[1] - z[0] ** 2), 1 - z[0]])


def _arm_tip(z):
    """Tip of a planar arm of three links of length 1, 0.8 and 0.5."""
    angles = jnp.cumsum(z)
    lengths = jnp.array([1.0, 0.8, 0.5])
    return jnp.array([lengths @ jnp.cos(angles), lengths @ jnp.sin(angles)])


LOCAL = {
    "rosenbrock in a disc": (Problem(cost=_rosenbrock, ineq=lambda z, _: z @ z - 1), [-0.5, 0.5]),
    "rosenbrock on a line": (Problem(cost=_rosenbrock, eq=lambda z, _: z[0] + z[1] - 1), [0.2, 0.9]),
    "around an obstacle": (
        Problem(cost=lambda z, _: z - jnp.array([0.3, 0.1]), ineq=lambda z, _: 1 - z @ z),
        [0.5, 0.9],
    ),
    "on a circle": (Problem(cost=lambda z, _: z - jnp.array([2.0, 1.0]), eq=lambda z, _: z @ z - 1), [0.0, 1.0]),
    "arm with limits": (
        Problem(
            cost=lambda z, _: 0.3 * (z - jnp.array([0.5, 0.5, 0.5])),
            eq=lambda z, _: _arm_tip(z) - jnp.array([1.2, 0.9]),
            bounds=lambda _: (-jnp.ones(3), jnp.array([2.0, 0.8, 2.0])),
        ),
        [0.1, 0.4, 0.3],
    ),
    "arm beside a post": (
        Problem(
            cost=lambda z, _: 0.3 * z,
            eq=lambda z, _: _arm_tip(z) - jnp.array([1.2, 0.9]),
            ineq=lambda z, _: 0.7 - jnp.linalg.norm(jnp.array([jnp.cos(z[0]), jnp.sin(z[0])]) - jnp.array([0.9, -0.2])),
        ),
        [0.5, -0.2, 2.0],
    ),
}


def by_scipy(problem, z):
    """A local optimum in double precision."""
    with jax.enable_x64(True):

        def part(name):
            return jax.jit(lambda z: getattr(problem.terms(z, None), name))

        constraints = []
        for kind, name, sign in (("eq", "eq", 1), ("ineq", "ineq", -1)):
            if getattr(problem, name) is not None:
                f, j = part(name), jax.jit(jax.jacfwd(part(name)))
                constraints.append(
                    {
                        "type": kind,
                        "fun": lambda z, f=f, s=sign: s * np.asarray(f(z)),
                        "jac": lambda z, j=j, s=sign: s * np.asarray(j(z)),
                    }
                )
        cost = jax.jit(lambda z: 0.5 * jnp.sum(problem.terms(z, None).cost ** 2))
        bounds = None if problem.bounds is None else list(zip(*map(np.asarray, problem.bounds(None)), strict=True))
        found = scipy.optimize.minimize(
            lambda z: float(cost(z)),
            np.asarray(z, np.float64),
            jac=lambda z: np.asarray(jax.grad(cost)(z)),
            bounds=bounds,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )
    assert found.success or "Positive directional derivative" in found.message, (
        found.message
    )  # the latter: at the limit of precision
    return found.x


@pytest.mark.parametrize("name", LOCAL)
def test_local_optima_agree_with_scipy(name):
    problem, start = LOCAL[name]
    result = compiled("hard", problem)(jnp.array(start))
    np.testing.assert_allclose(result.z, by_scipy(problem, start), atol=1e-4)
    assert result.status == Status.converged
    assert max(float(result.eq_violation), float(result.ineq_violation)) <= 1e-5


def test_rosenbrock_without_constraints():
    result = run(GaussNewton(iterations=40), Problem(cost=_rosenbrock), jnp.array([-1.2, 1.0]))
    np.testing.assert_allclose(result.z, [1, 1], atol=1e-4)
    assert result.status == Status.converged


# --- laws ----------------------------------------------------------------------------------------------------------------------------

SOLVERS = {"hard": HARD, "soft": SOFT}
EVERYTHING = CONVEX["everything"]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solution_solved_again_stays(name):
    solve, args = compiled(name, EVERYTHING), convex_args(0)
    first = solve(jnp.zeros(5), args)
    again = jax.jit(functools.partial(SOLVERS[name], EVERYTHING))(first.z, args, first.warm)
    np.testing.assert_allclose(again.z, first.z, atol=2e-5)
    assert again.status == Status.converged
    assert again.iterations <= 2


@pytest.mark.parametrize("name", SOLVERS)
def test_a_feasible_optimum_is_left_alone(name):
    """Where the start is feasible and nothing is paid there, nothing moves."""
    problem = Problem(
        cost=lambda z, a: z - a, ineq=lambda z, _: z @ z - 4.0, bounds=lambda _: (-jnp.ones(3), jnp.ones(3))
    )
    z = jnp.array([0.3, -0.2, 1.0])
    result = compiled(name, problem)(z, z)
    assert (result.z == z).all()
    assert result.status == Status.converged


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_its_members(name):
    args = [convex_args(seed) for seed in range(4)]
    batch = compiled(name, EVERYTHING, batched=True)(
        jnp.zeros((4, 5)), jax.tree.map(lambda *leaves: jnp.stack(leaves), *args)
    )
    for i in range(4):
        one = compiled(name, EVERYTHING)(jnp.zeros(5), args[i])
        np.testing.assert_allclose(batch.z[i], one.z, atol=2e-5)
        assert batch.status[i] == one.status


@pytest.mark.parametrize("name", SOLVERS)
def test_compiled_is_eager(name):
    problem, start = LOCAL["arm with limits"]
    small = {"hard": AugmentedLagrangian(outer=2, passes=2), "soft": GaussNewton(iterations=2)}[name]
    with jax.disable_jit():
        eager = small(problem, jnp.array(start))
    np.testing.assert_allclose(run(small, problem, jnp.array(start)).z, eager.z, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("where", ["cost", "eq", "ineq", "lower"])
def test_a_nan_is_told_and_stays_in_its_lane(name, where):
    sick = convex_args(0)
    sick[where] = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), sick[where])
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), sick, convex_args(1))
    result = compiled(name, EVERYTHING, batched=True)(jnp.zeros((2, 5)), both)
    well = compiled(name, EVERYTHING)(jnp.zeros(5), convex_args(1))
    assert result.status[0] == Status.nonfinite
    assert result.status[1] == Status.converged
    np.testing.assert_allclose(result.z[1], well.z, atol=2e-5)
    figures = result.cost, result.eq_violation, result.ineq_violation
    if where != "lower":
        assert not all(jnp.isfinite(figure[0]) for figure in figures), "the figures hide the NaN"


INFEASIBLE = {
    "two halfspaces": (Problem(cost=lambda z, _: z, ineq=lambda z, _: jnp.array([z[0] + 1, 1 - z[0]])), [0.4, 0.2]),
    "bounds against an equality": (
        Problem(cost=lambda z, _: z, eq=lambda z, _: z[0] + z[1] - 3, bounds=lambda _: (-jnp.ones(2), jnp.ones(2))),
        [0.4, 0.2],
    ),
    "out of reach": (
        Problem(cost=lambda z, _: 0.1 * z, eq=lambda z, _: _arm_tip(z) - jnp.array([3.0, 0.5])),
        [0.1, 0.4, 0.3],
    ),
}


@pytest.mark.parametrize("name", INFEASIBLE)
def test_what_has_no_solution_is_told(name):
    problem, start = INFEASIBLE[name]
    result = compiled("hard", problem)(jnp.array(start))
    assert result.status == Status.infeasible
    assert max(float(result.eq_violation), float(result.ineq_violation)) > 0.5


def test_out_of_reach_ends_as_near_as_the_arm_can():
    problem, start = INFEASIBLE["out of reach"]
    result = compiled("hard", problem)(jnp.array(start))
    np.testing.assert_allclose(
        jnp.linalg.norm(_arm_tip(result.z) - jnp.array([3.0, 0.5])), np.hypot(3, 0.5) - 2.3, atol=1e-3
    )


def test_too_few_iterations_are_told():
    problem, start = LOCAL["arm with limits"]
    assert run(AugmentedLagrangian(outer=1, inner=1), problem, jnp.array(start)).status == Status.iteration_limit
    assert (
        run(GaussNewton(iterations=2), Problem(cost=_rosenbrock), jnp.array([-1.2, 1.0])).status
        == Status.iteration_limit
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_a_warm_start_takes_fewer_iterations(name):
    solver = SOLVERS[name]
    cold_steps, warm_steps = 0, 0
    for seed in range(10):
        args = convex_args(seed)
        near = args | {"cost": (args["cost"][0], args["cost"][1] + 0.01)}
        first = compiled(name, EVERYTHING)(jnp.zeros(5), args)
        cold_steps += int(compiled(name, EVERYTHING)(jnp.zeros(5), near).iterations)
        warm_steps += int(run(solver, EVERYTHING, first.z, near, first.warm).iterations)
    assert warm_steps < 0.7 * cold_steps


def test_bounds_are_never_left():
    for seed in range(20):
        args = convex_args(seed)
        z = compiled("hard", EVERYTHING)(3 * jnp.ones(5), args).z
        assert ((z >= args["lower"]) & (z <= args["upper"])).all()


def test_unknowns_may_be_any_pytree():
    problem = Problem(
        cost=lambda z, _: z["a"] - 2,
        eq=lambda z, _: z["b"] - jnp.outer(z["a"], z["a"]),
        bounds=lambda _: ({"a": -1.0, "b": -9.0}, {"a": 1.5, "b": 9.0}),
    )
    result = run(HARD, problem, {"a": jnp.zeros(2), "b": jnp.zeros((2, 2))})
    np.testing.assert_allclose(result.z["a"], [1.5, 1.5], atol=1e-5)
    np.testing.assert_allclose(result.z["b"], np.full((2, 2), 2.25), atol=1e-4)


def test_a_given_linearization_is_used():
    plain, start = LOCAL["arm with limits"]
    calls = []

    def linearize(z, args):
        calls.append(1)
        return plain.terms(z, args), jax.jacrev(plain.terms)(z, args)

    given = Problem(cost=plain.cost, eq=plain.eq, bounds=plain.bounds, linearize=linearize)
    np.testing.assert_allclose(run(HARD, given, jnp.array(start)).z, run(HARD, plain, jnp.array(start)).z, atol=1e-5)
    assert calls


# --- the derivative of a solution ------------------------------------------------------------------------------------------------------


def _soft_arm(args):
    """Joint angles of the arm near a target, held off a wall and inside limits, in the least-squares relaxation."""
    problem = Problem(
        cost=lambda z, a: 0.3 * (z - a["rest"]),
        eq=lambda z, a: _arm_tip(z) - a["target"],
        ineq=lambda z, a: _arm_tip(jnp.array([z[0], z[1], 0.0])) - a["wall"],
        bounds=lambda a: (-2 * jnp.ones(3), a["upper"]),
    )
    return GaussNewton(iterations=40, eq_weight=10.0, ineq_weight=20.0, tolerance=1e-7)(
        problem, jnp.array([0.1, 0.4, 0.3]), args
    )


ARM_ARGS = {
    "rest": jnp.array([0.5, 0.5, 0.5]),
    "target": jnp.array([1.2, 0.9]),
    "wall": jnp.array([1.3, 0.8]),
    "upper": jnp.array([2.0, 0.8, 1.0]),
}


def test_the_gradient_through_a_solve_is_the_finite_difference():
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), ARM_ARGS)
        value = jax.jit(lambda a: _soft_arm(a).z @ jnp.array([1.0, -2.0, 0.5]))
        forward, backward = jax.jit(jax.jacfwd(value))(args), jax.jit(jax.grad(value))(args)
        for name, leaf in args.items():
            for i in range(leaf.size):
                step = 1e-5
                shifted = [value(args | {name: leaf.at[i].add(s)}) for s in (step, -step)]
                expected = (shifted[0] - shifted[1]) / (2 * step)
                np.testing.assert_allclose(backward[name][i], expected, atol=2e-4, err_msg=f"{name}[{i}]")
                np.testing.assert_allclose(forward[name][i], expected, atol=2e-4, err_msg=f"{name}[{i}]")


def test_the_gradient_survives_vmap_and_float32():
    gradient = jax.jit(jax.vmap(jax.grad(lambda t: _soft_arm(ARM_ARGS | {"target": t}).z[0])))(
        jnp.array([[1.2, 0.9], [1.1, 1.0]])
    )
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), ARM_ARGS)
        expected = jax.grad(lambda t: _soft_arm(args | {"target": t}).z[0])(jnp.array([1.2, 0.9]))
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-3, atol=1e-3)


# --- errors in words -------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match=r"unknown z\['k'\] is int32"):
        HARD(Problem(cost=lambda z, _: z["k"]), {"k": jnp.array(1)})
    with pytest.raises(ValueError, match="nothing to solve"):
        HARD(Problem(), jnp.zeros(2))
    with pytest.raises(ValueError, match="the lower bound has structure"):
        HARD(Problem(cost=lambda z, _: z, bounds=lambda _: ((1.0, 2.0), 3.0)), jnp.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        GaussNewton(iterations=0)
