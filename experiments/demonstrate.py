"""Make demonstrations of a visuomotor task: `python -m experiments.demonstrate task=pick-place` (resumes: files that exist are kept)."""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from diffopt.tasks import visuomotor
from diffopt.tasks.workcell import Workcell
from diffopt.training.demonstrations import Noise, make_shards


@hydra.main(version_base=None, config_path="../configs", config_name="demonstrate")
def main(cfg: DictConfig) -> None:
    began = time.perf_counter()

    def report(made: int, tried: int, moments: int) -> None:
        rate = f"{made} of {tried} succeeded ({100 * made / tried:.1f} %)"
        print(f"{rate}, {moments} moments, {time.perf_counter() - began:.0f} s", flush=True)

    cell = Workcell(visuomotor.load(cfg.task), size=cfg.size)
    make_shards(Path(cfg.folder), cell, cfg.count, cfg.per_shard, Noise(**cfg.noise), report)
    cell.close()


if __name__ == "__main__":
    main()
