"""Checkpoints of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137), converted by `published.convert`, as policies.

Two of the project's policies have the layout that LeRobot took over: the UNet over low-dimensional observations, and the UNet with
robomimic's encoder ("hybrid": ResNet 18, a 1 x 1 convolution, spatial softmax, a linear layer, relu), one for each camera. The condition
is, step after step, what `shape_meta` names, in its order. Values are normalised as v scale + offset by what the checkpoint holds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from diffopt.plans import ActionChunkSpec, PlanSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.policies.published import weights as layout
from diffopt.policies.published.config import PARAMETERISATION, Feature
from diffopt.policies.published.denoiser import ActionDenoiser
from diffopt.policies.published.hydra_config import read_fields, resolved
from diffopt.policies.published.lerobot import LAST_GROUPS, LeRobotEncoder
from diffopt.policies.resnet import ResNetEncoder
from diffopt.policies.unet import ConditionalUnet1D
from diffopt.schedules import Discrete

_LOWDIM, _HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetHybridImagePolicy"
_UNET = {"diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups", "cond_predict_scale"}
_NEEDED = {"_target_", "noise_scheduler", "horizon", "n_action_steps", "n_obs_steps", "obs_as_global_cond"}
_SCHEDULER = {
    "_target_",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "clip_sample",
    "prediction_type",
}
_IDLE = {"num_inference_steps", "variance_type", "set_alpha_to_one", "steps_offset"}  # of how the project samples

Arrays = dict[str, np.ndarray]


def from_diffusion_policy(directory: str | Path, *, spec: PlanSpec | None = None, support: float = math.inf) -> Policy:
    """A policy of Diffusion Policy as one that can be sampled under constraints.

    Args:
      directory: that `python -m diffopt.policies.published.convert latest.ckpt directory` wrote.
      spec, support: as in `from_lerobot`.

    Returns:
      A policy whose `given` takes a mapping from the names of `shape_meta` ("obs" for the low-dimensional policy) to arrays, as that of
      `from_lerobot` does.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: that names what is missing, unknown, not supported or of another shape.
    """
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"{directory} has no {name}; convert a checkpoint to it first: diffopt.policies.published.convert"
            )
    card = json.loads((directory / "config.json").read_text())
    if card.get("format") != "diffusion_policy" or not isinstance(card.get("config"), dict):
        raise ValueError(
            f"{directory / 'config.json'} is not what the converter writes for a checkpoint of Diffusion Policy"
        )
    where, arrays = str(directory / "model.safetensors"), load_file(directory / "model.safetensors")
    fields = _read(card["config"], directory / "config.json")
    sizes = [_features(f, arrays, where) for f in fields["features"]]
    condition = fields["n_obs_steps"] * sum(sizes)
    denoiser, used = _denoiser(arrays, fields, condition, where)
    encoders = []
    for feature in fields["features"]:
        if feature.type == "VISUAL":
            encoders.append(_eye(arrays, feature, fields, where))
            used |= encoders[-1][2]
    normalizers = {f.name: _normalizer(arrays, f.name, f.shape[0], where) for f in fields["features"]}
    action = _normalizer(arrays, "action", fields["action"], where)
    idle = ("normalizer.", "mask_generator.", "_dummy_variable", "obs_encoder.obs_randomizers.")
    if unknown := sorted(key for key in set(arrays) - used if not key.startswith(idle)):
        raise ValueError(
            f"{where} has {len(unknown)} arrays that the configuration does not account for: {', '.join(unknown[:4])}"
        )
    horizon, width = fields["horizon"], fields["action"]
    spec = spec or ActionChunkSpec(horizon=horizon, width=width, executed=fields["executed"])
    if spec.dim != horizon * width:
        raise ValueError(f"the policy's chunk has {horizon} x {width} numbers; {type(spec).__name__} takes {spec.dim}")
    return Policy(
        name=directory.resolve().name,
        denoiser=denoiser,
        encoder=LeRobotEncoder(
            weights=tuple(weights for _, weights, _ in encoders),
            normalizers=normalizers,
            graphs=tuple(graph for graph, _, _ in encoders),
            features=fields["features"],
            rename=(),
            steps=fields["n_obs_steps"],
            resize=None,
            crop=fields["crop"],
        ),
        normalizer=Normalizer(mean=jnp.tile(action.mean, horizon), scale=jnp.tile(action.scale, horizon)),
        schedule=denoiser.schedule,
        spec=spec,
        support=support,
        executed=fields["executed"],
    )


def _read(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """What decides a number, checked."""
    target = str(resolved(config, "policy._target_", where)).rsplit(".", 1)[-1]
    if target not in (_LOWDIM, _HYBRID):
        raise ValueError(
            f"{where}: the policy is a {target}; supported are {_LOWDIM} and {_HYBRID}, whose networks and encoders are laid out as "
            "LeRobot's. Other image policies of the project average their maps or take pretrained encoders; its transformers are not ours"
        )
    policy = resolved(config, "policy", where)
    if target == _LOWDIM:
        named = {"model", "obs_dim", "action_dim", "obs_as_local_cond", "pred_action_steps_only", "oa_step_convention"}
        fields = read_fields(policy, _NEEDED | named, {"num_inference_steps"}, f"{where}, policy")
        inputs = {"_target_", "input_dim", "local_cond_dim", "global_cond_dim"}
        fields |= read_fields(fields.pop("model"), _UNET, inputs, f"{where}, policy.model")
        fields |= dict(
            features=(Feature(name="obs", type="STATE", shape=(fields["obs_dim"],)),),
            action=fields["action_dim"],
            crop=None,
            group_norm=False,
        )
        refused = fields["obs_as_local_cond"] or fields["pred_action_steps_only"] or not fields["oa_step_convention"]
    else:
        named = {"shape_meta", "crop_shape", "obs_encoder_group_norm", "eval_fixed_crop"}
        fields = read_fields(policy, _NEEDED | _UNET | named, {"num_inference_steps"}, f"{where}, policy")
        meta = fields["shape_meta"]
        types = {"rgb": "VISUAL", "low_dim": "STATE"}
        fields["features"] = tuple(
            Feature(name=name, type=types.get(value.get("type", "low_dim"), "unknown"), shape=tuple(value["shape"]))
            for name, value in meta["obs"].items()
        )
        images = {f.shape for f in fields["features"] if f.type == "VISUAL"}
        if len(images) > 1 or any(f.type == "unknown" for f in fields["features"]):
            raise ValueError(f"{where}: expected low_dim vectors and rgb images of one size; got {meta['obs']}")
        fields["action"] = meta["action"]["shape"][0]
        fields["crop"] = None if fields["crop_shape"] is None else tuple(fields["crop_shape"])
        fields["group_norm"] = fields["obs_encoder_group_norm"]
        refused = (
            fields["crop"] is not None and not fields["eval_fixed_crop"]
        )  # a crop at random, also when it is evaluated
    if refused or not fields["obs_as_global_cond"]:
        raise ValueError(
            f"{where}: supported are observations as global condition, crops fixed at evaluation, whole chunks, and actions that "
            "begin at the last observation; the configuration says otherwise"
        )
    scheduler = read_fields(fields["noise_scheduler"], _SCHEDULER, _IDLE, f"{where}, policy.noise_scheduler")
    if scheduler["prediction_type"] not in PARAMETERISATION or scheduler["beta_schedule"] not in (
        "squaredcos_cap_v2",
        "linear",
    ):
        raise ValueError(
            f"{where}: prediction_type {scheduler['prediction_type']!r}, beta_schedule {scheduler['beta_schedule']!r}; supported: "
            f"{', '.join(PARAMETERISATION)}; squaredcos_cap_v2, linear"
        )
    first = fields["n_obs_steps"] - 1
    return fields | scheduler | dict(executed=(first, first + fields["n_action_steps"]))


def _net(feature: Feature) -> str:
    return f"obs_encoder.obs_nets.{feature.name}."


def _features(feature: Feature, arrays: Arrays, where: str) -> int:
    """How many numbers the condition has of a feature at one step; an image's encoder has to end as LeRobot's does."""
    if feature.type != "VISUAL":
        return feature.shape[0]
    keys = [_net(feature) + name for name in ("pool.nets.weight", "nets.3.weight")]
    shapes = [arrays[key].shape if key in arrays else None for key in keys]
    if shapes[0] is None or shapes[1] != (2 * shapes[0][0],) * 2:
        raise ValueError(
            f"{where}: the encoder of {feature.name!r} does not end in spatial softmax and a square linear layer, as LeRobot's does: "
            f"{dict(zip(keys, shapes, strict=True))}"
        )
    return 2 * shapes[0][0]


def _denoiser(arrays: Arrays, fields: dict[str, Any], condition: int, where: str) -> tuple[ActionDenoiser, set[str]]:
    unet = nnx.eval_shape(
        lambda: ConditionalUnet1D(
            dim=fields["action"],
            condition=condition,
            widths=tuple(fields["down_dims"]),
            kernel=fields["kernel_size"],
            groups=fields["n_groups"],
            last_groups=LAST_GROUPS,
            embedding=fields["diffusion_step_embed_dim"],
            film_scale=fields["cond_predict_scale"],
            rngs=nnx.Rngs(0),
        )
    )
    graph, weights, used = layout.fill(unet, arrays, "model.", layout.diffusion_policy_key, where)
    denoiser = ActionDenoiser(
        weights=weights,
        graph=graph,
        schedule=Discrete(
            fields["num_train_timesteps"], fields["beta_schedule"], fields["beta_start"], fields["beta_end"]
        ),
        width=fields["action"],
        parameterisation=PARAMETERISATION[fields["prediction_type"]],
        clip=1.0 if fields["clip_sample"] else None,
    )
    return denoiser, used


def _eye(arrays: Arrays, feature: Feature, fields: dict[str, Any], where: str) -> tuple[Any, Any, set[str]]:
    """Graph and weights of a camera's encoder, and the keys that stand for it: robomimic names its layers twice."""
    root = _net(feature)
    resnet = nnx.eval_shape(
        lambda: ResNetEncoder(
            "resnet18", count=len(arrays[root + "pool.nets.weight"]), group_norm=fields["group_norm"], rngs=nnx.Rngs(0)
        )
    )
    graph, weights, _ = layout.fill(resnet, arrays, root, layout.robomimic_key, where)
    h, w = (math.ceil(side / 32) for side in fields["crop"] or feature.shape[1:])
    x, y = np.meshgrid(np.linspace(-1.0, 1.0, w), np.linspace(-1.0, 1.0, h))
    for name, places in (("pos_x", x), ("pos_y", y), ("temperature", np.ones(1))):
        found = arrays.get(f"{root}pool.{name}")
        if (
            found is None
            or found.size != places.size
            or not np.allclose(found.reshape(-1), places.reshape(-1), atol=1e-5)
        ):
            raise ValueError(f"{where}: {root}pool.{name} is not that of {h} x {w} places at temperature 1")
    return graph, weights, {key for key in arrays if key.startswith(root)}


def _normalizer(arrays: Arrays, name: str, count: int, where: str) -> Normalizer:
    """z = v scale + offset as (v - mean)/scale."""
    keys = [f"normalizer.params_dict.{name}.{part}" for part in ("scale", "offset")]
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    scale, offset = (np.asarray(arrays[key], np.float32).reshape(-1) for key in keys)
    if (
        scale.size not in (1, count)
        or offset.size != scale.size
        or not (np.isfinite(offset).all() and (scale != 0).all())
    ):
        raise ValueError(
            f"{where}: the normaliser of {name!r} does not fit {count} numbers: scale {scale}, offset {offset}"
        )
    ones = np.ones(count, np.float32)
    return Normalizer(mean=jnp.asarray(-offset / scale * ones), scale=jnp.asarray(ones / scale))
