"""Inverse kinematics of the shipped arms: `python -m benchmarks.ik [--poses 4096] [--obstacles 16] [--mink 200] [--json file]`.

The poses are reachable: forward kinematics of random joints within the limits, at which the robot is clear of itself and of the
obstacles. A pose is solved if C MuJoCo, which the search does not use, finds the flange within 1 mm and 0.5 degrees of it at joints within
the limits, and no collision geom of the robot in another that it can meet or in an obstacle (`mj_geomDistance`).

`panda, fine` is a Panda whose collision geoms are covered by at least 64 moving spheres; the others have the shipped covers. Times are
wall-clock medians of repeated calls on all poses with new keys, after a first call that compiles.

With mink (`pip install mink`; Apache-2.0, its solver daqp MIT, qpsolvers LGPL), the first poses are also given to it, in the same process:
its usual loop, a quadratic program per step (frame task, configuration limit), from the home posture and then from random ones until
a posture passes the same check. With obstacles it is timed with its collision-avoidance limit and without, and the faster one counts.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import platform
import time
from functools import partial

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

import diffopt
from diffopt.constraints import SceneCollision
from diffopt.geometry import Pose, shapes
from diffopt.plans import Grasp
from diffopt.robots.embodiment import Embodiment

POSITION, ROTATION = 1e-3, np.deg2rad(0.5)  # [m], [rad]
FINE = 7.5e-4  # tolerance of the fine cover [m]
KINDS = {
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "capsule": mujoco.mjtGeom.mjGEOM_CAPSULE,
}


def obstacles(n: int, seed: int = 0) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """A table, and boxes, spheres and capsules at random around the arm: kind, size as in MuJoCo, position [m]."""
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        way = rng.normal(size=3)
        way[2] = abs(way[2])
        centre = way / np.linalg.norm(way) * rng.uniform(0.4, 0.9)
        if i == 0:
            out.append(("box", np.array([1.0, 1.0, 0.05]), np.array([0.0, 0.0, -0.12])))
        elif i % 3 == 0:
            out.append(("sphere", np.array([rng.uniform(0.03, 0.09), 0, 0]), centre))
        elif i % 3 == 1:
            out.append(("box", rng.uniform(0.02, 0.09, 3), centre))
        else:
            out.append(("capsule", np.array([rng.uniform(0.02, 0.05), rng.uniform(0.05, 0.2), 0]), centre))
    return out


def constraints_of(robot: Embodiment, things: list):
    """The robot's own constraints, and the scene's if there is one."""
    make = {
        "sphere": lambda s, p: shapes.sphere(s[0], p),
        "box": lambda s, p: shapes.box(s, p),
        "capsule": lambda s, p: shapes.capsule(s[0], s[1], p),
    }
    out = robot.constraints.remove("reach")
    parts = [make[kind](size, place) for kind, size, place in things]
    if parts:
        out = out | SceneCollision(robot=robot, shapes=jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    return out


class Judge:
    """C MuJoCo's word on postures."""

    def __init__(self, robot: Embodiment, things: list):
        spec = mujoco.MjSpec.from_string(robot.xml)
        for i, (kind, size, place) in enumerate(things):
            spec.worldbody.add_geom(name=f"obstacle{i}", type=KINDS[kind], size=size, pos=place)
        self.robot, self.model = robot, spec.compile()
        self.data = mujoco.MjData(self.model)
        self.index = [self.model.joint(name).qposadr[0] for name in robot.arm]
        self.data.qpos[[self.model.joint(name).qposadr[0] for name in robot.hand]] = robot.hand_home
        m, solid = self.model, self.model.geom_contype | self.model.geom_conaffinity
        geoms = {b: [g for g in range(m.ngeom) if m.geom_bodyid[g] == b and solid[g]] for b in range(m.nbody)}
        mine = {robot.spheres.body[i] for i in robot.contacts.moving}
        self.obstacles = [m.geom(f"obstacle{i}").id for i in range(len(things))]
        self.moving = [g for b in mine for g in geoms[b]]
        self.pairs = [(a, b) for one, two in robot.contacts.pairs for a in geoms[one] for b in geoms[two]]
        self.pairs += [(a, b) for a in self.moving for b in self.obstacles]

    def errors(self, q: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> tuple[float, float]:
        """Distance [m] and angle [rad] of the tool from a pose; infinite beyond the limits."""
        self.data.qpos[self.index] = q
        mujoco.mj_kinematics(self.model, self.data)
        if np.any(q < np.asarray(self.robot.lower) - 1e-4) or np.any(q > np.asarray(self.robot.upper) + 1e-4):
            return np.inf, np.inf
        tool = self.data.body(self.robot.tool)
        cosine = (np.trace(rotation.T @ tool.xmat.reshape(3, 3)) - 1) / 2
        return float(np.linalg.norm(tool.xpos - position)), float(np.arccos(np.clip(cosine, -1, 1)))

    def clear(self) -> bool:
        """Whether nothing touches at the posture asked about last."""
        return all(mujoco.mj_geomDistance(self.model, self.data, a, b, 0.01, None) > 0 for a, b in self.pairs)

    def solved(self, q, position, rotation) -> bool:
        distance, angle = self.errors(q, position, rotation)
        return distance <= POSITION and angle <= ROTATION and self.clear()


def reachable(robot: Embodiment, constraints, n: int, key) -> jnp.ndarray:
    """Random joints within the limits at which the constraints hold."""
    hand = robot.hand_home

    def holds(q):
        plan = Grasp(position=jnp.zeros(3), rotation=jnp.eye(3), joints=hand, squeeze=0 * hand)
        return constraints.report(plan, {"joints": q}, None).satisfied

    holds, found = jax.jit(jax.vmap(holds)), []
    while sum(map(len, found)) < n:
        key, draw = jax.random.split(key)
        joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(draw, (4096, len(robot.arm)))
        found.append(joints[np.asarray(holds(joints))])
    return jnp.concatenate(found)[:n]


def mink_rate(judge: Judge, target: Pose, starts: int, avoid: bool) -> dict:
    """Share and rate of poses that mink solves, one after the other."""
    import mink

    robot, model = judge.robot, judge.model
    rng, lower, upper = np.random.default_rng(0), np.asarray(robot.lower, float), np.asarray(robot.upper, float)
    configuration = mink.Configuration(model)
    task = mink.FrameTask(robot.tool, "body", position_cost=1.0, orientation_cost=1.0, lm_damping=1e-3)
    limits = [mink.ConfigurationLimit(model)]
    if avoid:
        limits.append(mink.CollisionAvoidanceLimit(model, [(judge.moving, judge.obstacles)]))
    rest, solved, begin = judge.data.qpos.copy(), 0, time.perf_counter()
    for p, R in zip(np.asarray(target.position, float), np.asarray(target.rotation, float), strict=True):
        task.set_target(mink.SE3.from_rotation_and_translation(mink.SO3.from_matrix(R), p))
        for start in range(starts):
            q = rest.copy()
            q[judge.index] = robot.home if start == 0 else rng.uniform(lower, upper)
            configuration.update(q)
            before = np.inf
            for _ in range(50):
                try:
                    velocity = mink.solve_ik(configuration, [task], 1.0, "daqp", limits=limits)
                except mink.NoSolutionFound:
                    break
                configuration.integrate_inplace(velocity, 1.0)
                error = task.compute_error(configuration)
                if np.linalg.norm(error[:3]) <= POSITION / 2 and np.linalg.norm(error[3:]) <= ROTATION / 2:
                    break
                now = np.linalg.norm(error)
                if now > 0.999 * before and np.linalg.norm(velocity) < 1e-3:
                    break  # stuck
                before = now
            if judge.solved(configuration.q[judge.index], p, R):
                solved += 1
                break
    seconds = time.perf_counter() - begin
    return dict(solved=solved / len(target.position), poses_per_second=solved / seconds, starts=starts)


def measure(label: str, robot: Embodiment, things: list, options: argparse.Namespace) -> dict:
    """One row of the table."""
    constraints, judge = constraints_of(robot, things), Judge(robot, things)
    truth = reachable(robot, constraints, options.poses, jax.random.key(options.seed))
    target = jax.jit(jax.vmap(robot.tool_pose))(truth)
    start = time.perf_counter()
    result = jax.block_until_ready(diffopt.ik(robot, target, constraints))
    first, times = time.perf_counter() - start, []
    for key in range(1, options.repeats + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(diffopt.ik(robot, target, constraints, key=key))
        times.append(time.perf_counter() - start)
    p, R = np.asarray(target.position, float), np.asarray(target.rotation, float)
    joints = np.asarray(result.joints, float)
    solved = np.array([judge.solved(*one) for one in zip(joints, p, R, strict=True)])
    row = dict(
        spheres=len(robot.contacts.moving),
        obstacles=len(things),
        solved=float(solved.mean()),
        claimed=float(np.mean(result.solved)),
        wrongly_claimed=int(np.sum(np.asarray(result.solved) & ~solved)),
        solved_per_second=float(solved.sum() / np.median(times)),
        first_call_s=first,
        attempts=float(np.mean(result.attempts)),
    )
    if options.mink and importlib.util.find_spec("mink"):
        some = jax.tree.map(lambda leaf: leaf[: options.mink], target)
        run = partial(mink_rate, judge, some, options.starts)
        kinds = {"mink": run(avoid=False)} | ({"mink, avoiding": run(avoid=True)} if things else {})
        row |= kinds
    print(
        f"{label:14s} {row['spheres']:7d} {row['obstacles']:9d} {100 * row['solved']:9.2f} {row['wrongly_claimed']:6d} "
        f"{row['solved_per_second']:10,.0f} {row['first_call_s']:8.1f} {row['attempts']:9.1f}  "
        + "; ".join(
            f"{k}: {v['poses_per_second']:.0f}/s, {100 * v['solved']:.1f} %"
            for k, v in row.items()
            if k.startswith("mink")
        ),
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robots", nargs="+", default=["panda", "panda, fine", "xarm7", "ur5e", "panda-allegro"])
    parser.add_argument("--poses", type=int, default=4096)
    parser.add_argument("--obstacles", type=int, nargs="+", default=[0, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mink", type=int, default=200, help="poses for mink, if it is installed")
    parser.add_argument("--starts", type=int, default=20, help="starts per pose that mink gets")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    packages = ("jax", "jaxlib", "mujoco", *(("mink", "qpsolvers", "daqp") if importlib.util.find_spec("mink") else ()))
    about = {name: importlib.metadata.version(name) for name in packages}
    about |= dict(device=str(jax.devices()[0]), machine=platform.machine())
    about |= {k: getattr(options, k) for k in ("poses", "repeats", "seed")}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    head = (
        ("spheres", 7),
        ("obstacles", 9),
        ("solved %", 9),
        ("wrong", 6),
        ("solved/s", 10),
        ("first s", 8),
        ("attempts", 9),
    )
    print(" ".join([f"{'robot':14s}", *(f"{title:>{width}s}" for title, width in head)]))
    rows = []
    for name in options.robots:
        robot = diffopt.embodiments.load(name.removesuffix(", fine"))
        if name.endswith(", fine"):
            robot = Embodiment.from_mjcf(robot.xml, tool=robot.tool, name=name, tolerance=FINE)
        for n in options.obstacles:
            rows.append(dict(robot=name) | measure(name, robot, obstacles(n), options))
    if options.json:
        before = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
        kept = [
            row for row in before if row["robot"] not in options.robots
        ]  # one robot after the other may be measured
        options.json.write_text(json.dumps(dict(about=about, rows=kept + rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
