"""Solvers of small constrained least-squares problems, one problem at a time and batched by `jax.vmap`."""

from diffopt.solvers.augmented_lagrangian import AugmentedLagrangian
from diffopt.solvers.base import Problem, Solver, SolverResult, Status, Terms, Warm
from diffopt.solvers.gauss_newton import GaussNewton
from diffopt.solvers.jacobians import Dense, Jacobian, Knots, Window
from diffopt.solvers.real_time import RealTimeIteration

__all__ = [
    "AugmentedLagrangian",
    "Dense",
    "GaussNewton",
    "Jacobian",
    "Knots",
    "Problem",
    "RealTimeIteration",
    "Solver",
    "SolverResult",
    "Status",
    "Terms",
    "Warm",
    "Window",
]
