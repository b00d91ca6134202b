"""Policies on disk: weights in safetensors, and beside them a json card of what they are and how they were made.

The card's "policy" entry rebuilds the structure; everything else in it (data, steps, command, measured success) is for the reader.
Its "kind" is "grasp" (the default) or "visuomotor".
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from diffopt import schedules
from diffopt.paths import ToolPathSpec
from diffopt.plans import GraspSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.policies.networks import BasisPointEncoder, GraspDenoiser, GraspNetwork
from diffopt.policies.view import HandView
from diffopt.policies.visuomotor import ChunkDenoiser, VisuomotorEncoder, VisuomotorNetwork

_VIEW = ("rotation", "position", "tips", "fixed", "radius")
WEIGHTS = Path(__file__).parent / "weights"
SUPPORT = 8.0  # [standard deviations of the training data] a plan further out, dragged to where an arm happens to reach, is no grasp
_FORMAT = 2


def available() -> tuple[str, ...]:
    """Names of the shipped policies."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob("*.json")))


def load(name_or_path: str | Path) -> Policy:
    """A shipped policy by name, or one saved by `save` by the path of its card."""
    path = _card(name_or_path)
    card = json.loads(path.read_text())
    recipe = card["policy"]
    kind = recipe.get("kind", "grasp")
    if kind not in _KINDS:
        raise ValueError(f"{path} is a policy of kind {kind!r}; this version of diffopt reads: {', '.join(_KINDS)}")
    form, build = _KINDS[kind]
    if recipe["format"] != form:
        raise ValueError(f"{path} has format {recipe['format']}; this version of diffopt reads format {form}")
    return build(recipe, load_file(path.with_suffix(".safetensors")))


def read_card(name: str) -> dict[str, Any]:
    """How a shipped policy was made."""
    return json.loads((WEIGHTS / f"{name}.json").read_text())


def annotate(name_or_path: str | Path, more: dict[str, Any]) -> None:
    """Adds entries to a policy's card, in place of those of the same name."""
    if "policy" in more:
        raise ValueError("the entry 'policy' rebuilds the policy; it is written by save alone")
    path = _card(name_or_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | more, indent=2) + "\n")


