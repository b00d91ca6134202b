"""Cost of forward kinematics and of the constraints of a robot: `python -m benchmarks.kinematics [--batch 1024] [--json file]`.

Times are medians over repeated calls of one jitted, batched function, wall-clock and in processor time (which says more on a machine
that does other things as well). To see one core, pin the process: `taskset -c 0 python -m benchmarks.kinematics`.
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

from diffopt.constraints import SceneCollision, SelfCollision
from diffopt.geometry import shapes
from diffopt.plans import Grasp
from diffopt.robots import embodiments


def measure(function, *arguments, batch: int, repeats: int) -> dict:
    """Compile and time `function`; microseconds per configuration."""
    start = time.process_time()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.process_time() - start
    jax.block_until_ready(compiled(*arguments))
    wall, cpu = [], []
    for _ in range(repeats):
        begin, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    us = 1e6 / batch
    return dict(
        wall_us=float(np.median(wall)) * us,
        cpu_us=float(np.median(cpu)) * us,
        per_second=batch / float(np.median(wall)),
        compile_cpu_s=compile_s,
    )


def scene(n: int):
    """A table and `n` - 1 boxes and cylinders on it."""
    out = shapes.box((0.75, 0.75, 0.25), (0.0, 0.0, -0.25))
    for i in range(n - 1):
        place = (0.5 * np.cos(i), 0.5 * np.sin(i), 0.1)
        out |= shapes.box((0.03, 0.04, 0.1), place) if i % 2 else shapes.cylinder(0.04, 0.1, place)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--obstacles", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    batch, repeats = options.batch, options.repeats
    arm, robot = embodiments.load("panda"), embodiments.load("panda-allegro")
    key, other = jax.random.split(jax.random.key(0))
    joints = robot.lower + (robot.upper - robot.lower) * jax.random.uniform(key, (batch, 7))
    hand = robot.hand_lower + (robot.hand_upper - robot.hand_lower) * jax.random.uniform(other, (batch, 16))
    eye = jnp.broadcast_to(jnp.eye(3), (batch, 3, 3))
    plans = Grasp(position=jnp.zeros((batch, 3)), rotation=eye, joints=hand, squeeze=0 * hand)

    def frames(q):
        out = arm.frames(q)
        return out.position, out.rotation

    def hand_frames(q, h):
        out = robot.frames(q, h)
        return out.position, out.rotation

    def evaluate(constraints, plans, joints):
        return jax.vmap(lambda p, q: [c.jacobian(p, {"joints": q}, None) for c in constraints])(plans, joints)

    rows = {
        "fk panda, flange": measure(jax.vmap(arm.tool_pose), joints, batch=batch, repeats=repeats),
        "fk panda, all bodies": measure(jax.vmap(frames), joints, batch=batch, repeats=repeats),
        "fk panda-allegro, palm": measure(jax.vmap(robot.tool_pose), joints, batch=batch, repeats=repeats),
        "fk panda-allegro, all bodies": measure(jax.vmap(hand_frames), joints, hand, batch=batch, repeats=repeats),
    }
    own = SelfCollision(robot=robot)
    rows["self-collision + Jacobian"] = measure(evaluate, (own,), plans, joints, batch=batch, repeats=repeats)
    for n in options.obstacles:
        outside = SceneCollision(robot=robot, shapes=scene(n))
        rows[f"scene collision + Jacobian, {n} obstacles"] = measure(
            evaluate, (outside,), plans, joints, batch=batch, repeats=repeats
        )
        rows[f"both + Jacobians, {n} obstacles"] = measure(
            evaluate, (own, outside), plans, joints, batch=batch, repeats=repeats
        )

    about = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "mujoco")}
    about |= dict(
        device=str(jax.devices()[0]),
        machine=platform.machine(),
        batch=batch,
        repeats=repeats,
        spheres=len(robot.spheres),
    )
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{'':45s} {'wall us':>9s} {'cpu us':>9s} {'per second':>12s} {'compile s':>9s}")
    for name, row in rows.items():
        print(
            f"{name:45s} {row['wall_us']:9.3f} {row['cpu_us']:9.3f} {row['per_second']:12,.0f} {row['compile_cpu_s']:9.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(dict(about=about, rows=rows), indent=2) + "\n")


if __name__ == "__main__":
    main()
