"""Makes small LeRobot diffusion policies and what LeRobot 0.4.4 itself computes with them, to compare against.

    python make.py state DIR      one of VARIANTS: the files of `save_pretrained`, and expected.safetensors
    python make.py --committed    the two directories beside this file

Runs where `lerobot` is installed, not where diffopt is. Weights come from `weight`, a formula that the tests know too: the directory
`image` therefore ships the shapes of its weights (a ResNet is 45 MB) and not the weights.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SMALL = dict(down_dims=(16, 24), n_groups=4, diffusion_step_embed_dim=8, horizon=8, n_action_steps=4, n_obs_steps=2)
CAMERAS = ("observation.images.front", "observation.images.wrist")
VARIANTS = {
    "state": dict(SMALL, noise_scheduler_type="DDIM", num_inference_steps=10),
    "image": dict(SMALL, cameras=1, crop_shape=(40, 44), noise_scheduler_type="DDIM", num_inference_steps=10),
    "three": dict(
        SMALL, down_dims=(16, 24, 32), horizon=16, prediction_type="sample", beta_schedule="linear", clip_sample=False
    ),
    "cameras": dict(
        SMALL,
        cameras=2,
        use_separate_rgb_encoder_per_camera=True,
        use_group_norm=False,
        use_film_scale_modulation=False,
    ),
    "deep": dict(SMALL, cameras=2, vision_backbone="resnet50", resize_shape=(48, 40), crop_ratio=0.9, n_obs_steps=1),
    "wide": dict(
        down_dims=(512, 1024, 2048),
        cameras=1,
        crop_shape=(84, 84),
        size=(96, 96),
        num_inference_steps=10,
        noise_scheduler_type="DDIM",
    ),
}


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in place of trained ones: a hash of the key and the element's index, scaled so that signals neither die nor explode."""
    with np.errstate(over="ignore"):
        z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(key.encode()) << 32)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        uniform = ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1).reshape(shape)
    if key.endswith("running_var"):
        return (1 + 0.5 * uniform).astype(np.float32)
    if len(shape) < 2:
        is_norm = key.endswith("weight")
        return ((1.0 if is_norm else 0.0) + 0.2 * uniform).astype(np.float32)
    fan_in = np.prod(shape) / shape[0]
    return (uniform * np.sqrt(3 * 1.5 / fan_in)).astype(np.float32)


def make(variant: str, out: Path, ship_weights: bool = True) -> None:
    import torch
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
    from safetensors.numpy import save_file

    options = dict(VARIANTS[variant])
    cameras, size = CAMERAS[: options.pop("cameras", 0)], options.pop("size", (46, 52))
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}
    features |= {camera: PolicyFeature(FeatureType.VISUAL, (3, *size)) for camera in cameras}
    if len(cameras) != 1:
        features |= {"observation.environment_state": PolicyFeature(FeatureType.ENV, (4,))}
    config = DiffusionConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        device="cpu",
        push_to_hub=False,
        **options,
    )
    if len(cameras) != 1:  # LeRobot's defaults leave the environment's state as it is
        config.normalization_mapping["ENV"] = NormalizationMode("MIN_MAX" if variant == "three" else "MEAN_STD")
    rng = np.random.default_rng(0)
    stats = {}
    for name, feature in {**features, "action": config.output_features["action"]}.items():
        shape = (3, 1, 1) if name in cameras else feature.shape
        low = rng.normal(size=shape).astype(np.float32)
        stats[name] = {"min": low, "max": low + rng.uniform(0.5, 2, shape)}
        stats[name] |= {"mean": rng.uniform(0.3, 0.6, shape), "std": rng.uniform(0.2, 0.6, shape)}
        stats[name] = {key: torch.as_tensor(np.asarray(value, np.float32)) for key, value in stats[name].items()}
    policy = DiffusionPolicy(config).eval()
    kept = {
        key: value
        for key, value in policy.state_dict().items()
        if not key.endswith(("pos_grid", "num_batches_tracked"))
    }
    policy.load_state_dict(
        {key: torch.from_numpy(weight(key, tuple(value.shape))) for key, value in kept.items()}, strict=False
    )
    before, after = make_diffusion_pre_post_processors(config, stats)
    policy.save_pretrained(out)
    before.save_pretrained(out)
    after.save_pretrained(out)

    steps, horizon = config.n_obs_steps, config.horizon
    observation = {
        name: rng.normal(size=(steps, *feature.shape)).astype(np.float32) for name, feature in features.items()
    }
    observation |= {camera: rng.uniform(0, 1, (steps, 3, *size)).astype(np.float32) for camera in cameras}
    noise = rng.normal(size=(horizon, 5)).astype(np.float32)
    scheduler, T = policy.diffusion.noise_scheduler, config.num_train_timesteps
    expected = {f"in/{name}": value for name, value in observation.items()} | {"in/noise": noise}
    with torch.no_grad():
        batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
        seen = before(batch)
        seen = {name: seen[name] for name in features}
        if cameras:
            seen["observation.images"] = torch.stack([seen[camera] for camera in cameras], dim=-4)
        condition = policy.diffusion._prepare_global_conditioning(seen)
        expected["condition"] = condition[0].numpy()
        x = torch.from_numpy(noise)[None]
        for step in (0, 37, T - 1):
            expected[f"unet/{step}"] = policy.diffusion.unet(x, torch.tensor([step]), global_cond=condition)[0].numpy()
        expected["abar"] = scheduler.alphas_cumprod.numpy()
        if config.noise_scheduler_type == "DDIM":
            scheduler.set_timesteps(config.num_inference_steps)
            for t in scheduler.timesteps:
                x = scheduler.step(policy.diffusion.unet(x, t[None], global_cond=condition), t, x).prev_sample
            expected["ddim"] = after(x)[0].numpy()
        if variant in ("state", "three"):  # DDPM as LeRobot runs it, with known noise
            from diffusers.schedulers import scheduling_ddpm

            draws = rng.normal(size=(T, horizon, 5)).astype(np.float32)
            drawn = iter(draws)
            scheduling_ddpm.randn_tensor = lambda *_, **__: torch.from_numpy(next(drawn))[None]
            keys = (
                "num_train_timesteps",
                "beta_schedule",
                "beta_start",
                "beta_end",
                "prediction_type",
                "clip_sample",
                "clip_sample_range",
            )
            ddpm = scheduling_ddpm.DDPMScheduler(**{key: getattr(config, key) for key in keys})
            ddpm.set_timesteps(T)
            x = torch.from_numpy(noise)[None]
            for t in ddpm.timesteps:
                x = ddpm.step(policy.diffusion.unet(x, t[None], global_cond=condition), t, x).prev_sample
            expected |= {"in/draws": draws, "ddpm": after(x)[0].numpy()}
    save_file({key: np.ascontiguousarray(value) for key, value in expected.items()}, out / "expected.safetensors")
    if not ship_weights:
        shapes = {key: list(value.shape) for key, value in policy.state_dict().items()}
        (out / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
        (out / "model.safetensors").unlink()


if __name__ == "__main__":
    if sys.argv[1:] == ["--committed"]:
        make("state", HERE / "state")
        make("image", HERE / "image", ship_weights=False)
    else:
        make(sys.argv[1], Path(sys.argv[2]))
