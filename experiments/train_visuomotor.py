"""Train a visuomotor policy on the demonstrations of `experiments.demonstrate`, and save weights and card:
`python -m experiments.train_visuomotor task=pick-place` (resumes from its folder). `experiments.visuomotor` tests it."""

import sys
from pathlib import Path

import hydra
import jax
from omegaconf import DictConfig

from diffopt.policies import checkpoint
from diffopt.training import demonstrations
from diffopt.training.visuomotor import Stage, VisuomotorConfig, train
from experiments.settings import settings
from experiments.synthesize import versions


@hydra.main(version_base=None, config_path="../configs", config_name="train_visuomotor")
def main(cfg: DictConfig) -> None:
    values = settings(cfg)
    recipe = values["train"]
    config = VisuomotorConfig(**recipe | {name: Stage(**recipe[name]) for name in ("eyes", "chunks")})
    data = demonstrations.load(Path(cfg.data))
    print(f"{data.episodes} demonstrations, {len(data)} moments", flush=True)

    def report(stage: str, step: int, loss: float, held_out: float, seconds: float) -> None:
        print(f"{stage} {step}  loss {loss:.4f}  held out {held_out:.4f}  {seconds:.0f} s", flush=True)

    policy, steps = train(data, config, Path(cfg.folder), report, cfg.name, 60 * cfg.minutes)
    card = dict(
        data=dict(task=cfg.task, folder=cfg.data, episodes=data.episodes, moments=len(data)),
        training=recipe | dict(steps_done=steps),
        command=" ".join(["python -m experiments.train_visuomotor", *sys.argv[1:]]),
        versions=versions(),
        device=f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    )
    Path(cfg.output).parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(policy, cfg.output, card)


if __name__ == "__main__":
    main()
