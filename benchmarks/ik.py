"""Batched inverse kinematics of the shipped arms: `python -m benchmarks.ik [--poses 512] [--seeds 8] [--json file]`.

The poses are reachable: forward kinematics of random joints within the limits, at which the robot's spheres are clear of each other.
Per pose, damped Gauss-Newton on the reach residual within the joint limits from the nearest of the robot's seeds, of which the best
result counts; no obstacles. A pose is solved if C MuJoCo, which the solver does not use, finds the flange within 1 mm and 0.5 degrees of
it at joints within the limits. `clear` is the share that is also clear of itself there, which is not asked of the solver.

Times are wall-clock medians of one jitted, batched call; pin the process to see one core: `taskset -c 0 python -m benchmarks.ik`.
"""

import argparse
import importlib.metadata
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from diffopt.constraints import SelfCollision
from diffopt.geometry import Pose, rotation_vector
from diffopt.plans import Grasp
from diffopt.robots import embodiments
from diffopt.robots.embodiment import Embodiment
from diffopt.robots.embodiments.parts import ARMS
from diffopt.solvers import GaussNewton, Problem

POSITION, ROTATION = 1e-3, np.deg2rad(0.5)  # [m], [rad]


def clearance(robot: Embodiment, joints):
    """Least distance between spheres of the robot that can meet [m]; batched."""
    own = SelfCollision(robot=robot, margin=0.0)
    plan = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=robot.hand_home, squeeze=0 * robot.hand_home)
    return jax.vmap(lambda q: -jnp.max(own.residual(plan, {"joints": q}, None)))(joints)


def reachable(robot: Embodiment, n: int, key) -> jnp.ndarray:
    """Random joints within the limits at which the robot is clear of itself."""
    joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(key, (4 * n, len(robot.arm)))
    clear = joints[np.asarray(clearance(robot, joints)) > 0]
    if len(clear) < n:
        raise ValueError(
            f"only {len(clear)} of {4 * n} random postures of {robot.name!r} are clear of itself; ask for fewer poses"
        )
    return clear[:n]


def solve(robot: Embodiment, target: Pose, seeds: int, iterations: int):
    """Joints whose tool is at `target`, the best of several starts."""

    def miss(z, target):
        tool = robot.tool_pose(z)
        turn = rotation_vector(target.rotation.T @ tool.rotation)
        return jnp.concatenate([(tool.position - target.position) / POSITION, turn / ROTATION])

    problem = Problem(cost=miss, bounds=lambda _: (robot.lower, robot.upper))
    solver = GaussNewton(iterations=iterations)
    found = jax.vmap(lambda z: solver(problem, z, target))(robot.nearest_seeds(target, seeds))
    return found.z[jnp.argmin(found.cost)]


def errors(robot: Embodiment, joints: np.ndarray, target: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Distance [m] and angle [rad] from the targets to the tool, by C MuJoCo; infinite beyond the limits."""
    model = mujoco.MjModel.from_xml_string(robot.xml)
    data, out = mujoco.MjData(model), []
    index = [model.joint(name).qposadr[0] for name in robot.arm]
    for q, p, R in zip(joints, np.asarray(target.position), np.asarray(target.rotation), strict=True):
        data.qpos[index] = q
        mujoco.mj_kinematics(model, data)
        tool = data.body(robot.tool)
        cosine = (np.trace(R.T @ tool.xmat.reshape(3, 3)) - 1) / 2
        out.append((np.linalg.norm(tool.xpos - p), np.arccos(np.clip(cosine, -1, 1))))
    outside = np.any((joints < np.asarray(robot.lower) - 1e-4) | (joints > np.asarray(robot.upper) + 1e-4), axis=1)
    distance, angle = np.array(out).T
    return np.where(outside, np.inf, distance), np.where(outside, np.inf, angle)


def measure(name: str, options: argparse.Namespace) -> dict:
    """One row of the table."""
    robot = embodiments.load(name)
    truth = reachable(robot, options.poses, jax.random.key(options.seed))
    target = jax.jit(jax.vmap(robot.tool_pose))(truth)
    run = jax.jit(jax.vmap(lambda t: solve(robot, t, options.seeds, options.iterations)))
    start = time.perf_counter()
    joints = jax.block_until_ready(run(target))
    first, times = time.perf_counter() - start, []
    for _ in range(options.repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(target))
        times.append(time.perf_counter() - start)
    distance, angle = errors(robot, np.asarray(joints, float), target)
    solved = (distance <= POSITION) & (angle <= ROTATION)
    return dict(
        solved=float(solved.mean()),
        clear=float((solved & (np.asarray(clearance(robot, joints)) > 0)).mean()),
        median_mm=float(1e3 * np.median(distance)),
        poses_per_second=options.poses / float(np.median(times)),
        first_call_s=first,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", default=sorted(ARMS))
    parser.add_argument("--poses", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    about = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "mujoco")}
    about |= dict(device=str(jax.devices()[0]), machine=platform.machine())
    about |= {k: getattr(options, k) for k in ("poses", "seeds", "iterations", "repeats", "seed")}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{'robot':16s} {'solved %':>9s} {'clear %':>9s} {'median mm':>10s} {'poses/s':>10s} {'first call s':>12s}")
    rows = {}
    for name in options.robots:
        row = rows[name] = measure(name, options)
        figures = f"{100 * row['solved']:9.1f} {100 * row['clear']:9.1f} {row['median_mm']:10.4f}"
        print(f"{name:16s} {figures} {row['poses_per_second']:10,.0f} {row['first_call_s']:12.1f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(dict(about=about, rows=rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
