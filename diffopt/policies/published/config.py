"""What LeRobot's config.json of a diffusion policy says, read strictly: defaults changed between releases, so nothing is assumed."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffopt.schedules import Discrete, Parameterisation

PARAMETERISATION: dict[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
MODES = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
_LATER = {"resize_shape": None, "crop_ratio": 1.0}  # fields of later releases, and what earlier ones did
_TRAINING = {  # fields that say how the policy was trained, run or shared, and nothing of what it computes
    *("device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path"),
    *("drop_n_last_frames", "crop_is_random", "pretrained_backbone_weights", "do_mask_loss_for_padding"),
    *("compile_model", "compile_mode", "gradient_checkpointing", "scheduler_name", "scheduler_warmup_steps"),
    *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay"),
}


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One named part of an observation or an action.

    Attributes:
      name: such as "observation.state".
      type: STATE, ENV, VISUAL or ACTION.
      shape: of one step; images are (channels, height, width).
    """

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """The fields of config.json that decide what the policy computes, under their own names."""

    type: str
    n_obs_steps: int
    horizon: int
    n_action_steps: int
    input_features: tuple[Feature, ...]
    output_features: tuple[Feature, ...]
    normalization_mapping: dict[str, str]
    vision_backbone: str
    resize_shape: tuple[int, int] | None
    crop_ratio: float
    crop_shape: tuple[int, int] | None
    use_group_norm: bool
    spatial_softmax_num_keypoints: int
    use_separate_rgb_encoder_per_camera: bool
    down_dims: tuple[int, ...]
    kernel_size: int
    n_groups: int
    diffusion_step_embed_dim: int
    use_film_scale_modulation: bool
    noise_scheduler_type: str
    num_train_timesteps: int
    beta_schedule: str
    beta_start: float
    beta_end: float
    prediction_type: str
    clip_sample: bool
    clip_sample_range: float
    num_inference_steps: int | None

    def of_type(self, type: str) -> tuple[Feature, ...]:
        """The observed features of a type, in order."""
        return tuple(feature for feature in self.input_features if feature.type == type)

    @property
    def action(self) -> Feature:
        return self.output_features[0]

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width of the centre that the backbone sees: derived where images are resized, as LeRobot does."""
        if self.resize_shape is None:
            return self.crop_shape
        height, width = self.resize_shape
        return (int(height * self.crop_ratio), int(width * self.crop_ratio)) if self.crop_ratio < 1 else None

    @property
    def condition(self) -> int:
        """Length of the network's condition."""
        images = len(self.of_type("VISUAL")) * 2 * self.spatial_softmax_num_keypoints
        return self.n_obs_steps * (images + sum(f.shape[0] for kind in ("STATE", "ENV") for f in self.of_type(kind)))

    @property
    def schedule(self) -> Discrete:
        return Discrete(self.num_train_timesteps, self.beta_schedule, self.beta_start, self.beta_end)  # type: ignore[arg-type]

    @property
    def executed(self) -> tuple[int, int]:
        """The steps of the chunk that LeRobot executes: from the present one on."""
        return self.n_obs_steps - 1, self.n_obs_steps - 1 + self.n_action_steps


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}; it has: {', '.join(sorted(p.name for p in path.parent.glob('*')))}"
        )
    return json.loads(path.read_text())


def read_config(path: Path) -> LeRobotConfig:
    """A config.json; a ValueError that names unknown and missing fields, and values that are not supported."""
    raw = read_json(path)
    names = {field.name for field in fields(LeRobotConfig)}
    check_keys(path, set(raw), required=names - set(_LATER), allowed=names | _TRAINING)
    values = {name: _LATER[name] if name in _LATER and name not in raw else raw[name] for name in names}
    for side in ("input_features", "output_features"):
        values[side] = tuple(Feature(name=n, type=f["type"], shape=tuple(f["shape"])) for n, f in raw[side].items())
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    config = LeRobotConfig(**values)
    for field, supported in (
        ("type", ("diffusion",)),
        ("prediction_type", tuple(PARAMETERISATION)),
        ("noise_scheduler_type", ("DDPM", "DDIM")),
        ("beta_schedule", ("squaredcos_cap_v2", "linear")),
    ):
        if getattr(config, field) not in supported:
            raise ValueError(f"{path}: {field} is {getattr(config, field)!r}; supported: {', '.join(supported)}")
    for type, mode in config.normalization_mapping.items():
        if mode not in MODES:
            raise ValueError(f"{path}: {type} is normalised by {mode!r}; supported: {', '.join(MODES)}")
    _check_features(path, config)
    return config


def _check_features(path: Path, config: LeRobotConfig) -> None:
    types = [feature.type for feature in config.input_features]
    axes = {"STATE": 1, "ENV": 1, "VISUAL": 3}
    wrong = [feature.name for feature in config.input_features if axes.get(feature.type) != len(feature.shape)]
    if wrong or types.count("STATE") != 1 or types.count("ENV") > 1:
        raise ValueError(
            f"{path}: expected one STATE vector, at most one ENV vector and VISUAL images (C, H, W); got {config.input_features}"
        )
    if len(config.output_features) != 1 or config.action.type != "ACTION" or len(config.action.shape) != 1:
        raise ValueError(f"{path}: expected one ACTION vector among the outputs; got {config.output_features}")
    images = {feature.shape for feature in config.of_type("VISUAL")}
    if len(images) > 1 or any(shape[0] != 3 for shape in images):
        raise ValueError(f"{path}: images have to be of one size, with 3 channels; got {sorted(images)}")
    for shape in images:
        size, crop = config.resize_shape or shape[1:], config.crop
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            raise ValueError(f"{path}: a crop of {crop} does not fit into an image of {size}")


def check_keys(where: Any, found: set[str], *, required: set[str], allowed: set[str]) -> None:
    """A ValueError that names what is missing and what is unknown."""
    missing, unknown = sorted(required - found), sorted(found - allowed)
    if missing or unknown:
        raise ValueError(
            f"{where}: missing: {', '.join(missing) or 'nothing'}; unknown: {', '.join(unknown) or 'nothing'}"
        )
