"""Run a visuomotor policy with its floating gripper, in a closed loop on held-out placements:
`python -m experiments.visuomotor task=pick-place episodes=300`. The results folder resumes. On arms: `experiments.arms`."""

from __future__ import annotations

from dataclasses import asdict

import hydra
import jax
from omegaconf import DictConfig
from rich.console import Console

import diffopt
from diffopt.evaluation.closed_loop import Propose, run
from diffopt.evaluation.report import open_results, table
from diffopt.evaluation.statistics import wilson
from diffopt.policies import checkpoint
from diffopt.tasks import visuomotor
from diffopt.tasks.workcell import Workcell
from experiments.settings import settings

COLUMNS = {"task": "task", "episodes": "episodes", "success": "success %", "time": "seconds"}


def proposer(policy, sampler: str, levels: int, eta: float, seed: int) -> Propose:
    """Chunks of that sampler without constraints, for a batch of observations."""

    @jax.jit
    def propose(policy, views, seeds):
        def one(view, mark):
            key = jax.random.fold_in(jax.random.key(seed), mark)
            return diffopt.sample(policy.given(view), n=1, key=key, sampler=sampler, levels=levels, eta=eta).plans

        return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(views, seeds))

    return lambda views, seeds: propose(policy, views, seeds)


@hydra.main(version_base=None, config_path="../configs/visuomotor", config_name="closed_loop")
def main(cfg: DictConfig) -> None:
    config = settings(cfg)
    console, output, record = Console(), config.pop("output"), config.pop("record")
    policy = diffopt.policies.load(config["policy"])
    cell = Workcell(visuomotor.load(config["task"]), size=policy.encoder.images[2])
    propose = proposer(policy, config["sampler"], config["levels"], config["eta"], config["seed"])
    results = open_results(output, config)
    every = range(visuomotor.HELD_OUT, visuomotor.HELD_OUT + config["episodes"])
    size = config["batch"]
    for first in range(0, len(every), size):
        seeds = [s for s in every[first : first + size] if not results.done(str(s))]
        if seeds:
            done = run(cell, propose, seeds, execute=config["execute"], batch=size)
            results.extend({str(r.seed): asdict(r) for r in done})
            rows = results.rows()
            console.print(f"{sum(r['success'] for r in rows)} of {len(rows)}")
    rows = results.rows()
    rate = wilson(sum(r["success"] for r in rows), len(rows))
    times = sorted(r["time"] for r in rows if r["success"])
    summary = [
        dict(
            task=config["task"],
            episodes=len(rows),
            success=str(rate),
            time=times[len(times) // 2] if times else None,
        )
    ]
    results.finish(summary, config["seed"])
    if record:
        checkpoint.annotate(
            config["policy"], dict(test=dict(config, success=rate.estimate, interval95=[rate.low, rate.high]))
        )
    console.print(table("closed loop, held-out placements", COLUMNS, summary))
    cell.close()


if __name__ == "__main__":
    main()
