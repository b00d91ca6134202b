"""Solvers against independent oracles (cvxpy for convex problems, SciPy for others) and against laws that hold for any of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from diffopt.solvers import AugmentedLagrangian, Dense, GaussNewton, Problem, RealTimeIteration, Status
from diffopt.solvers.cvxpy_reference import solve_by_cvxpy

SOLVERS = {"hard": AugmentedLagrangian(), "soft": GaussNewton()}
QUICKLY = {"xla_backend_optimization_level": 0}  # compiles in half the time, and these programs are small


@functools.cache
def compiled(solver, problem):
    """The batched solver; one program serves every test that solves this problem with so many lanes."""
    return jax.jit(jax.vmap(functools.partial(solver, problem)), compiler_options=QUICKLY)


def solve(name, problem, z, args=None, warm=None):
    """Solves a batch: z and the leaves of args have a leading axis."""
    if warm is None:
        warm = jax.vmap(functools.partial(SOLVERS[name].cold, problem))(z, args)
    return compiled(SOLVERS[name], problem)(z, args, warm)


def solve_one(name, problem, z, args=None):
    """Solves one problem."""
    z, args = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], (z, args))
    return jax.tree.map(lambda leaf: leaf[0], solve(name, problem, z, args))


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


LANES = 40
START = jnp.zeros((LANES, 5))
MANY = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(convex_args, range(LANES)))
EVERYTHING = CONVEX["everything"]


@pytest.mark.parametrize("name", CONVEX)
def test_convex_problems_agree_with_cvxpy(name):
    problem = CONVEX[name]
    result = solve("hard", problem, START, MANY)
    assert (result.status == Status.converged).all(), np.asarray(result.status)
    assert ((result.z >= MANY["lower"]) & (result.z <= MANY["upper"])).all() or problem.bounds is None
    for seed in range(LANES):
        expected = solve_by_cvxpy(problem, jnp.zeros(5), convex_args(seed))
        np.testing.assert_allclose(result.z[seed], expected.z, atol=1e-4)
        np.testing.assert_allclose(result.cost[seed], expected.cost, rtol=1e-4, atol=1e-4)


def test_multipliers_agree_with_cvxpy():
    problem = CONVEX["ball and halfspaces"]
    multipliers = solve("hard", problem, START, MANY).warm.ineq_multiplier
    for seed in range(LANES):
        expected = solve_by_cvxpy(problem, jnp.zeros(5), convex_args(seed)).warm
        np.testing.assert_allclose(multipliers[seed], expected.ineq_multiplier, rtol=3e-3, atol=3e-3)


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
    result = solve_one("hard", problem, jnp.array(start))
    np.testing.assert_allclose(result.z, by_scipy(problem, start), atol=1e-4)
    assert result.status == Status.converged
    assert max(float(result.eq_violation), float(result.ineq_violation)) <= 1e-5


def test_rosenbrock_without_constraints():
    result = jax.jit(
        functools.partial(GaussNewton(iterations=40), Problem(cost=_rosenbrock)), compiler_options=QUICKLY
    )(jnp.array([-1.2, 1.0]))
    np.testing.assert_allclose(result.z, [1, 1], atol=1e-4)
    assert result.status == Status.converged


# --- laws ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solution_solved_again_stays(name):
    first = solve(name, EVERYTHING, START, MANY)
    again = solve(name, EVERYTHING, first.z, MANY, first.warm)
    well = np.asarray(first.status == Status.converged)
    assert well.mean() > 0.9
    np.testing.assert_allclose(again.z[well], first.z[well], atol=1e-4)
    assert (again.status[well] == Status.converged).all()
    assert np.median(again.iterations[well]) <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_feasible_optimum_is_left_alone(name):
    """Where the start is feasible and nothing is paid there, nothing moves."""
    z = MANY["ball"][0]
    args = MANY | {"cost": (MANY["cost"][0], jnp.einsum("kij,kj->ki", MANY["cost"][0], z))}
    args |= {"eq": (args["eq"][0], jnp.einsum("kij,kj->ki", args["eq"][0], z)), "lower": z - 1, "upper": z + 1}
    args |= {"ineq": (args["ineq"][0], 1 + jnp.einsum("kij,kj->ki", args["ineq"][0], z))}
    result = solve(name, EVERYTHING, z, args)
    np.testing.assert_allclose(result.z, z, atol=1e-6)
    assert (result.status == Status.converged).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_its_members(name):
    batch = solve(name, EVERYTHING, START, MANY)
    for i in range(3):
        one = solve_one(name, EVERYTHING, START[i], convex_args(i))
        np.testing.assert_allclose(batch.z[i], one.z, atol=2e-5)
        assert batch.status[i] == one.status


@pytest.mark.parametrize("name", SOLVERS)
def test_compiled_is_eager(name):
    eager = SOLVERS[name](EVERYTHING, START[0], convex_args(0))
    np.testing.assert_allclose(solve_one(name, EVERYTHING, START[0], convex_args(0)).z, eager.z, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("where", ["cost", "eq", "ineq", "lower"])
def test_a_nan_is_told_and_stays_in_its_lane(name, where):
    sick = dict(MANY)
    sick[where] = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), sick[where])
    result, well = solve(name, EVERYTHING, START, sick), solve(name, EVERYTHING, START, MANY)
    assert result.status[0] == Status.nonfinite
    assert (result.status[1:] == well.status[1:]).all()
    np.testing.assert_array_equal(result.z[1:], well.z[1:])
    figures = jnp.stack([result.cost, result.eq_violation, result.ineq_violation])[:, 0]
    assert jnp.isnan(figures).any(), "the figures hide the NaN"


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
    result = solve_one("hard", problem, jnp.array(start))
    assert result.status == Status.infeasible
    assert max(float(result.eq_violation), float(result.ineq_violation)) > 0.5


def test_out_of_reach_ends_as_near_as_the_arm_can():
    problem, start = INFEASIBLE["out of reach"]
    result = solve_one("hard", problem, jnp.array(start))
    np.testing.assert_allclose(
        jnp.linalg.norm(_arm_tip(result.z) - jnp.array([3.0, 0.5])), np.hypot(3, 0.5) - 2.3, atol=1e-3
    )


def test_too_few_iterations_are_told():
    problem, start = LOCAL["arm with limits"]
    once = jax.jit(functools.partial(AugmentedLagrangian(outer=1), problem), compiler_options=QUICKLY)
    assert once(jnp.array(start)).status == Status.iteration_limit


@pytest.mark.parametrize("name", SOLVERS)
def test_a_warm_start_takes_fewer_iterations(name):
    near = MANY | {"cost": (MANY["cost"][0], MANY["cost"][1] + 0.01)}
    first = solve(name, EVERYTHING, START, MANY)
    cold, warm = solve(name, EVERYTHING, START, near), solve(name, EVERYTHING, first.z, near, first.warm)
    assert warm.iterations.mean() < 0.7 * cold.iterations.mean()


def test_unknowns_may_be_any_pytree():
    problem = Problem(
        cost=lambda z, _: z["a"] - 2,
        eq=lambda z, _: z["b"] - jnp.outer(z["a"], z["a"]),
        bounds=lambda _: ({"a": -1.0, "b": -9.0}, {"a": 1.5, "b": 9.0}),
    )
    result = solve_one("hard", problem, {"a": jnp.zeros(2), "b": jnp.zeros((2, 2))})
    np.testing.assert_allclose(result.z["a"], [1.5, 1.5], atol=1e-5)
    np.testing.assert_allclose(result.z["b"], np.full((2, 2), 2.25), atol=1e-4)


def test_a_given_linearization_is_used():
    plain, start = LOCAL["arm with limits"]
    calls = []

    def linearize(z, args):
        calls.append(1)
        return plain.terms(z, args), Dense(columns=jnp.concatenate(jax.jacrev(plain.terms)(z, args)).T)

    given = Problem(cost=plain.cost, eq=plain.eq, bounds=plain.bounds, linearize=linearize)
    expected = solve_one("hard", plain, jnp.array(start)).z
    np.testing.assert_allclose(solve_one("hard", given, jnp.array(start)).z, expected, atol=1e-5)
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
    """By every argument in double precision; then batched and in single precision."""

    def value(args):
        return _soft_arm(args).z @ jnp.array([1.0, -2.0, 0.5])

    def gradient(args):
        return jax.vmap(jax.grad(value))(jax.tree.map(lambda leaf: jnp.stack([leaf, 0.95 * leaf]), args))

    with jax.enable_x64(True):
        args = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), ARM_ARGS)
        exact, step = jax.jit(gradient, compiler_options=QUICKLY)(args), 1e-5
        evaluate = jax.jit(value, compiler_options=QUICKLY)
        for name, leaf in args.items():
            for i in range(leaf.size):
                more, less = (evaluate(args | {name: leaf.at[i].add(shift)}) for shift in (step, -step))
                np.testing.assert_allclose(
                    exact[name][0, i], (more - less) / (2 * step), atol=2e-4, err_msg=f"{name}[{i}]"
                )
    single = jax.jit(gradient, compiler_options=QUICKLY)(ARM_ARGS)
    for name in args:
        np.testing.assert_allclose(single[name], exact[name], rtol=1e-3, atol=1e-3)


# --- errors in words -------------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match=r"unknown z\['k'\] is int32"):
        AugmentedLagrangian()(Problem(cost=lambda z, _: z["k"]), {"k": jnp.array(1)})
    with pytest.raises(ValueError, match="nothing to solve"):
        AugmentedLagrangian()(Problem(), jnp.zeros(2))
    with pytest.raises(ValueError, match="the lower bound has structure"):
        AugmentedLagrangian()(Problem(cost=lambda z, _: z, bounds=lambda _: ((1.0, 2.0), 3.0)), jnp.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        GaussNewton(iterations=0)


def test_real_time_iterations_on_a_fixed_problem_converge_to_the_constrained_optimum():
    """Nearest point of the half-space n.x <= b to c, in closed form: c - max(0, n.c - b) n / |n|^2; and within bounds."""
    n, b, c = jnp.array([1.0, 2.0]), 0.5, jnp.array([1.0, 1.0])
    problem = Problem(cost=lambda z, args: z - c, ineq=lambda z, args: jnp.atleast_1d(n @ z - b))
    solver = RealTimeIteration()
    z, warm = c, solver.cold(problem, c)
    for _ in range(15):
        result = solver(problem, z, None, warm)
        z, warm = result.z, result.warm
    np.testing.assert_allclose(z, c - (n @ c - b) * n / (n @ n), atol=1e-4)
    assert result.status == Status.converged

    bounded = Problem(cost=problem.cost, bounds=lambda args: (jnp.array([-1.0, -1.0]), jnp.array([0.25, 3.0])))
    z = jnp.zeros(2)
    for _ in range(20):
        z = solver(bounded, z, None, solver.cold(bounded, z)).z
    np.testing.assert_allclose(z, [0.25, 1.0], atol=1e-3)
