"""The numbers by which LeRobot normalises observations and actions: from its processor files, or from buffers in older weight files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from diffopt.policies.published.config import MODES, Feature, LeRobotConfig, check_keys, read_json

Arrays = dict[str, np.ndarray]
_IDLE = {"to_batch_processor", "device_processor"}  # steps that do not change numbers
_BUFFERS = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_", "normalize_targets.buffer_")
_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Affine:
    """z = (v - mean)/scale, or v = scale z + mean."""

    mean: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Processors:
    """What happens to an observation before the network, and to its output after it.

    Attributes:
      rename: names of observed features, from the user's to the policy's.
      inputs: how each observed feature is normalised; absent: not at all.
      action: how the network's output becomes an action.
    """

    rename: dict[str, str]
    inputs: dict[str, Affine]
    action: Affine


def read_processors(directory: Path, config: LeRobotConfig, weights: Arrays) -> tuple[Processors, Arrays]:
    """The processors, and the weights without the normaliser's buffers that older checkpoints hold among them."""
    buffers = {key: value for key, value in weights.items() if key.startswith(_BUFFERS)}
    rest = {key: value for key, value in weights.items() if key not in buffers}
    if (directory / "policy_preprocessor.json").exists():
        return _from_files(directory, config), rest
    if not buffers:
        raise FileNotFoundError(
            f"{directory} has neither policy_preprocessor.json nor the normaliser's buffers in model.safetensors"
        )
    statistics: dict[str, Arrays] = {feature.name: {} for feature in (*config.input_features, config.action)}
    owner = {stem + name.replace(".", "_"): name for stem in _BUFFERS for name in statistics}
    for key, value in buffers.items():
        stem, statistic = key.rsplit(".", 1)
        if stem not in owner:
            raise ValueError(
                f"model.safetensors: {key!r} belongs to no feature of config.json: {', '.join(statistics)}"
            )
        statistics[owner[stem]][statistic] = value
    modes = config.normalization_mapping
    inputs = {f.name: affine(f, modes, statistics, "model.safetensors") for f in config.input_features}
    action = affine(config.action, modes, statistics, "model.safetensors", inverse=True)
    return Processors(rename={}, inputs=_known(inputs), action=_or_identity(action, config.action)), rest


def _from_files(directory: Path, config: LeRobotConfig) -> Processors:
    rename, inputs = {}, None
    path = directory / "policy_preprocessor.json"
    for step in read_json(path)["steps"]:
        kind = _kind(path, step)
        if kind == "rename_observations_processor":
            rename = dict(step["config"]["rename_map"])
        elif kind == "normalizer_processor":
            settings, statistics = _normalizer(path, step)
            only = settings.get("normalize_observation_keys")
            inputs = {
                f.name: affine(f, settings["norm_map"], statistics, path, epsilon=settings["eps"])
                for f in config.input_features
                if only is None or f.name in only
            }
        elif kind not in _IDLE:
            raise ValueError(f"{path}: step {kind!r} is not supported")
    path = directory / "policy_postprocessor.json"
    action = None
    for step in read_json(path)["steps"]:
        kind = _kind(path, step)
        if kind == "unnormalizer_processor":
            settings, statistics = _normalizer(path, step)
            action = affine(
                config.action, settings["norm_map"], statistics, path, epsilon=settings["eps"], inverse=True
            )
            action = _or_identity(action, config.action)
        elif kind not in _IDLE:
            raise ValueError(f"{path}: step {kind!r} is not supported")
    if inputs is None or action is None:
        raise ValueError(
            f"{directory}: the processors have no {'normalizer' if inputs is None else 'unnormalizer'} step"
        )
    return Processors(rename=rename, inputs=_known(inputs), action=action)


def _kind(path: Path, step: dict[str, Any]) -> str:
    check_keys(
        f"a step of {path}",
        set(step),
        required={"registry_name", "config"},
        allowed={"registry_name", "config", "state_file"},
    )
    return step["registry_name"]


def _normalizer(path: Path, step: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Settings and statistics of a step that names its file."""
    settings, where = step["config"], f"step {step['registry_name']} of {path}"
    required = {"eps", "features", "norm_map"}
    check_keys(where, set(settings), required=required, allowed=required | {"normalize_observation_keys"})
    if "state_file" not in step:
        raise ValueError(f"{where} names no state_file, so there are no statistics")
    file = path.parent / step["state_file"]
    if file.parent != path.parent or not file.exists():
        raise FileNotFoundError(f"{where} names the state_file {step['state_file']!r}, which is not in {path.parent}")
    statistics: dict[str, Arrays] = {}
    for key, value in load_file(file).items():
        name, statistic = key.rsplit(".", 1)
        statistics.setdefault(name, {})[statistic] = value
    return settings, statistics


def affine(
    feature: Feature,
    modes: dict[str, str],
    statistics: dict[str, Arrays],
    where: Any,
    *,
    epsilon: float = _EPSILON,
    inverse: bool = False,
) -> Affine | None:
    """How a feature is normalised; None for not at all. `inverse`: for the way back, where LeRobot adds no epsilon to a deviation."""
    mode = modes.get(feature.type, "IDENTITY")
    if mode not in MODES:
        raise ValueError(f"{where}: {feature.type} is normalised by {mode!r}; supported: {', '.join(MODES)}")
    if mode == "IDENTITY":
        return None
    known = statistics.get(feature.name, {})
    if any(name not in known for name in MODES[mode]):
        there = ", ".join(sorted(known)) or "no statistics"
        raise ValueError(f"{where}: {mode} of {feature.name!r} needs {' and '.join(MODES[mode])}; there are: {there}")
    a, b = (np.asarray(known[name], np.float32).reshape(-1) for name in MODES[mode])
    if (
        a.shape[0] != feature.shape[0]
        or b.shape[0] != feature.shape[0]
        or not (np.isfinite(a).all() and np.isfinite(b).all())
    ):
        raise ValueError(
            f"{where}: statistics of {feature.name!r} do not fit its {feature.shape[0]} numbers, or are not finite: {a}, {b}"
        )
    if mode == "MEAN_STD":
        return Affine(mean=a, scale=b if inverse else b + np.float32(epsilon))
    span = np.where(b == a, np.float32(epsilon), b - a)
    return Affine(mean=a + span / 2, scale=span / 2)


def _known(inputs: dict[str, Affine | None]) -> dict[str, Affine]:
    return {name: value for name, value in inputs.items() if value is not None}


def _or_identity(action: Affine | None, feature: Feature) -> Affine:
    return action or Affine(mean=np.zeros(feature.shape[0], np.float32), scale=np.ones(feature.shape[0], np.float32))
