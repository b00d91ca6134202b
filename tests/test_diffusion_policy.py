"""Checkpoints of Diffusion Policy, whose image policy has the layout that LeRobot took over: LeRobot's numbers come out of its files too.

The committed LeRobot policy is written under the names and in the order of the original project, which is what the oracle is: the numbers
that LeRobot computed from the same weights.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_lerobot import DATA, PARITY, expectation, make

from diffopt.policies import from_diffusion_policy
from diffopt.policies.published.denoiser import ddim
from diffopt.policies.published.hydra_config import resolved

STATE, CAMERA = "agent_pos", "front"
SCHEDULER = dict(
    _target_="diffusers.schedulers.scheduling_ddim.DDIMScheduler",
    num_train_timesteps=100,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule="squaredcos_cap_v2",
    clip_sample=True,
    prediction_type="epsilon",
    set_alpha_to_one=True,
    steps_offset=0,
)


def config_of(lerobot):
    """The training configuration of the original project that says what LeRobot's says, with its interpolations."""
    return dict(
        horizon=lerobot["horizon"],
        n_obs_steps=2,
        n_action_steps=3,
        n_latency_steps=1,
        task=dict(
            shape_meta=dict(
                obs={
                    CAMERA: dict(shape=lerobot["input_features"]["observation.images.front"]["shape"], type="rgb"),
                    STATE: dict(shape=[3], type="low_dim"),
                },
                action=dict(shape=[5]),
            )
        ),
        shape_meta="${task.shape_meta}",
        policy=dict(
            _target_="diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
            shape_meta="${shape_meta}",
            noise_scheduler=SCHEDULER,
            horizon="${horizon}",
            n_action_steps="${eval:'${n_action_steps}+${n_latency_steps}'}",
            n_obs_steps="${n_obs_steps}",
            num_inference_steps=8,
            obs_as_global_cond=True,
            crop_shape=lerobot["crop_shape"],
            diffusion_step_embed_dim=lerobot["diffusion_step_embed_dim"],
            down_dims=lerobot["down_dims"],
            kernel_size=lerobot["kernel_size"],
            n_groups=lerobot["n_groups"],
            cond_predict_scale=True,
            obs_encoder_group_norm=True,
            eval_fixed_crop=True,
        ),
    )


