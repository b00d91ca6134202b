"""The grasp experiment: configuration, resuming, and one small run from end to end."""

import pathlib

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from rich.console import Console

from experiments import grasp, grasping

CONFIGS = str(pathlib.Path(__file__).resolve().parent.parent / "configs")


def configuration(*overrides: str) -> dict:
    with initialize_config_dir(CONFIGS, version_base=None):
        cfg = compose("grasp", overrides=list(overrides))
    config = {k: v for k, v in OmegaConf.to_container(cfg).items() if k not in ("output", "wandb", "hydra")}
    return config


@pytest.mark.parametrize("name", ["ddim", "ddim_snap", "rejection", "ogd", "ogd_soft"])
def test_every_sampler_of_the_configuration_can_be_built(name):
    import diffopt

    options = dict(configuration(f"sampler={name}")["sampler"])
    assert isinstance(diffopt.samplers.load(options.pop("name"), **options), diffopt.samplers.Sampler)


def test_a_misspelt_choice_is_answered_with_what_exists():
    with pytest.raises(MissingConfigException, match=r"(?s)odg.*ddim_snap.*ogd.*rejection"):
        configuration("sampler=odg")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["trials=0"], "trials=0"),
        (["levels=2.5"], "levels=2.5"),
        (["engine.name=mjx-warp"], "engine=c"),
    ],
)
def test_bad_values_are_refused_before_any_work(overrides, message):
    with pytest.raises(ValueError, match=message):
        grasping.check(configuration(*overrides))


def test_unknown_wandb_mode_is_refused():
    with pytest.raises(ValueError, match="off, offline, online"):
        grasping.log_to_wandb("sometimes", {}, [])


def test_rejection_gets_at_least_the_time_of_the_other():
    assert grasping.matched(one_draw=1.0, budget=3.2).draws == 4
    assert grasping.matched(one_draw=1.0, budget=0.1).draws == 1


def test_the_summary_counts():
    row = {"seconds": 0.001, "evaluations": 16, "compile_seconds": 1.0, "status": "feasible"}
    rows = [row | {"feasible": True, "success": True, "reason": ""}] * 3
    rows += [row | {"feasible": False, "success": False, "reason": "dropped"}]
    summary = grasping.summarise("x", rows)
    assert summary["success"].startswith("75.0 %") and summary["refused"] == 1
    assert summary["reasons"] == {"dropped": 1, "success": 3}


def test_a_run_writes_resumes_and_refuses(tmp_path):
    config = configuration("sampler=ddim_snap", "protocol=none", "trials=3", "chunk=3", "levels=4", "scene=easy")
    console = Console(quiet=True)
    first = grasp.run(config, str(tmp_path / "out"), console)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"config.json", "results.json", "results.csv"}
    assert grasp.run(config, str(tmp_path / "out"), console) == first
    with pytest.raises(FileExistsError, match="seed"):
        grasp.run(config | {"seed": 5}, str(tmp_path / "out"), console)
