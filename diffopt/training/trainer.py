"""Training of a grasp prior: denoising regression, an exponential moving average of the weights, checkpoints that resume.

With x = alpha(t) z + sigma(t) e at one of 128 levels t, minimise E |w (out(x, t, object) - v)|^2 where v = alpha e - sigma z
(Salimans & Ho 2022, arXiv 2202.00512); w weighs wrist position over rotation over joints, because a grasp misses by millimetres.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from diffopt.geometry import rotation_from_6d
from diffopt.plans import GraspSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.policies.networks import BasisPointEncoder, GraspDenoiser, GraspNetwork, Seen
from diffopt.policies.view import Foot, HandView
from diffopt.schedules import Cosine
from diffopt.training.dataset import Drawn, GraspData
from diffopt.training.eyes import view_of
from diffopt.training.hand import allegro

_PLACE = 0.07  # [m] about the spread of wrist positions: what a miss is measured by
_NORMAL = 2.0
_REPAIRED, _OFF = (
    0.3,
    0.15,
)  # repairs are learnt below this time; a sample is about this far from its repair, in normalised units
JOINTS = tuple(f"{finger}j{i}" for finger in ("ff", "mf", "rf", "th") for i in range(4))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Numbers of the training. `weights`: of wrist position, rotation, joints, squeeze in the loss (squared error)."""

    steps: int = 20_000
    batch: int = 256
    learning_rate: float = 1e-3
    warmup: int = 300
    weight_decay: float = 1e-2
    jitter: float = 0.05  # noise on the normalised features
    ema: float = 0.9995
    levels: int = 128
    width: int = 512
    blocks: int = 4
    embedding: int = 256
    second_width: int = 384
    second_blocks: int = 3
    second_only: bool = False  # the first stage stays as it is
    repair: float = 1.0  # weight of the repairs
    repair_batch: int = 128
    touch: float = 0.5  # weight of the misses of the hand's points
    weights: tuple[float, float, float, float] = (4.0, 2.0, 1.0, 0.5)
    seed: int = 0
    block: int = 100  # steps per compiled call


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Weights, their moving average, the optimiser's state, the number of steps done, and the scales of the data.

    The scales are those of the data at the start, so that a training that is resumed may be given more data.
    """

    weights: Any
    average: Any
    optimiser: Any
    step: Array
    normalizer: Normalizer
    mean: Float[Array, "B"]
    scale: Float[Array, "B"]


def fit_scales(data: GraspData, key, n: int = 20_000) -> tuple[Normalizer, Float[Array, "B"], Float[Array, "B"]]:
    """Normaliser of the grasp vectors, and mean and scale of the features, both over symmetric copies."""
    drawn = data.draw(key, n)
    mean, scale = drawn.features.mean(0), jnp.maximum(drawn.features.std(0), 1e-3)
    return Normalizer.fit(np.asarray(drawn.vector)), mean, scale


def optimiser_of(config: TrainConfig) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, config.steps, config.learning_rate * 0.01
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay))


def loss_weights(config: TrainConfig, joints: int) -> Float[Array, "n"]:
    p, r, q, s = config.weights
    w = jnp.concatenate([jnp.full(3, p), jnp.full(6, r), jnp.full(joints, q), jnp.full(joints, s)])
    return w / w.mean()


def train(
    data: GraspData,
    basis: Float[np.ndarray, "B 3"],
    config: TrainConfig,
    folder: Path | None = None,
    report: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
    checkpoint_every: int = 2000,
    deadline: float | None = None,
    start: Policy | None = None,
    repairs: GraspData | None = None,
) -> tuple[Policy, int]:
    """A policy trained on `data`, and the number of steps done.

    Args:
      folder: where checkpoints go; one that is there is resumed. None: no checkpoints.
      report: called with step, mean loss and seconds since the start, now and then.
      deadline: seconds after which training ends early (the learning rate follows `config.steps` all the same).
      start: a policy whose weights and scales are the first ones, instead of random ones; its sizes count, not those of `config`.
      repairs: repaired samples of a prior, and these samples.
    """
    if start is None:
        normalizer, mean, scale = fit_scales(data, jax.random.key(config.seed))
        start = untrained(basis, normalizer.mean, normalizer.scale, mean, scale, config)
    template, encoder = start.denoiser, start.encoder
    if not (isinstance(template, GraspDenoiser) and isinstance(encoder, BasisPointEncoder)):
        raise TypeError(
            f"training starts from a policy with a GraspDenoiser and a BasisPointEncoder; {start.name!r} has others"
        )
    names = ("second",) if config.second_only else ("first", "second")
    weights = nnx.State({name: template.weights[name] for name in names})
    optimiser = optimiser_of(config)
    importance = loss_weights(config, data.joints.shape[1])

    def errors(denoiser, state, drawn: Drawn, start, t, key):
        """Squared errors of both stages and of the hand's points, from `start` (normalised) noised to time t."""
        k_noise, k_jitter = jax.random.split(key)
        z, c = state.normalizer.normalize(drawn.vector), (drawn.features - state.mean) / state.scale
        c = c + config.jitter * jax.random.normal(k_jitter, c.shape)
        alpha, sigma = (s[:, None] for s in denoiser.schedule.scales(t))
        x = alpha * start + sigma * jax.random.normal(k_noise, z.shape)
        seen = Seen(embedding=denoiser.network.first.embed(c), foot=drawn.foot)
        axes = Seen(embedding=0, foot=Foot(cells=None, first=0, lower=0, step=0))
        estimate = jax.vmap(partial(denoiser.estimates, apart=True), in_axes=(0, 0, axes))
        coarse, fine = estimate(x, t, seen)
        found = state.normalizer.denormalize(fine)
        missed = jax.vmap(partial(misses, denoiser.view), in_axes=(0, 0, axes.foot))(found, drawn.vector, drawn.foot)
        touch = config.touch * jnp.mean((missed / _PLACE) ** 2, axis=(1, 2))
        per_grasp = [jnp.mean(importance * (estimate - z) ** 2, axis=1) for estimate in (coarse, fine)]
        return per_grasp[0], per_grasp[1] + touch, sigma[:, 0] ** 2

    def loss_of(weights, state, denoiser, data, repairs, key):
        k_data, k_level, k_noise, k_repair = jax.random.split(key, 4)
        denoiser = replace(denoiser, weights=nnx.State({**denoiser.weights, **weights}), normalizer=state.normalizer)
        drawn = data.draw(k_data, config.batch)
        t = jax.random.randint(k_level, (config.batch,), 1, config.levels + 1) / config.levels
        z = state.normalizer.normalize(drawn.vector)
        coarse, fine, variance = errors(denoiser, state, drawn, z, t, k_noise)
        loss = jnp.mean(fine / variance)
        if not config.second_only:
            loss += jnp.mean(coarse / variance)
        if repairs is not None:
            k_data, k_level, k_share, k_noise = jax.random.split(k_repair, 4)
            drawn = repairs.draw(k_data, config.repair_batch)
            t = jax.random.uniform(k_level, (config.repair_batch,), minval=1 / 64, maxval=_REPAIRED)
            share = jnp.maximum(jax.random.uniform(k_share, (config.repair_batch, 1), minval=-1.0), 0.0)
            z = state.normalizer.normalize(drawn.sampled + share * (drawn.vector - drawn.sampled))
            _, fine, variance = errors(denoiser, state, drawn, z, t, k_noise)
            loss += config.repair * jnp.mean(fine / (variance + _OFF**2))
        return loss

    @jax.jit
    def run_block(state: TrainState, denoiser: GraspDenoiser, data: GraspData, repairs: GraspData | None, key):
        def one(state, i):
            loss, gradient = jax.value_and_grad(loss_of)(
                state.weights, state, denoiser, data, repairs, jax.random.fold_in(key, state.step)
            )
            update, opt = optimiser.update(gradient, state.optimiser, state.weights)
            weights = optax.apply_updates(state.weights, update)
            decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.average, weights)
            return replace(state, weights=weights, average=average, optimiser=opt, step=state.step + 1), loss

        state, losses = jax.lax.scan(one, state, jnp.arange(config.block))
        return state, losses.mean()

    state = TrainState(
        weights=weights,
        average=weights,
        optimiser=optimiser.init(weights),
        step=jnp.zeros((), jnp.int32),
        normalizer=start.normalizer,
        mean=encoder.mean,
        scale=encoder.scale,
    )
    file = None if folder is None else Path(folder) / "checkpoint.npz"
    if file is not None and file.exists():
        state = restore(state, file)
    key, began = jax.random.key(config.seed + 1), time.perf_counter()
    while int(state.step) < config.steps and (deadline is None or time.perf_counter() - began < deadline):
        state, loss = run_block(state, template, data, repairs, key)
        step = int(state.step)
        if not np.isfinite(float(loss)):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}; the last checkpoint is intact")
        report(step, float(loss), time.perf_counter() - began)
        if file is not None and step % checkpoint_every < config.block:
            store(state, file)
    if file is not None:
        store(state, file)
    return policy_of(template, state.average, state.normalizer, encoder.basis, state.mean, state.scale), int(state.step)