def _card(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = WEIGHTS / f"{name_or_path}.json"
    if not path.exists():
        raise KeyError(
            f"no policy {str(name_or_path)!r}; shipped: {', '.join(available())}; or give the path of a json card"
        )
    return path


def save(policy: Policy, path: str | Path, card: dict[str, Any]) -> None:
    """Write `path`.safetensors, the network's weights in half precision, and `path`.json; `card` says how the weights were made."""
    path = Path(path)
    if isinstance(policy.denoiser, ChunkDenoiser):
        recipe, arrays = _take_apart_visuomotor(policy)
    else:
        recipe, arrays = _take_apart_grasp(policy)
    save_file(arrays, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps({"policy": recipe} | card, indent=2) + "\n")


def _take_apart_grasp(policy: Policy) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    denoiser, encoder = policy.denoiser, policy.encoder
    if not (
        isinstance(denoiser, GraspDenoiser)
        and isinstance(encoder, BasisPointEncoder)
        and isinstance(policy.spec, GraspSpec)
    ):
        raise TypeError(
            "save writes grasp policies made of a GraspDenoiser and a BasisPointEncoder, and visuomotor policies made of a ChunkDenoiser "
            f"and a VisuomotorEncoder; {policy.name!r} has a {type(denoiser).__name__} and a {type(encoder).__name__}"
        )
    recipe = {
        "format": _FORMAT,
        "name": policy.name,
        "network": network_size(denoiser.network),
        "schedule": _schedule(denoiser.schedule),
        "view": {"depth": list(denoiser.view.depth)},
        "spec": {"hand": policy.spec.hand, "joint_names": list(policy.spec.joint_names)},
    }
    arrays = {f"network/{k}": v.astype(np.float16) for k, v in _flatten(denoiser.weights).items()}
    for prefix, holder, names in (
        ("normalizer", policy.normalizer, ("mean", "scale")),
        ("encoder", encoder, ("basis", "mean", "scale")),
        ("view", denoiser.view, _VIEW),
    ):
        arrays |= {f"{prefix}/{name}": np.asarray(getattr(holder, name)) for name in names}
    return recipe, arrays


def _take_apart_visuomotor(policy: Policy) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    denoiser, encoder, spec = policy.denoiser, policy.encoder, policy.spec
    if not (
        isinstance(denoiser, ChunkDenoiser)
        and isinstance(encoder, VisuomotorEncoder)
        and isinstance(spec, ToolPathSpec)
    ):
        raise TypeError(f"policy {policy.name!r} has a ChunkDenoiser, but no VisuomotorEncoder or no ToolPathSpec")
    recipe = {
        "kind": "visuomotor",
        "format": 1,
        "name": policy.name,
        "network": {k: dict(v) if k == "transformer" else v for k, v in denoiser.network.sizes},
        "schedule": _schedule(denoiser.schedule),
        "parameterisation": denoiser.parameterisation,
        "images": list(encoder.images),
        "support": policy.support,
        "spec": asdict(spec),
    }
    arrays = {f"network/{k}": v.astype(np.float16) for k, v in _flatten(denoiser.weights).items()}
    for prefix, holder in (("normalizer", policy.normalizer), ("state", encoder.state), ("features", encoder.features)):
        arrays |= {f"{prefix}/{name}": np.asarray(getattr(holder, name), np.float32) for name in ("mean", "scale")}
    return recipe, arrays


def _schedule(schedule: Any) -> dict[str, Any]:
    return {"name": type(schedule).__name__, **vars(schedule)}


def _schedule_of(recipe: dict[str, Any]) -> Any:
    arguments = dict(recipe["schedule"])
    return getattr(schedules, arguments.pop("name"))(**arguments)


def network_size(network: Any) -> dict[str, int]:
    """The arguments that rebuild the structure of a `GraspNetwork`."""
    first, second = network.first, network.second
    dim = first.inlet.in_features
    return {
        "dim": dim,
        "features": first.condition.layers[0].in_features,
        "look": second.inlet.in_features - 2 * dim,
        "width": first.inlet.out_features,
        "blocks": len(first.blocks),
        "embedding": first.time.layers[-1].out_features,
        "second_width": second.inlet.out_features,
        "second_blocks": len(second.blocks),
    }


def _build_grasp(recipe: dict[str, Any], arrays: dict[str, np.ndarray]) -> Policy:
    schedule = _schedule_of(recipe)
    network = nnx.eval_shape(lambda: GraspNetwork(**recipe["network"], rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(network)
    weights = _unflatten(shapes, {k.removeprefix("network/"): v for k, v in arrays.items() if k.startswith("network/")})

    def array(key):
        return jnp.asarray(arrays[key])

    normalizer = Normalizer(mean=array("normalizer/mean"), scale=array("normalizer/scale"))
    view = HandView(depth=tuple(recipe["view"]["depth"]), **{name: array(f"view/{name}") for name in _VIEW})
    denoiser = GraspDenoiser(weights=weights, normalizer=normalizer, view=view, graph=graph, schedule=schedule)
    return Policy(
        name=recipe["name"],
        denoiser=denoiser,
        encoder=BasisPointEncoder(
            basis=array("encoder/basis"), mean=array("encoder/mean"), scale=array("encoder/scale"), denoiser=denoiser
        ),
        normalizer=normalizer,
        schedule=schedule,
        support=SUPPORT,
        spec=GraspSpec(hand=recipe["spec"]["hand"], joint_names=tuple(recipe["spec"]["joint_names"])),
    )


def _build_visuomotor(recipe: dict[str, Any], arrays: dict[str, np.ndarray]) -> Policy:
    schedule, sizes, spec = _schedule_of(recipe), recipe["network"], recipe["spec"]
    network = nnx.eval_shape(lambda: VisuomotorNetwork(**sizes, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(network)
    weights = _unflatten(shapes, {k.removeprefix("network/"): v for k, v in arrays.items() if k.startswith("network/")})

    def normalizer(prefix: str) -> Normalizer:
        return Normalizer(**{name: jnp.asarray(arrays[f"{prefix}/{name}"]) for name in ("mean", "scale")})

    denoiser = ChunkDenoiser(
        weights=weights,
        graph=graph,
        horizon=spec["horizon"],
        schedule=schedule,
        parameterisation=recipe["parameterisation"],
    )
    encoder = VisuomotorEncoder(
        denoiser=denoiser, state=normalizer("state"), features=normalizer("features"), images=tuple(recipe["images"])
    )
    return Policy(
        name=recipe["name"],
        denoiser=denoiser,
        encoder=encoder,
        normalizer=normalizer("normalizer"),
        schedule=schedule,
        support=recipe["support"],
        spec=ToolPathSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}),
    )


_KINDS = {"grasp": (_FORMAT, _build_grasp), "visuomotor": (1, _build_visuomotor)}


def _flatten(weights) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(weights)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32) for path, leaf in leaves
    }


def _unflatten(shapes, arrays: dict[str, np.ndarray]):
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    if set(names) != set(arrays):
        missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise ValueError(f"weights do not fit the network of their card: missing {missing[:3]}, unknown {unknown[:3]}")
    return jax.tree_util.tree_unflatten(structure, [jnp.asarray(arrays[name], jnp.float32) for name in names])
