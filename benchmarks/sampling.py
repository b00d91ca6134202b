"""What a constrained sample costs against a plain one: `python -m benchmarks.sampling [--n 256] [--levels 16] [--repeats 9]`.

One process, one policy (the shipped one), one scene (Panda with Allegro hand, table and eight obstacles): medians of repeated calls,
samplers taken in turn so that a change of the machine's load meets all of them; compilation is timed apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import diffopt
from diffopt.evaluation.report import plain, provenance
from diffopt.samplers import OGD, Rejection, Snap

SAMPLERS = {
    "ddim, no constraints": None,
    "snap": Snap(),
    "rejection, best of 16": Rejection(),
    "ogd": OGD(),
    "ogd, 4 particles": OGD(particles=4),
    "ogd, least squares": OGD(hard=False),
}


def setting(policy_name: str = "grasp-allegro"):
    """Policy bound to a held-out object, and the constraints of a robot and a cluttered table."""
    policy = diffopt.policies.load(policy_name)
    scene = diffopt.scenes.random_tabletop(jax.random.key(0), diffopt.scenes.objects.held_out(1, seed=0)[0], "medium")
    robot = diffopt.embodiments.load("panda-allegro").at(diffopt.scenes.random_base(jax.random.key(1), scene, "medium"))
    return policy.given(scene.target), robot.constraints | scene.constraints


def measure(n: int, levels: int, repeats: int) -> list[dict]:
    """One row per sampler: compile time, median time per call and its ratio to plain sampling."""
    policy, constraints = setting()
    rows = {}
    for name, sampler in SAMPLERS.items():
        rows[name] = {"sampler": name, "compile_s": _call(policy, constraints, sampler, n, levels, 0)[0], "runs": []}
    for repeat in range(repeats):
        for name, sampler in SAMPLERS.items():
            seconds, result = _call(policy, constraints, sampler, n, levels, 1 + repeat)
            rows[name]["runs"].append(seconds)
            rows[name]["evaluations"] = float(result.stats.evaluations.mean())
            rows[name]["feasible"] = float(result.feasible.mean())
    plain_s = np.median(rows["ddim, no constraints"]["runs"])
    for row in rows.values():
        runs = row.pop("runs")
        row |= {"median_s": float(np.median(runs)), "ms_per_sample": 1e3 * float(np.median(runs)) / n}
        row |= {"ratio": float(np.median(runs) / plain_s), "least_s": min(runs), "most_s": max(runs)}
    return list(rows.values())


def import_seconds() -> float:
    """Median of five imports of diffopt in fresh processes."""
    code = "import time; t = time.perf_counter(); import diffopt; print(time.perf_counter() - t)"
    return float(np.median([float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]))


def _call(policy, constraints, sampler, n, levels, key):
    start = time.perf_counter()
    if sampler is None:
        result = diffopt.sample(policy, n=n, key=key, sampler="ddim", levels=levels)
    else:
        result = diffopt.sample(policy, constraints, n=n, key=key, sampler=sampler, levels=levels)
    jax.block_until_ready(result)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    rows = measure(options.n, options.levels, options.repeats)
    imported = import_seconds()
    table = Table(
        title=f"{options.n} plans, {options.levels} levels, median of {options.repeats}; import {imported:.2f} s"
    )
    for column in ("sampler", "ms a sample", "ratio", "first call s", "evaluations", "feasible"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for row in rows:
        numbers = (f"{row['ms_per_sample']:.3f}", f"{row['ratio']:.2f}", f"{row['compile_s']:.1f}")
        table.add_row(row["sampler"], *numbers, f"{row['evaluations']:.0f}", f"{row['feasible']:.2f}")
    Console().print(table)
    if options.output:
        result = {"rows": rows, "import_s": imported, "n": options.n, "levels": options.levels} | provenance(seed=0)
        options.output.write_text(json.dumps(plain(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