def untrained(
    basis: Float[np.ndarray, "B 3"],
    vector_mean: Float[Array, "n"],
    vector_scale: Float[Array, "n"],
    mean: Float[Array, "B"],
    scale: Float[Array, "B"],
    config: TrainConfig,
) -> Policy:
    """A policy of random weights with these scales of grasp vectors and features."""
    view = view_of(allegro())
    network = GraspNetwork(
        dim=vector_mean.shape[0],
        features=basis.shape[0],
        look=view.count,
        width=config.width,
        blocks=config.blocks,
        embedding=config.embedding,
        second_width=config.second_width,
        second_blocks=config.second_blocks,
        rngs=nnx.Rngs(config.seed),
    )
    graph, weights = nnx.split(network)
    normalizer = Normalizer(mean=vector_mean, scale=vector_scale)
    denoiser = GraspDenoiser(weights=weights, normalizer=normalizer, view=view, graph=graph, schedule=Cosine())
    return policy_of(denoiser, weights, normalizer, basis, mean, scale)


def policy_of(template: GraspDenoiser, weights, normalizer, basis, mean, scale) -> Policy:
    """The policy of trained weights."""
    denoiser = replace(template, weights=nnx.State({**template.weights, **weights}), normalizer=normalizer)
    return Policy(
        name="grasp-allegro",
        denoiser=denoiser,
        encoder=BasisPointEncoder(basis=jnp.asarray(basis), mean=mean, scale=scale, denoiser=denoiser),
        normalizer=normalizer,
        schedule=denoiser.schedule,
        spec=GraspSpec(hand="allegro", joint_names=JOINTS),
    )


