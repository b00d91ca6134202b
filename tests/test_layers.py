"""The architecture as a law: which part of diffopt may import which, and what importing diffopt may cost.

A layer is a sub-package or a module at the top of `diffopt/`. An arrow reads "may import", and arrows compose.
"""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffopt"

# layer -> the layers it may import directly; what those may import is included.
ARROWS: dict[str, set[str]] = {
    "version": set(),
    "compiling": set(),
    "schedules": set(),
    "geometry": set(),
    "solvers": set(),
    "plans": {"geometry"},
    "paths": {"geometry"},
    "robots": {"geometry"},
    "constraints": {"robots", "geometry", "plans", "paths"},
    "scenes": {"geometry", "constraints"},
    "inverse": {"constraints"},
    "policies": {"schedules", "plans", "paths"},
    "process": {"policies", "schedules"},
    "solution": {"plans", "paths"},
    "samplers": {"process", "solvers", "constraints", "solution"},
    "attempts": {"moves", "samplers", "solution"},
    "moves": {"samplers", "solution"},
    "sample": {"attempts", "moves", "compiling"},
    "chunks": {"sample", "robots"},
    "monitor": {"geometry"},
    "memory": {"chunks"},
    "controller": {"chunks", "memory", "monitor"},
    "physics": {"robots", "scenes", "plans", "compiling"},
    "tasks": {"physics", "constraints", "policies"},
    "evaluation": {"tasks", "solution", "version", "controller", "memory"},
    "training": {"policies", "process", "evaluation"},
}
OUTSIDE_ONLY = {"hydra", "omegaconf", "wandb"}  # experiments may; diffopt may not


@functools.cache
def reachable(layer: str) -> frozenset[str]:
    """The layers that `layer` may import: itself and everything below it."""
    return frozenset({layer}).union(*(reachable(below) for below in ARROWS[layer]))


def layer_of(module: str) -> str | None:
    """The layer of a dotted module name in diffopt; None outside it or for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "diffopt" and len(parts) > 1 else None


def imports(path: pathlib.Path) -> list[tuple[int, str]]:
    """Every imported module of a file, also inside functions, as (line, absolute dotted name)."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
    return found


def is_layer(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    layer = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert layer in ARROWS, f"'{layer}' is in no layer; ARROWS knows: {', '.join(ARROWS)}"
    for line, name in imports(path):
        target = layer_of(name)
        if target is not None and is_layer(target):
            assert target in reachable(layer), (
                f"{path.relative_to(ROOT)}:{line}: '{layer}' must not import '{target}'; "
                f"it may import: {', '.join(sorted(reachable(layer)))}"
            )
        assert name.split(".")[0] not in OUTSIDE_ONLY, f"{path.relative_to(ROOT)}:{line}: {name} belongs to experiments"


def test_a_part_names_its_imports_by_layer():
    """`from diffopt import name` at the top of the package would hide an arrow from this test."""
    for path in FILES:
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] == "diffopt" and len(parts) > 1:
                assert is_layer(parts[1]), f"{path.relative_to(ROOT)}:{line}: import '{parts[1]}' from its own module"


def test_the_arrows_have_no_cycle():
    for layer, below in ARROWS.items():
        assert all(layer not in reachable(lower) for lower in below), f"a cycle through '{layer}'"


HEAVY = {"mujoco", "hydra", "omegaconf", "wandb", "cvxpy", "matplotlib", "trimesh"}  # mujoco.mjx is in mujoco
IMPORT = f"""
import sys, time
start = time.process_time()
import jax, jax.numpy, jax.scipy.spatial.transform
middle = time.process_time()
import diffopt
print((time.process_time() - middle) / (middle - start))
print(*sorted({{name.split(".")[0] for name in sys.modules}} & {HEAVY}))
"""


def test_import_is_light():
    """Less time than jax itself takes, and the heavy parts are left until they are asked for."""
    shares, heavy = [], ""
    for _ in range(3):  # processor time, and the best of three: the first may compile bytecode
        done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=True)
        taken, heavy = done.stdout.splitlines()
        shares.append(float(taken))
        if shares[-1] < 1:
            break
    assert heavy == "", f"`import diffopt` also imports: {heavy}"
    assert min(shares) < 1, f"`import diffopt` took {min(shares):.2f} times as long as that of jax"
