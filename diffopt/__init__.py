"""diffopt: constrained sampling from pretrained grasp and visuomotor diffusion policies.

policy = diffopt.policies.load("grasp-allegro")
robot = diffopt.embodiments.load("panda-allegro")
scene = diffopt.scenes.tabletop(...)
result = diffopt.sample(policy.given(scene.target), robot.constraints | scene.constraints, n=64)
"""

from diffopt import constraints, geometry, paths, plans, policies, samplers, scenes, schedules, solvers
from diffopt.constraints import ConstraintSet
from diffopt.controller import Controller
from diffopt.inverse import Postures, ik
from diffopt.monitor import Monitor
from diffopt.robots import embodiments
from diffopt.robots.embodiment import Embodiment
from diffopt.sample import sample
from diffopt.solution import InfeasibleError, Solution, Status
from diffopt.version import __version__

__all__ = [
    "ConstraintSet",
    "Controller",
    "Embodiment",
    "InfeasibleError",
    "Monitor",
    "Postures",
    "Solution",
    "Status",
    "__version__",
    "constraints",
    "embodiments",
    "geometry",
    "ik",
    "paths",
    "plans",
    "policies",
    "sample",
    "samplers",
    "scenes",
    "schedules",
    "solvers",
]
