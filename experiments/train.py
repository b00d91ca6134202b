"""Train the grasp prior on the shards of `experiments.synthesize`, test it in physics, save weights and card:
`python -m experiments.train` (resumes from its folder)."""

import sys
from pathlib import Path

import hydra
import jax
import numpy as np
from omegaconf import DictConfig

from diffopt.evaluation.statistics import wilson
from diffopt.policies import checkpoint
from diffopt.scenes import objects
from diffopt.training.dataset import basis_points, load_data
from diffopt.training.quality import sample_floating
from diffopt.training.trainer import TrainConfig, train
from experiments.settings import settings
from experiments.synthesize import versions


def test(policy, cfg: dict) -> dict:
    """Success of plain DDIM samples on held-out objects, and on those with published dimensions."""
    from diffopt.physics import load_engine
    from diffopt.tasks.floating_grasp import FloatingHand, evaluate

    hand, engine = FloatingHand.load("allegro"), load_engine("c", threads=cfg["threads"])
    result = {}
    for name, targets in (
        ("held_out", objects.held_out(cfg["objects"], cfg["seed"])),
        ("benchmark", objects.benchmark()),
    ):
        each = cfg["each"] if name == "held_out" else 20
        grasps, which = sample_floating(
            policy, targets, each, jax.random.key(cfg["seed"]), levels=cfg["levels"], eta=cfg["eta"]
        )
        outcome = evaluate(hand, targets, grasps, which, protocol=cfg["protocol"], engine=engine)
        interval = wilson(int(outcome.success.sum()), len(outcome))
        groups = {}
        for i, ok in zip(which, outcome.success, strict=True):
            groups.setdefault(targets[i].family if name == "held_out" else targets[i].name, []).append(bool(ok))
        result[name] = dict(
            protocol=outcome.protocol,
            sampler=f"DDIM, {cfg['levels']} levels, eta {cfg['eta']}",
            objects=len(targets),
            trials=len(outcome),
            success=round(float(outcome.success.mean()), 4),
            interval95=[round(float(interval.low), 4), round(float(interval.high), 4)],
            object_success=round(float(np.mean([outcome.success[which == i].any() for i in range(len(targets))])), 4),
            groups={k: round(float(np.mean(v)), 3) for k, v in sorted(groups.items())},
            seed=cfg["seed"],
            failures={r: outcome.reason.count(r) for r in sorted(set(outcome.reason)) if r},
        )
        print(name, result[name], flush=True)
    return result


@hydra.main(version_base=None, config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    values = settings(cfg)
    config = TrainConfig(**values["train"])
    basis = basis_points()
    data, about = load_data(cfg.data, basis, cfg.sample_weight)
    repairs, about_repairs = (None, None) if cfg.repairs is None else load_data(cfg.repairs, basis)
    start = None if cfg.start is None else checkpoint.load(cfg.start)
    print(about, about_repairs, flush=True)

    def report(step: int, loss: float, seconds: float) -> None:
        if step % 500 == 0:
            print(f"step {step}/{config.steps}  loss {loss:.4f}  {seconds:.0f} s", flush=True)

    policy, steps = train(
        data, basis, config, Path(cfg.folder), report, deadline=60 * cfg.minutes, start=start, repairs=repairs
    )
    card = dict(
        data=about,
        repairs=about_repairs,
        training=values["train"] | dict(steps_done=steps),
        command=" ".join(["python -m experiments.train", *sys.argv[1:]]),
        versions=versions(),
        device=f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    )
    output = Path(cfg.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(policy, output, card)
    checkpoint.save(policy, output, card | dict(test=test(policy, values["test"])))


if __name__ == "__main__":
    main()
