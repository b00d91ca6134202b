"""Names of published weights, and how they become ours.

Every leaf of our modules has one key in the file, and `fill` finds them all. PyTorch keeps (out, in) for linear layers,
(out, in, place...) for convolutions and (in, out, place) for transposed ones; ours are (place..., in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Arrays = dict[str, np.ndarray]
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

UNET: Rules = (  # our paths, and the keys of LeRobot
    (r"step/inner", "diffusion_step_encoder.1"),
    (r"step/outer", "diffusion_step_encoder.3"),
    (r"last/conv", "final_conv.0.block.0"),
    (r"last/norm", "final_conv.0.block.1"),
    (r"outlet", "final_conv.1"),
    (r"shorter/(\d+)", r"down_modules.\1.2"),
    (r"longer/(\d+)", r"up_modules.\1.2"),
    (r"(down|up)/(\d+)/(\d+)/(.*)", r"\1_modules.\2.\3.\4"),
    (r"middle/(\d+)/(.*)", r"mid_modules.\1.\2"),
)
BLOCK: Rules = (
    (r"(.*)first/conv", r"\1conv1.block.0"),
    (r"(.*)first/norm", r"\1conv1.block.1"),
    (r"(.*)second/conv", r"\1conv2.block.0"),
    (r"(.*)second/norm", r"\1conv2.block.1"),
    (r"(.*)film", r"\1cond_encoder.1"),
    (r"(.*)residual", r"\1residual_conv"),
)
RESNET: Rules = (
    (r"backbone/inlet", "backbone.0"),
    (r"backbone/norm", "backbone.1"),
    (r"maps", "pool.nets"),
    (r"outlet", "out"),
    (r"backbone/stages/(\d+)/(\d+)/(.*)", lambda m: f"backbone.{int(m[1]) + 4}.{m[2]}.{m[3]}"),
)
RESNET_BLOCK: Rules = (
    (r"(.*)convolutions/(\d+)", lambda m: f"{m[1]}conv{int(m[2]) + 1}"),
    (r"(.*)norms/(\d+)", lambda m: f"{m[1]}bn{int(m[2]) + 1}"),
    (r"(.*)shortcut", r"\1downsample.0"),
    (r"(.*)shortcut_norm", r"\1downsample.1"),
)
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def unet_key(path: str) -> str:
    """The key under `unet.` of a leaf of a `ConditionalUnet1D`."""
    return _key(path, UNET, BLOCK)


def diffusion_policy_key(path: str) -> str:
    """The key of the same leaf in the UNet of Diffusion Policy's own checkpoints, under `model.` there."""
    key = re.sub(r"conv([12])\.block", lambda match: f"blocks.{int(match[1]) - 1}.block", unet_key(path))
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", key)


def resnet_key(path: str) -> str:
    """The key under `rgb_encoder.` of a leaf of a `ResNetEncoder`."""
    return _key(path, RESNET, RESNET_BLOCK)


def robomimic_key(path: str) -> str:
    """The key of the same leaf under `obs_encoder.obs_nets.<camera>.` in checkpoints of Diffusion Policy, whose encoder is robomimic's."""
    key = re.sub(r"^backbone\.", "backbone.nets.", resnet_key(path))
    return re.sub(r"^out\.", "nets.3.", key)


def _key(path: str, *passes: Rules) -> str:
    module, leaf = path.rsplit("/", 1)
    for rules in passes:
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, module):
                module = replacement(match) if callable(replacement) else match.expand(replacement)
                break
    return f"{module}.{_LEAF[leaf]}"


def fill(
    module: Any, arrays: Arrays, prefix: str, key_of: Callable[[str], str], where: str
) -> tuple[Any, Any, set[str]]:
    """The graph and the weights of an abstract nnx module, with the arrays under `prefix` in it, and the keys that it took.

    Raises:
      ValueError: that names keys which the file lacks, or an array of another shape.
    """
    graph, shapes = nnx.split(module)
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path, _ in leaves]
    keys = [prefix + key_of(path) for path in paths]
    if missing := sorted(set(keys) - set(arrays)):
        raise ValueError(f"{where} lacks {len(missing)} arrays: {', '.join(missing[:4])}")
    ours = []
    for path, key, (_, leaf) in zip(paths, keys, leaves, strict=True):
        array = _layout(np.asarray(arrays[key], np.float32), transposed=path.startswith("longer/"))
        if array.size == np.prod(leaf.shape) and array.shape[array.ndim - leaf.ndim :] == leaf.shape:
            array = array.reshape(leaf.shape)  # a convolution of kernel 1 is a linear layer here
        if array.shape != leaf.shape:
            raise ValueError(f"{where}: {key} has shape {arrays[key].shape}, which does not give {leaf.shape}")
        ours.append(jnp.asarray(array))
    return graph, jax.tree_util.tree_unflatten(structure, ours), set(keys)


def _layout(array: np.ndarray, transposed: bool) -> np.ndarray:
    if array.ndim < 2:
        return array
    places = tuple(range(2, array.ndim))
    return array.transpose(*places, *((0, 1) if transposed else (1, 0)))
