"""Make training grasps: `python -m experiments.synthesize` (resumes: shards that exist are kept)."""

import importlib.metadata
import subprocess
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from diffopt.training.data import ShardConfig, make_shards
from diffopt.training.synthesis import SynthesisConfig
from experiments.settings import settings


def versions() -> dict:
    """Versions of what the data depends on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {name: importlib.metadata.version(name) for name in ("jax", "mujoco", "numpy")} | {
        "commit": commit or "unknown"
    }


@hydra.main(version_base=None, config_path="../configs", config_name="synthesize")
def main(cfg: DictConfig) -> None:
    values = settings(cfg)
    config = ShardConfig(**values["config"], synthesis=SynthesisConfig(**values["synthesis"]))
    began, total = time.perf_counter(), dict(starts=0, tried=0, passed=0)

    def report(stats: dict) -> None:
        for name in total:
            total[name] += stats[name]
        rate = total["passed"] / (time.perf_counter() - began)
        print(f"{stats}  total {total}  {rate:.2f} valid grasps/s", flush=True)

    make_shards(Path(cfg.folder), cfg.shards, cfg.seed, config, versions(), report, cfg.threads, cfg.prior)


if __name__ == "__main__":
    main()
