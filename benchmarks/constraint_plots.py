"""Draws the zero sets of all constraints, for docs/constraints.md: `python -m benchmarks.constraint_plots [NAME ...]`.

Each is drawn at its own example, over two joints of the arm (or over the plane, where it speaks about points; of motions over the speeds of
two joints): the worst row, less its tolerance, with the line where that is zero. `field` is the look-up of a mesh on a grid against the
mesh itself.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffopt.constraints
from diffopt.plans import Point

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "constraints"
RESOLUTION = 61
JOINTS = {
    "manipulability": (3, 5),
    "orientation_cone": (4, 5),
    "self_collision": (3, 5),
    "hand_penetration": (0, 3),
    "contact_forces": (0, 1),
    "loop_closure": (0, 1),
    "follower_limits": (0, 1),
}
SPEEDS = {
    "motion_limits": 3.0,
    "torque_limits": 15.0,
    "tracking": 2.5,
    "moving_collision": 2.0,
    "near_path": 0.3,
    "retarget": 0.08,
}  # [rad/s]
SPAN = {"contact_forces": 0.04, "reach": 0.006, "tolerant_reach": 0.1}  # to either side of the example [rad]


def examples() -> dict[str, Any]:
    """The example of every constraint with a zero set of its own (not costs, not what is made of others), by the name of its file."""
    found = {}
    for module in pkgutil.iter_modules(diffopt.constraints.__path__, "diffopt.constraints."):
        for value in vars(importlib.import_module(module.name)).values():
            of_file = inspect.isclass(value) and value.__module__ == module.name and hasattr(value, "example")
            if of_file and "base" not in value.__dataclass_fields__ and getattr(value, "kind", None) != "cost":
                found[module.name.rsplit(".", 1)[1]] = value.example
    return found


def worst(constraint: Any, plan: Any, aux: dict[str, Any]) -> jax.Array:
    """The row that is furthest from satisfied, less its tolerance."""
    rows = constraint.residual(plan, aux, None)
    rows = jnp.abs(rows) if constraint.kind == "eq" else rows
    return jnp.max(rows - jnp.asarray(constraint.tolerance))


@partial(jax.jit, static_argnames="which")
def over_joints(
    constraint: Any, plan: Any, aux: dict[str, Any], held: jax.Array, which: tuple[int, int], x: jax.Array, y: jax.Array
):
    """`worst` over two joints, the others held."""
    i, j = which

    def at(a: jax.Array, b: jax.Array) -> jax.Array:
        return worst(constraint, plan, aux | {"joints": held.at[i].set(a).at[j].set(b)})

    return jax.lax.map(lambda a: jax.vmap(lambda b: at(a, b))(y), x)


@partial(jax.jit, static_argnames="which")
def over_motions(constraint: Any, plan: Any, home: jax.Array, which: tuple[int, int], x: jax.Array, y: jax.Array):
    """`worst` over motions in which two joints have the speeds x and y, on top of `home`, where the joints rest or how they move."""
    i, j = which
    time = plan.dt * jnp.arange(1, plan.joints.shape[0] + 1)[:, None]

    def at(a: jax.Array, b: jax.Array) -> jax.Array:
        joints = home + time * jnp.zeros(home.shape[-1]).at[i].set(a).at[j].set(b)
        return worst(constraint, plan, {"joints": joints})

    return jax.lax.map(lambda a: jax.vmap(lambda b: at(a, b))(y), x)


def draw(name: str, example: Any) -> None:
    """One picture, `<name>.png`."""
    import matplotlib.pyplot as plt

    constraint, (plan, aux), (_, other) = example(jax.random.key(0))
    if isinstance(plan, Point):
        x = y = np.linspace(-0.5, 2.5, RESOLUTION)
        labels = "x", "y"
        values = jax.jit(jax.vmap(jax.vmap(lambda p: worst(constraint, Point(values=p), {}))))
        seen = values(jnp.stack(jnp.meshgrid(x, y, indexing="ij"), axis=-1))
    elif np.ndim(aux["joints"]) == 2:
        robot, (i, j), most = constraint.robot, JOINTS.get(name, (0, 3)), SPEEDS[name]
        home = {"moving_collision": other["joints"], "near_path": aux["joints"], "retarget": aux["joints"]}.get(
            name, robot.home
        )
        x = y = np.linspace(-most, most, RESOLUTION)
        labels = f"{robot.arm[i]} [rad/s]", f"{robot.arm[j]} [rad/s]"
        across = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
        seen = over_motions(constraint, plan, home, (i, j), *across)
    else:
        robot = constraint.robot
        i, j = JOINTS.get(name, (0, 3))
        held = np.asarray(aux["joints"])
        pad, near = 0.1 if name == "joint_limits" else 0.0, SPAN.get(name, np.inf)
        low = np.maximum(np.asarray(robot.lower) - pad, held - near)
        high = np.minimum(np.asarray(robot.upper) + pad, held + near)
        x, y = (np.linspace(low[k], high[k], RESOLUTION) for k in (i, j))
        labels = f"{robot.arm[i]} [rad]", f"{robot.arm[j]} [rad]"
        across = (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
        seen = over_joints(constraint, plan, aux, aux["joints"], (i, j), *across)
    seen = np.asarray(seen).T
    figure, axes = plt.subplots(figsize=(3.6, 3.0), dpi=90, layout="constrained")
    most = float(np.percentile(np.abs(seen[np.isfinite(seen)]), 95)) or 1.0
    image = axes.pcolormesh(x, y, seen, cmap="RdBu_r", vmin=-most, vmax=most, shading="nearest", rasterized=True)
    if seen.min() < 0 < seen.max():
        axes.contour(x, y, seen, levels=[0.0], colors="k", linewidths=1.2)
    figure.colorbar(image, ax=axes)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=constraint.name)
    figure.savefig(FOLDER / f"{name}.png")
    plt.close(figure)


def draw_field() -> None:
    """A mesh and the zero set of its field, cut at y = 0: the field's lies outside, by what interpolation may add."""
    import matplotlib.pyplot as plt
    import trimesh

    from diffopt.geometry.surroundings import mesh_field

    mesh = trimesh.creation.torus(0.1, 0.04, 64, 32)
    x, z = np.linspace(-0.2, 0.2, 161), np.linspace(-0.12, 0.12, 97)
    points = np.stack(np.meshgrid(x, [0.0], z, indexing="ij")).reshape(3, -1)
    figure, axes = plt.subplots(figsize=(4.6, 2.8), dpi=90, layout="constrained")
    for h, colour in ((0.02, "tab:orange"), (0.01, "tab:blue")):
        field = mesh_field((mesh.vertices, mesh.faces), h)
        seen = np.asarray(field.distance(jnp.asarray(points, jnp.float32))).reshape(len(x), len(z)).T
        axes.contour(x, z, seen, levels=[0.0], colors=colour, linewidths=1.2)
        axes.contour(x, z, seen, levels=[0.03], colors=colour, linewidths=0.7, linestyles="dashed")
        axes.plot([], [], color=colour, label=f"h = {100 * h:.0f} cm: field = 0, and 3 cm (dashed)")
    angle = np.linspace(0, 2 * np.pi, 200)
    for middle in (-0.1, 0.1):
        axes.plot(middle + 0.04 * np.cos(angle), 0.04 * np.sin(angle), "k", linewidth=0.8)
    axes.plot([], [], "k", label="the mesh")
    axes.set(xlabel="x [m]", ylabel="z [m]", aspect="equal")
    figure.legend(loc="outside upper center", fontsize=7)
    figure.savefig(FOLDER / "field.png")
    plt.close(figure)


def main() -> None:
    import matplotlib

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    asked = parser.parse_args().names
    matplotlib.use("Agg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    known = examples()
    unknown = set(asked) - known.keys() - {"field"}
    if unknown:
        parser.error(f"no constraint in a file named {sorted(unknown)[0]!r}; there are: {', '.join([*known, 'field'])}")
    for name, example in known.items():
        if not asked or name in asked:
            draw(name, example)
    if not asked or "field" in asked:
        draw_field()


if __name__ == "__main__":
    main()
