"""Latency of one replan in a control loop, constrained and not: `python -m benchmarks.replan`.

The pick-place policy (16 knots of 0.1 s, 16 levels, batch 1) on the Panda under reach, joint and velocity limits, self-collision and
collision with eight boxes, through `diffopt.Controller`, pictures encoded included; beside it the same policy sampled plainly. One
process, alternating; compile times apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import diffopt
from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.evaluation.report import provenance
from diffopt.geometry import shapes
from diffopt.policies.observation import Observation


def surroundings(rng: np.random.Generator) -> ConstraintSet:
    """A table, and seven posts around the workspace."""
    out = shapes.box((0.8, 0.8, 0.1), (0.0, 0.0, -0.1))
    for angle in np.linspace(-2.2, 2.2, 7):
        spot = 0.32 * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.01, 2)
        out = out | shapes.box((0.015, 0.015, 0.1), (*spot, 0.1))
    return ConstraintSet.of(SceneCollision(shapes=out))


def observed(policy, robot, joints, rng: np.random.Generator) -> Observation:
    """Two moments: noise for pictures (their content does not change the time), the tool where the arm holds it."""
    steps, cameras, size = 2, *policy.encoder.images[1:3]
    tool = robot.tool_pose(jnp.asarray(joints))
    return Observation(
        images=rng.integers(0, 255, (steps, cameras, size, size, 3), np.uint8),
        position=np.tile(tool.position, (steps, 1)),
        rotation=np.tile(tool.rotation, (steps, 1, 1)),
        joints=np.full((steps, 1), 0.04, np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    policy = diffopt.policies.load("pick-place")
    robot = diffopt.embodiments.load("panda-gripper").at(jnp.array([-0.55, 0.0, 0.0]))
    rng = np.random.default_rng(0)
    controller = diffopt.Controller(policy=policy, robot=robot, attempts=1)
    posture = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.8], np.float32)
    scene = surroundings(rng)
    view = observed(policy, robot, posture, rng)

    @jax.jit
    def plain(policy, view, key):
        return diffopt.sample(policy.given(view), n=1, key=key, sampler="ddim", levels=16).plans

    began = time.perf_counter()
    jax.block_until_ready(plain(policy, view, jax.random.key(0)))
    compiled_plain = time.perf_counter() - began
    began = time.perf_counter()
    controller.prepare(view, scene)
    compiled = time.perf_counter() - began
    latency, unconstrained, feasible = [], [], 0
    memory = controller.start(posture)
    for i in range(options.repeats):
        began = time.perf_counter()
        jax.block_until_ready(plain(policy, view, jax.random.key(i)))
        unconstrained.append(time.perf_counter() - began)
        if i % 4 == 0:
            memory = controller.start(posture + rng.normal(0, 0.05, 7).astype(np.float32))
        chunk, memory = controller.plan(view, memory, scene)
        latency.append(chunk.latency)
        feasible += chunk.source == "planned"
    weights = sum(leaf.size for leaf in jax.tree.leaves(policy.denoiser.weights))

    def ms(values, share):
        return round(1e3 * float(np.quantile(values, share)), 2)

    row = dict(
        parameters=int(weights),
        repeats=options.repeats,
        feasible=feasible / options.repeats,
        constrained_ms=dict(median=ms(latency, 0.5), p95=ms(latency, 0.95)),
        plain_ms=dict(median=ms(unconstrained, 0.5), p95=ms(unconstrained, 0.95)),
        compile_s=dict(constrained=round(compiled, 1), plain=round(compiled_plain, 1)),
    )
    print(json.dumps(row, indent=2))
    if options.json:
        options.json.write_text(json.dumps(dict(about=provenance(0), row=row), indent=2) + "\n")


if __name__ == "__main__":
    main()