def misses(view: HandView, found: Float[Array, "n"], vector: Float[Array, "n"], foot: Foot) -> Float[Array, "K 4"]:
    """By how much the points of the hand at the grasp `found` miss those at the grasp `vector` [m], in the object's frame: the three
    components, and once more, `_NORMAL` times, the part along the surface's normal where the hand at `vector` touches.

    Points ahead of the palm, of radius zero, are no part of the hand and miss nothing.
    """

    def points(grasp):
        joints, squeeze = jnp.split(grasp[9:], 2)
        local = jnp.concatenate([view.fixed, view.points(joints), view.points(joints - squeeze)])
        return local @ rotation_from_6d(grasp[3:9]).T + grasp[:3]

    wanted = points(vector)
    missed = points(found) - wanted
    radius = jnp.concatenate([view.radius, view.radius[view.fixed.shape[0] :]])[:, None]
    offset = foot(wanted) - wanted
    distance = jnp.linalg.norm(offset, axis=-1, keepdims=True) + 1e-6
    near = jnp.exp(-(((distance - radius) / 0.006) ** 2))
    along = jnp.sum(missed * offset / distance, axis=-1, keepdims=True)
    return jnp.where(radius > 0, jnp.concatenate([missed, _NORMAL * near * along], axis=-1), 0.0)


def store(state: Any, file: Path) -> None:
    """Writes the leaves of a pytree, such that an interruption leaves the former file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(".checkpoint.tmp.npz")
    np.savez(temporary, **{str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))})
    temporary.rename(file)


def restore(state: Any, file: Path) -> Any:
    """A pytree like `state` with the leaves that `store` wrote."""
    saved = np.load(file)
    leaves, structure = jax.tree.flatten(state)
    if len(saved.files) != len(leaves) or any(saved[str(i)].shape != leaf.shape for i, leaf in enumerate(leaves)):
        raise ValueError(
            f"{file} does not fit this network and optimiser; give another folder, or remove it to start anew"
        )
    return jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
