"""Training of a grasp prior: denoising regression, an exponential moving average of the weights, checkpoints that resume.

With x = alpha(t) z + sigma(t) e at one of 128 levels t, minimise E |w (out(x, t, object) - v)|^2 where v = alpha e - sigma z
(Salimans & Ho 2022, arXiv 2202.00512); w weighs wrist position over rotation over joints, because a grasp misses by millimetres.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from diffopt.plans import GraspSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.policies.networks import BasisPointEncoder, FilmMLP, NetworkDenoiser
from diffopt.schedules import Cosine, regression_target
from diffopt.training.dataset import GraspData

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
    vectors, features = data.draw(key, n)
    return Normalizer.fit(np.asarray(vectors)), features.mean(0), jnp.maximum(features.std(0), 1e-3)


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
) -> tuple[Policy, int]:
    """A policy trained on `data`, and the number of steps done.

    Args:
      folder: where checkpoints go; one that is there is resumed. None: no checkpoints.
      report: called with step, mean loss and seconds since the start, now and then.
      deadline: seconds after which training ends early (the learning rate follows `config.steps` all the same).
    """
    schedule, dim = Cosine(), 9 + 2 * data.joints.shape[1]
    normalizer, mean, scale = fit_scales(data, jax.random.key(config.seed))
    network = FilmMLP(
        dim=dim,
        features=basis.shape[0],
        width=config.width,
        blocks=config.blocks,
        embedding=config.embedding,
        rngs=nnx.Rngs(config.seed),
    )
    graph, weights = nnx.split(network)
    optimiser = optimiser_of(config)
    importance = loss_weights(config, data.joints.shape[1])

    def loss_of(weights, state, data, key):
        k_data, k_level, k_noise, k_jitter = jax.random.split(key, 4)
        vector, features = data.draw(k_data, config.batch)
        z, c = state.normalizer.normalize(vector), (features - state.mean) / state.scale
        c = c + config.jitter * jax.random.normal(k_jitter, c.shape)
        t = jax.random.randint(k_level, (config.batch,), 1, config.levels + 1) / config.levels
        noise = jax.random.normal(k_noise, z.shape)
        alpha, sigma = schedule.scales(t)
        x = alpha[:, None] * z + sigma[:, None] * noise
        net = nnx.merge(graph, weights)
        error = net(x, t, net.embed(c)) - regression_target(z, noise, alpha, sigma, "v")
        return jnp.mean(importance * error**2)

    @jax.jit
    def run_block(state: TrainState, data: GraspData, key):
        def one(state, i):
            loss, gradient = jax.value_and_grad(loss_of)(
                state.weights, state, data, jax.random.fold_in(key, state.step)
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
        normalizer=normalizer,
        mean=mean,
        scale=scale,
    )
    file = None if folder is None else Path(folder) / "checkpoint.npz"
    if file is not None and file.exists():
        state = _restore(state, file)
    key, began = jax.random.key(config.seed + 1), time.perf_counter()
    while int(state.step) < config.steps and (deadline is None or time.perf_counter() - began < deadline):
        state, loss = run_block(state, data, key)
        step = int(state.step)
        if not np.isfinite(float(loss)):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}; the last checkpoint is intact")
        report(step, float(loss), time.perf_counter() - began)
        if file is not None and step % checkpoint_every < config.block:
            _store(state, file)
    if file is not None:
        _store(state, file)
    policy = policy_of(graph, state.average, schedule, state.normalizer, basis, state.mean, state.scale)
    return policy, int(state.step)


def policy_of(graph, weights, schedule, normalizer, basis, mean, scale) -> Policy:
    """The policy of trained weights."""
    denoiser = NetworkDenoiser(weights=weights, graph=graph, schedule=schedule, parameterisation="v")
    return Policy(
        name="grasp-allegro",
        denoiser=denoiser,
        encoder=BasisPointEncoder(basis=jnp.asarray(basis), mean=mean, scale=scale, denoiser=denoiser),
        normalizer=normalizer,
        schedule=schedule,
        spec=GraspSpec(hand="allegro", joint_names=JOINTS),
    )


def _store(state: TrainState, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(".checkpoint.tmp.npz")
    np.savez(temporary, **{str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))})
    temporary.rename(file)


def _restore(state: TrainState, file: Path) -> TrainState:
    saved = np.load(file)
    leaves, structure = jax.tree.flatten(state)
    if len(saved.files) != len(leaves) or any(saved[str(i)].shape != leaf.shape for i, leaf in enumerate(leaves)):
        raise ValueError(
            f"{file} does not fit this network and optimiser; give another folder, or remove it to start anew"
        )
    return jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