def renamed(key):
    """Where the original project keeps a weight of LeRobot's: one name, or two."""
    if key.startswith("diffusion.unet."):
        key = re.sub(
            r"conv([12])\.block", lambda m: f"blocks.{int(m[1]) - 1}.block", key.removeprefix("diffusion.unet.")
        )
        return ["model." + re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", key)]
    root, key = f"obs_encoder.obs_nets.{CAMERA}.", key.removeprefix("diffusion.rgb_encoder.")
    for layer, (name, more) in enumerate((("backbone.", "nets."), ("pool.", ""))):
        if key.startswith(name):
            rest = more + key.removeprefix(name)
            return [f"{root}{name}{rest}", f"{root}nets.{layer}.{rest}"]
    return [root + key.replace("out.", "nets.3.")]


def image_first(weight, images, state, steps):
    """Columns of a layer over (diffusion step, per step [state, image]), for [image, state]."""
    head = weight.shape[1] - steps * (images + state)
    at = np.arange(head, weight.shape[1]).reshape(steps, -1)
    return np.concatenate(
        [weight[:, :head], weight[:, np.concatenate([at[:, state:], at[:, :state]], axis=1).reshape(-1)]], axis=1
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    out, source = tmp_path_factory.mktemp("diffusion_policy"), DATA / "image"
    lerobot, arrays = json.loads((source / "config.json").read_text()), {}
    for key, shape in json.loads((source / "shapes.json").read_text()).items():
        if key.endswith("pos_grid"):
            for name, grid in (("pos_x", [-1, 1, -1, 1]), ("pos_y", [-1, -1, 1, 1]), ("temperature", [1])):
                for new in renamed(f"diffusion.rgb_encoder.pool.{name}"):
                    arrays[new] = np.array(grid, np.float32)[None]
            continue
        weight = make().weight(key, tuple(shape))
        if key.endswith("cond_encoder.1.weight"):
            weight = image_first(weight, 64, 3, 2)
        arrays |= {new: weight for new in renamed(key)}
    statistics = load_file(source / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    for name, theirs in ((STATE, "observation.state"), ("action", "action")):
        low, high = (statistics[f"{theirs}.{part}"] for part in ("min", "max"))
        scale = 2 / (high - low)
        arrays |= {
            f"normalizer.params_dict.{name}.scale": scale,
            f"normalizer.params_dict.{name}.offset": -1 - scale * low,
            f"normalizer.params_dict.{name}.input_stats.min": low,
        }
    mean, std = (statistics[f"observation.images.front.{part}"].reshape(-1) for part in ("mean", "std"))
    arrays |= {
        f"normalizer.params_dict.{CAMERA}.scale": 1 / std,
        f"normalizer.params_dict.{CAMERA}.offset": -mean / std,
        "_dummy_variable": np.zeros(0, np.float32),
        "mask_generator._dummy_variable": np.zeros(0, np.float32),
    }
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, out / "model.safetensors")
    card = dict(format="diffusion_policy", weights="ema_model", source="latest.ckpt", config=config_of(lerobot))
    (out / "config.json").write_text(json.dumps(card))
    return out


def test_numbers_are_those_of_the_same_weights(directory):
    expected, observation = expectation(DATA / "image")
    seen = {CAMERA: observation["observation.images.front"], STATE: observation["observation.state"]}
    policy = from_diffusion_policy(directory).given(seen).bound()
    steps = expected["condition"].reshape(2, -1)
    np.testing.assert_allclose(
        policy.context.condition, np.concatenate([steps[:, 3:], steps[:, :3]], axis=1).reshape(-1), atol=PARITY
    )
    found = policy.decode(ddim(policy, jnp.asarray(expected["in/noise"]).reshape(-1), 10)).actions
    np.testing.assert_allclose(found, expected["ddim"], atol=PARITY)
    assert policy.executed == (1, 5)


def altered(directory, tmp_path, change=lambda config: None, weights=lambda arrays: None):
    card, arrays = json.loads((directory / "config.json").read_text()), load_file(directory / "model.safetensors")
    change(card["config"]["policy"])
    weights(arrays)
    (tmp_path / "config.json").write_text(json.dumps(card))
    save_file(arrays, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(_target_="diffusion_policy.policy.x.DiffusionUnetImagePolicy"),
            "is a DiffusionUnetImagePolicy; supported are",
        ),
        (dict(eval_fixed_crop=False), "crops fixed at evaluation"),
        (dict(obs_as_global_cond=False), "observations as global condition"),
        (dict(horizon="${nothing}"), "lacks 'nothing'"),
        (dict(horizon="${eval:'__import__(\"os\")'}"), "understood are"),
        (dict(attention=3), "missing: nothing; unknown: attention"),
        (dict(noise_scheduler=SCHEDULER | dict(prediction_type="score")), "prediction_type 'score'"),
    ],
)
def test_what_is_not_supported_is_named(change, message, directory, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_diffusion_policy(altered(directory, tmp_path, lambda policy: policy.update(change)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            f"obs_encoder.obs_nets.{CAMERA}.nets.3.weight",
            np.zeros((32, 64)),
            "does not end in spatial softmax and a square",
        ),
        (
            f"obs_encoder.obs_nets.{CAMERA}.pool.temperature",
            np.full((1, 1), 2.0),
            "pool.temperature is not that of 2 x 2",
        ),
        ("obs_encoder.extra", np.zeros(3), "1 arrays that the configuration does not account for: obs_encoder.extra"),
        ("normalizer.params_dict.action.scale", np.zeros(5), "normaliser of 'action' does not fit"),
    ],
)
def test_weights_that_do_not_fit_are_refused(key, value, message, directory, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_diffusion_policy(
            altered(directory, tmp_path, weights=lambda arrays: arrays.update({key: value.astype(np.float32)}))
        )


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; convert a checkpoint"):
        from_diffusion_policy(tmp_path)


def test_interpolations_are_followed_and_nothing_is_run():
    config = {"a": {"b": 3}, "c": "${a.b}", "d": {"e": ["${c}", "${eval:'${c}+${a.b}+2'}"]}, "loop": "${loop}"}
    assert resolved(config, "d", "here") == {"e": [3, 8]}
    with pytest.raises(ValueError, match="round in circles"):
        resolved(config, "loop", "here")
