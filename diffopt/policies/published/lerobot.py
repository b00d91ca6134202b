"""Diffusion policies saved by LeRobot, without LeRobot and PyTorch: the same numbers from the same files.

A directory holds config.json, model.safetensors, and either policy_preprocessor.json and policy_postprocessor.json with the files that they
name (since LeRobot 0.4) or the normaliser's buffers among the weights (before).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped
from safetensors.numpy import load_file

from diffopt.plans import ActionChunkSpec, PlanSpec
from diffopt.policies.base import Context, Normalizer, Policy
from diffopt.policies.published import weights as layout
from diffopt.policies.published.config import PARAMETERISATION, Feature, LeRobotConfig, read_config
from diffopt.policies.published.denoiser import ActionDenoiser
from diffopt.policies.published.processors import Arrays, read_processors
from diffopt.policies.resnet import ResNetEncoder
from diffopt.policies.unet import ConditionalUnet1D

LAST_GROUPS = 8  # of the last group norm, which does not follow `n_groups`


def from_lerobot(directory: str | Path, *, spec: PlanSpec | None = None, support: float = math.inf) -> Policy:
    """A diffusion policy that LeRobot saved, as a policy that can be sampled under constraints.

    Args:
      directory: with the files named in the module's docstring.
      spec: what the H actions of D numbers mean, one row after the other, in the units of the data; by default an `ActionChunkSpec`, whose
        plan is the array of actions.
      support: as in `Policy`, in normalised coordinates; min-max normalised actions of the training data lie within 1.

    Returns:
      A policy whose `given` takes a mapping from the names of the observed features to arrays with a first axis of `n_obs_steps`, the
      present last: vectors (n_obs, S) in the units of the data, and images (n_obs, h, w, 3) or (n_obs, 3, h, w), uint8 or float in
      [0, 1]; see `LeRobotEncoder`.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: that names what in the files is missing, unknown, not supported or of another shape.
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    if not (directory / "model.safetensors").exists():
        raise FileNotFoundError(f"{directory} has no model.safetensors")
    processors, arrays = read_processors(directory, config, load_file(directory / "model.safetensors"))
    denoiser, encoders = _networks(arrays, config, str(directory / "model.safetensors"))
    width = config.action.shape[0]
    spec = spec or ActionChunkSpec(horizon=config.horizon, width=width, executed=config.executed)
    if spec.dim != config.horizon * width:
        raise ValueError(
            f"the policy's chunk has {config.horizon} x {width} numbers; {type(spec).__name__} takes {spec.dim}"
        )
    return Policy(
        name=directory.resolve().name,
        denoiser=denoiser,
        encoder=LeRobotEncoder(
            weights=tuple(weights for _, weights in encoders),
            normalizers={
                name: Normalizer(mean=jnp.asarray(a.mean), scale=jnp.asarray(a.scale))
                for name, a in processors.inputs.items()
            },
            graphs=tuple(graph for graph, _ in encoders),
            features=tuple(f for kind in ("STATE", "VISUAL", "ENV") for f in config.of_type(kind)),
            rename=tuple(processors.rename.items()),
            steps=config.n_obs_steps,
            resize=config.resize_shape,
            crop=config.crop,
        ),
        normalizer=Normalizer(
            mean=jnp.asarray(np.tile(processors.action.mean, config.horizon)),
            scale=jnp.asarray(np.tile(processors.action.scale, config.horizon)),
        ),
        schedule=config.schedule,
        spec=spec,
        support=support,
        executed=config.executed,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LeRobotEncoder:
    """Observations to the condition: per step [state, features of every image, environment's state], one step after the other.

    Attributes:
      weights: nnx states of the image encoders: one for all cameras, or one for each; none without images.
      normalizers: by the feature's name; of images per channel.
      graphs: their graph definitions.
      features: what is observed, in the condition's order.
      rename: pairs of the user's name of a feature and the policy's.
      steps: number of observed steps.
      resize: height and width that images are brought to first; None to leave them.
      crop: height and width of the centre that the encoder sees; None for all.
    """

    weights: tuple[Any, ...]
    normalizers: dict[str, Normalizer]
    graphs: tuple[Any, ...] = field(metadata=dict(static=True))
    features: tuple[Feature, ...] = field(metadata=dict(static=True))
    rename: tuple[tuple[str, str], ...] = field(metadata=dict(static=True))
    steps: int = field(metadata=dict(static=True))
    resize: tuple[int, int] | None = field(metadata=dict(static=True))
    crop: tuple[int, int] | None = field(metadata=dict(static=True))

    def __call__(self, observation: Mapping[str, Any]) -> Context:
        if not isinstance(observation, Mapping):
            names = ", ".join(feature.name for feature in self.features)
            raise TypeError(f"this policy observes a mapping with {names}; got {type(observation).__name__}")
        rename = dict(self.rename)
        found = {rename.get(name, name): jnp.asarray(value) for name, value in observation.items()}
        if missing := [feature.name for feature in self.features if feature.name not in found]:
            raise ValueError(f"the observation lacks {', '.join(missing)}; it has {', '.join(observation)}")
        return Context(condition=_condition(self, {f.name: self._checked(f, found[f.name]) for f in self.features}))

    def _checked(self, feature: Feature, value: Array) -> Array:
        """A feature's numbers, images as (n_obs, h, w, 3)."""
        expected = [(self.steps, *feature.shape)]
        if feature.type == "VISUAL":
            channels, *size = feature.shape
            expected.append((self.steps, *size, channels))
        if value.shape not in expected:
            raise ValueError(f"{feature.name} has shape {value.shape}; expected {' or '.join(map(str, expected))}")
        if feature.type == "VISUAL" and value.shape != expected[1]:
            return jnp.moveaxis(value, 1, -1)
        return value

    def condition(self, observation: dict[str, Shaped[Array, "n_obs ..."]]) -> Float[Array, "C"]:
        parts, camera = [], 0
        for feature in self.features:
            value = observation[feature.name]
            normalizer = self.normalizers.get(feature.name)
            if feature.type != "VISUAL":
                parts.append(value if normalizer is None else normalizer.normalize(value))
                continue
            image = value.astype(jnp.float32) / (255.0 if jnp.issubdtype(value.dtype, jnp.integer) else 1.0)
            image = self._cut(image if normalizer is None else normalizer.normalize(image))
            which = min(camera, len(self.graphs) - 1)
            parts.append(jax.vmap(nnx.merge(self.graphs[which], self.weights[which]))(image))
            camera += 1
        return jnp.concatenate(parts, axis=-1).reshape(-1)

    def _cut(self, image: Float[Array, "n_obs h w 3"]) -> Float[Array, "n_obs h' w' 3"]:
        if self.resize is not None:
            image = jax.image.resize(image, (image.shape[0], *self.resize, 3), "linear", antialias=True)
        if self.crop is not None:
            top, left = (round((have - want) / 2) for have, want in zip(image.shape[1:3], self.crop, strict=True))
            image = image[:, top : top + self.crop[0], left : left + self.crop[1]]
        return image


_condition = jax.jit(LeRobotEncoder.condition)


def _networks(arrays: Arrays, config: LeRobotConfig, where: str) -> tuple[ActionDenoiser, list[tuple[Any, Any]]]:
    """The denoiser, and graph and weights of every image encoder; each array of the file has to find its place."""
    unet = nnx.eval_shape(
        lambda: ConditionalUnet1D(
            dim=config.action.shape[0],
            condition=config.condition,
            widths=config.down_dims,
            kernel=config.kernel_size,
            groups=config.n_groups,
            last_groups=LAST_GROUPS,
            embedding=config.diffusion_step_embed_dim,
            film_scale=config.use_film_scale_modulation,
            rngs=nnx.Rngs(0),
        )
    )
    graph, weights, used = layout.fill(unet, arrays, "diffusion.unet.", layout.unet_key, where)
    denoiser = ActionDenoiser(
        weights=weights,
        graph=graph,
        schedule=config.schedule,
        width=config.action.shape[0],
        parameterisation=PARAMETERISATION[config.prediction_type],
        clip=config.clip_sample_range if config.clip_sample else None,
    )
    cameras, encoders = len(config.of_type("VISUAL")), []
    for camera in range(cameras if config.use_separate_rgb_encoder_per_camera else min(cameras, 1)):
        root = f"diffusion.rgb_encoder.{f'{camera}.' if config.use_separate_rgb_encoder_per_camera else ''}"
        resnet = nnx.eval_shape(
            lambda: ResNetEncoder(
                config.vision_backbone,
                count=config.spatial_softmax_num_keypoints,
                group_norm=config.use_group_norm,
                rngs=nnx.Rngs(0),
            )
        )
        graph, weights, taken = layout.fill(resnet, arrays, root, layout.resnet_key, where)
        _check_grid(arrays, root + "pool.pos_grid", config, where)
        encoders.append((graph, weights))
        used |= (
            taken
            | {root + "pool.pos_grid"}
            | {key for key in arrays if key.startswith(root) and key.endswith(".num_batches_tracked")}
        )
    if unknown := sorted(set(arrays) - used):
        raise ValueError(
            f"{where} has {len(unknown)} arrays that the config does not account for: {', '.join(unknown[:4])}"
        )
    return denoiser, encoders


def _check_grid(arrays: Arrays, key: str, config: LeRobotConfig, where: str) -> None:
    """The file's places of the last maps' pixels have to be those of `keypoints`; the backbone halves an image five times."""
    h, w = (
        math.ceil(side / 32) for side in config.crop or config.resize_shape or config.of_type("VISUAL")[0].shape[1:]
    )
    grid = np.stack(np.meshgrid(np.linspace(-1.0, 1.0, w), np.linspace(-1.0, 1.0, h)), axis=-1).reshape(-1, 2)
    if key not in arrays or arrays[key].shape != grid.shape or not np.allclose(arrays[key], grid, atol=1e-5):
        raise ValueError(f"{where}: {key} is not the grid of {h} x {w} places that an image of this config ends in")
