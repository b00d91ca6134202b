"""How the cost of a constraint grows with bodies, obstacles and horizon: `python -m benchmarks.constraint_cost [--plot file] [--bodies]`.

Times one evaluation, residual and Jacobian by the arm's joints, of a Panda, in a jitted batch: wall-clock, the least of the repeats,
because whatever else runs on the machine only adds. One number is varied at a time:

- bodies: moving collision spheres, by the tolerance of their cover, at 16 obstacles;
- obstacles: boxes, spheres and capsules, at the shipped cover;
- horizon: knots of a joint path, at the shipped cover and 16 obstacles.

Self-collision compares spheres with spheres: it is linear in the pairs that can meet, not in the spheres, and is shown over the pairs. To
each curve a line is fitted, and the largest distance of a point from it is given as a share of the curve's largest time.
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ik import constraints_of, obstacles
from diffopt.constraints import AtEveryKnot
from diffopt.paths import JointPath
from diffopt.plans import Grasp
from diffopt.robots import embodiments
from diffopt.robots.embodiment import Embodiment

TOLERANCES = (0.03, 0.01, 0.004, 0.002, 0.001, 0.0006, 0.0004)  # [m]
OBSTACLES = (1, 4, 8, 16, 32, 48, 64)
KNOTS = (1, 4, 8, 16, 32, 48, 64)


def seconds(function, *arguments, repeats: int) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def at_once(constraint, robot: Embodiment, batch: int, repeats: int) -> float:
    """Microseconds per configuration."""
    joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(0), (batch, len(robot.arm)))
    plan = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=robot.hand_home, squeeze=0 * robot.hand_home)

    def evaluate(constraint, joints):
        return jax.vmap(lambda q: constraint.jacobian(plan, {"joints": q}, None))(joints)

    return 1e6 * seconds(evaluate, constraint, joints, repeats=repeats) / batch


def along(constraint, robot: Embodiment, horizon: int, batch: int, repeats: int) -> float:
    """Microseconds per path."""
    shape = (batch, horizon, len(robot.arm))
    joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(jax.random.key(0), shape)

    def evaluate(constraint, joints):
        def one(q):
            path = JointPath(arm=q, joints=jnp.zeros((horizon, len(robot.hand))), dt=0.1)
            return AtEveryKnot(base=constraint).blocks(path, path, {"joints": q}, None)

        return jax.vmap(one)(joints)

    return 1e6 * seconds(evaluate, constraint, joints, repeats=repeats) / batch


def pairs(robot: Embodiment) -> int:
    """Pairs of spheres that self-collision looks at: every outer sphere with every inner one."""
    first, second = ({pair[i] for pair in robot.contacts.pairs} for i in range(2))

    def count(bodies):
        return sum(b in bodies for b in robot.spheres.body)

    return count(first) * count(second)


def measure(options: argparse.Namespace) -> dict[str, dict]:
    """The curves: what is varied, x and time."""
    panda = embodiments.load("panda")
    batch, repeats = options.batch, options.repeats

    def scene(robot, n):
        return constraints_of(robot, obstacles(n))["scene_collision"]

    covers = [Embodiment.from_mjcf(panda.xml, tool=panda.tool, name="panda", tolerance=t) for t in TOLERANCES]
    curves = {
        "scene collision over bodies": (
            "moving spheres",
            "us per configuration",
            [(len(r.contacts.moving), at_once(scene(r, 16), r, batch, repeats)) for r in covers],
        ),
        "self-collision over pairs": (
            "pairs of spheres",
            "us per configuration",
            [(pairs(r), at_once(r.constraints["self_collision"], r, batch, repeats)) for r in covers],
        ),
        "scene collision over obstacles": (
            "obstacles",
            "us per configuration",
            [(n, at_once(scene(panda, n), panda, batch, repeats)) for n in OBSTACLES],
        ),
        "scene collision over the horizon": (
            "knots",
            "us per path",
            [(h, along(scene(panda, 16), panda, h, max(1, batch // 8), repeats)) for h in KNOTS],
        ),
    }
    out = {}
    for name, (x_label, y_label, points) in curves.items():
        x, y = np.array(points, float).T
        slope, offset = np.polyfit(x, y, 1)
        off = float(np.max(np.abs(slope * x + offset - y)) / np.max(y))
        line = dict(slope=float(slope), offset=float(offset), largest_distance=off)
        out[name] = dict(x=x.tolist(), y=y.tolist(), x_label=x_label, y_label=y_label, line=line)
    return out


def compare_bodies(options: argparse.Namespace) -> None:
    """Prints the times of scene and self-collision with both kinds of collision bodies."""
    for name in ("panda", "panda-gripper", "xarm7-leap"):
        for bodies in ("spheres", "primitives"):
            robot = embodiments.load(name, bodies=bodies)
            of_all = constraints_of(robot, obstacles(16))
            times = [
                at_once(of_all[k], robot, options.batch, options.repeats) for k in ("scene_collision", "self_collision")
            ]
            print(f"{name}, {bodies}: scene {times[0]:.1f}, self {times[1]:.1f} us per configuration")


def plot(curves: dict[str, dict], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3), layout="constrained")
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        x = np.array(curve["x"])
        axis.plot(x, curve["line"]["offset"] + curve["line"]["slope"] * x, color="0.7")
        axis.plot(x, curve["y"], "o")
        axis.set(title=name, xlabel=curve["x_label"], ylabel=curve["y_label"], xlim=(0, None), ylim=(0, None))
        axis.title.set_size(10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument(
        "--bodies", action="store_true", help="only compare spheres with exact primitives, at 16 obstacles"
    )
    options = parser.parse_args()
    about = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "mujoco")}
    about |= dict(
        device=str(jax.devices()[0]), machine=platform.machine(), batch=options.batch, repeats=options.repeats
    )
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    if options.bodies:
        compare_bodies(options)
        return
    curves = measure(options)
    for name, curve in curves.items():
        line = curve["line"]
        print(
            f"{name}: {line['offset']:.2f} + {line['slope']:.4f} n [{curve['y_label']}], off by {100 * line['largest_distance']:.0f} %"
        )
        print("  " + ", ".join(f"{x:.0f}: {y:.2f}" for x, y in zip(curve["x"], curve["y"], strict=True)))
    if options.plot:
        plot(curves, options.plot)
    if options.json:
        options.json.write_text(json.dumps(dict(about=about, curves=curves), indent=2) + "\n")


if __name__ == "__main__":
    main()
