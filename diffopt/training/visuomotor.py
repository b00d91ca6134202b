"""Training of a visuomotor policy on demonstrations, in two stages, so that two CPU cores do it within half an hour.

1. The eyes and a head learn, from one moment each, to regress where the task's landmarks are (in the world and in the tool's frame) and
   the chunk of commands that followed. The head is thrown away.
2. The trunk, a UNet or a transformer, learns the distribution of chunks given the frozen features of two moments: with
   x = alpha(t) z + sigma(t) e, minimise E |out(x, t, condition) - target|^2, the target as the parameterisation says
   (`diffopt.schedules.regression_target`).

A regression tells the eyes more per image than the denoising loss does, and in the second stage no image has to be looked at again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from diffopt import schedules
from diffopt.paths import ToolPathSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.policies.visuomotor import (
    STEPS,
    ChunkDenoiser,
    VisuomotorEncoder,
    VisuomotorEyes,
    VisuomotorNetwork,
    state_of,
)
from diffopt.schedules import Parameterisation, regression_target
from diffopt.tasks.gripper import PINCH
from diffopt.training.demonstrations import Demonstrations
from diffopt.training.trainer import restore, store

MOMENTS = 2
SUPPORT = 6.0  # [standard deviations] of a chunk's coordinates
_SMALLEST = 0.02  # least standard deviation of a state's coordinate, so that what hardly varies does not count too much


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Numbers of one stage. `block`: steps per compiled call."""

    steps: int
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-3
    ema: float = 0.999
    block: int = 20


@dataclass(frozen=True, kw_only=True)
class VisuomotorConfig:
    """Numbers of the training.

    Attributes:
      horizon: knots of a chunk.
      schedule, parameterisation: of the diffusion; "Flow" and "flow" make it flow matching.
      network: sizes, of `VisuomotorNetwork`.
      blur: noise on the normalised features in the second stage.
      held_out: episodes that are not trained on, for the reported losses.
    """

    horizon: int = 16
    schedule: str = "Cosine"
    parameterisation: Parameterisation = "v"
    network: dict[str, Any] = field(default_factory=dict)
    eyes: Stage = field(default_factory=lambda: Stage(steps=1500))
    chunks: Stage = field(default_factory=lambda: Stage(steps=4000))
    blur: float = 0.05
    held_out: int = 20
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Windows:
    """Demonstrations as the training draws from them: N moments; the chunk after moment i is `goal[i], goal[i + 1], ...` up to the
    end of its episode, and the last command over and over from there.

    Attributes:
      images: what was seen; empty in the second stage. features: what the eyes say of it; empty in the first.
      state: of the tool, normalised; goal: the commands, likewise.
      landmarks: in the world and in the tool's frame, one after the other, normalised.
      first, last: indices of the first and last moment of each moment's episode.
      start: indices of the moments that are drawn.
    """

    images: UInt8[Array, "N C h w 3"]
    features: Float[Array, "N F"]
    state: Float[Array, "N S"]
    goal: Float[Array, "N S"]
    landmarks: Float[Array, "N L"]
    first: Int[Array, "N"]
    last: Int[Array, "N"]
    start: Int[Array, "M"]

    def draw(self, key, count: int) -> Int[Array, "count"]:
        return self.start[jax.random.randint(key, (count,), 0, self.start.shape[0])]

    def chunk(self, i: Int[Array, "B"], horizon: int) -> Float[Array, "B H S"]:
        return self.goal[jnp.minimum(i[:, None] + np.arange(horizon), self.last[i][:, None])]

    def moments(self, i: Int[Array, "B"]) -> Int[Array, "B T"]:
        """The present one and those before it; the first stands for what was before the episode."""
        return jnp.maximum(i[:, None] + np.arange(1 - MOMENTS, 1), self.first[i][:, None])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FitState:
    """Weights, their moving average, the optimiser's state, steps done."""

    weights: Any
    average: Any
    optimiser: Any
    step: Array


Report = Callable[[str, int, float, float, float], None]  # stage, step, loss, loss on held-out episodes, seconds


def windows(data: Demonstrations, held_out: int) -> tuple[Windows, Windows, Normalizer]:
    """What is trained on, what is held out (the last episodes), and the normaliser of states and commands."""
    state, goal = (
        np.asarray(state_of(*parts))
        for parts in (
            (data.position, data.rotation, data.joints),
            (data.goal_position, data.goal_rotation, data.goal_joints),
        )
    )
    normalizer = Normalizer.fit(goal, _SMALLEST)
    normalizer = replace(normalizer, scale=normalizer.scale.at[-1].set(_SMALLEST))
    local = np.einsum("nji,nkj->nki", data.rotation, data.landmarks - data.position[:, None])
    marks = np.concatenate([data.landmarks.reshape(len(data), -1), local.reshape(len(data), -1)], axis=1)
    numbers = np.unique(data.episode)
    first = np.searchsorted(data.episode, data.episode, "left")
    last = np.searchsorted(data.episode, data.episode, "right") - 1
    everything = Windows(
        images=jnp.asarray(data.images),
        features=jnp.zeros((len(data), 0)),
        state=normalizer.normalize(state),
        goal=normalizer.normalize(goal),
        landmarks=jnp.asarray((marks - marks.mean(0)) / np.maximum(marks.std(0), 0.01), jnp.float32),
        first=jnp.asarray(first),
        last=jnp.asarray(last),
        start=jnp.zeros(0, int),
    )
    aside = np.isin(data.episode, numbers[len(numbers) - held_out :])
    train, test = (replace(everything, start=jnp.asarray(np.flatnonzero(mask))) for mask in (~aside, aside))
    return train, test, normalizer


def train(
    data: Demonstrations,
    config: VisuomotorConfig,
    folder: Path | None = None,
    report: Report = lambda *_: None,
    name: str = "visuomotor",
    deadline: float | None = None,
) -> tuple[Policy, int]:
    """A policy trained on `data`, and the number of steps of the second stage.

    Args:
      folder: where checkpoints go; those that are there are resumed. None: no checkpoints.
      report: called now and then.
      deadline: seconds after which the second stage ends early.
    """
    seen, aside, normalizer = windows(data, config.held_out)
    dim = seen.goal.shape[1]
    key = jax.random.key(config.seed)
    network = VisuomotorNetwork(
        dim=dim,
        state=dim,
        moments=MOMENTS,
        cameras=data.images.shape[1],
        horizon=config.horizon,
        **config.network,
        rngs=nnx.Rngs(config.seed),
    )
    began = time.perf_counter()
    eyes = _fit_eyes(network.eyes, seen, aside, config, jax.random.fold_in(key, 0), folder, report, began)
    nnx.update(network.eyes, eyes)
    scale = features_of(network.eyes, seen)
    looked = Normalizer.fit(scale, _SMALLEST)
    features = jnp.concatenate([looked.normalize(jnp.asarray(scale)), seen.state], axis=-1)
    seen, aside = (replace(w, images=jnp.zeros((len(data), 0), jnp.uint8), features=features) for w in (seen, aside))

    schedule = getattr(schedules, config.schedule)()
    width = scale.shape[1]

    def loss_of(weights, data: Windows, key):
        k_data, k_level, k_noise, k_blur = jax.random.split(key, 4)
        i = data.draw(k_data, config.chunks.batch)
        z = data.chunk(i, config.horizon)
        condition = data.features[data.moments(i)]
        blur = config.blur * jax.random.normal(k_blur, condition.shape)
        condition = (condition + blur * (np.arange(condition.shape[-1]) < width)).reshape(len(i), -1)
        t = jax.random.uniform(k_level, (len(i),), minval=1e-3)
        alpha, sigma = (s[:, None] for s in schedule.scales(t))
        noise = jax.random.normal(k_noise, z.shape)
        x = alpha[..., None] * z + sigma[..., None] * noise
        target = regression_target(z, noise, alpha, sigma, config.parameterisation)
        trunk = nnx.merge(trunk_graph, weights)
        out = jax.vmap(lambda x, t, c: trunk(x, STEPS * t, c))(x, t, condition)
        return jnp.mean((out - target) ** 2)

    trunk_graph, trunk_weights = nnx.split(network.trunk)
    file = None if folder is None else Path(folder) / "chunks.npz"
    note = partial(report, "chunks")
    average, steps = fit(
        loss_of, trunk_weights, (seen, aside), config.chunks, jax.random.fold_in(key, 1), file, note, began, deadline
    )
    nnx.update(network.trunk, average)
    graph, weights = nnx.split(network)
    denoiser = ChunkDenoiser(
        weights=weights,
        graph=graph,
        horizon=config.horizon,
        schedule=schedule,
        parameterisation=config.parameterisation,
    )
    policy = policy_of(name, denoiser, normalizer, looked, (MOMENTS, *data.images.shape[1:]))
    return policy, steps


def policy_of(
    name: str, denoiser: ChunkDenoiser, state: Normalizer, features: Normalizer, images: tuple[int, ...]
) -> Policy:
    """The policy of a trained network; `state` normalises one knot."""
    horizon = denoiser.horizon
    return Policy(
        name=name,
        denoiser=denoiser,
        encoder=VisuomotorEncoder(denoiser=denoiser, state=state, features=features, images=tuple(images)),
        normalizer=Normalizer(mean=jnp.tile(state.mean, horizon), scale=jnp.tile(state.scale, horizon)),
        schedule=denoiser.schedule,
        spec=ToolPathSpec(hand="gripper", joint_names=("gripper_left",), horizon=horizon, grip=(0.0, 0.0, PINCH)),
        support=SUPPORT,
    )


def features_of(eyes: VisuomotorEyes, data: Windows, chunk: int = 512) -> Float[np.ndarray, "N F"]:
    """What the eyes say of every moment."""
    graph, weights = nnx.split(eyes)
    look = jax.jit(lambda weights, images, state: jax.vmap(nnx.merge(graph, weights))(images, state))
    n = data.state.shape[0]
    out = []
    for a in range(0, n, chunk):
        rows = np.minimum(np.arange(a, a + chunk), n - 1)  # one shape, one compilation
        out.append(np.asarray(look(weights, data.images[rows], data.state[rows]))[: n - a])
    return np.concatenate(out)


class Head(nnx.Module):
    """Features and state at one moment to landmarks and chunk."""

    def __init__(self, inputs: int, landmarks: int, chunk: int, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(inputs, 128, rngs=rngs)
        self.landmarks = nnx.Linear(128, landmarks, rngs=rngs)
        self.chunk = nnx.Linear(128, chunk, rngs=rngs)

    def __call__(self, features, state):
        h = nnx.silu(self.inner(jnp.concatenate([features, state], axis=-1)))
        return self.landmarks(h), self.chunk(h)


def _fit_eyes(eyes, seen, aside, config, key, folder, report, began):
    """The trained weights of the eyes."""
    n_features, n_state = eyes.outer.out_features, seen.goal.shape[1]
    head = Head(n_features + n_state, seen.landmarks.shape[1], config.horizon * n_state, rngs=nnx.Rngs(config.seed + 1))
    graph, weights = nnx.split((eyes, head))

    def loss_of(weights, data: Windows, key):
        eyes, head = nnx.merge(graph, weights)
        i = data.draw(key, config.eyes.batch)
        state = data.state[i]
        landmarks, chunk = head(jax.vmap(eyes)(data.images[i], state), state)
        wanted = data.chunk(i, config.horizon).reshape(len(i), -1)
        return jnp.mean((landmarks - data.landmarks[i]) ** 2) + jnp.mean((chunk - wanted) ** 2)

    file = None if folder is None else Path(folder) / "eyes.npz"
    average, _ = fit(loss_of, weights, (seen, aside), config.eyes, key, file, partial(report, "eyes"), began)
    return nnx.state(nnx.merge(graph, average)[0])


def fit(
    loss_of: Callable[[Any, Any, Any], Float[Array, ""]],
    weights: Any,
    data: tuple[Any, Any],
    stage: Stage,
    key: Any,
    file: Path | None,
    report: Callable[[int, float, float, float], None],
    began: float,
    deadline: float | None = None,
    every: int = 100,
) -> tuple[Any, int]:
    """The moving average of the weights after minimising `loss_of(weights, data[0], key)`, and the steps done.

    Args:
      data: what is trained on, and what the second reported loss is measured on.
      file: checkpoint, resumed if it is there.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, stage.warmup, stage.steps, 0.01 * stage.learning_rate
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=stage.weight_decay))

    @jax.jit
    def run_block(state: FitState, data, key):
        def one(state, _):
            loss, gradient = jax.value_and_grad(loss_of)(state.weights, data, jax.random.fold_in(key, state.step))
            update, opt = optimiser.update(gradient, state.optimiser, state.weights)
            weights = optax.apply_updates(state.weights, update)
            decay = jnp.minimum(stage.ema, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.average, weights)
            return replace(state, weights=weights, average=average, optimiser=opt, step=state.step + 1), loss

        state, losses = jax.lax.scan(one, state, length=stage.block)
        return state, losses.mean()

    @jax.jit
    def check(weights, data, key):
        return jnp.mean(jax.lax.map(lambda k: loss_of(weights, data, k), jax.random.split(key, 8)))

    state = FitState(weights=weights, average=weights, optimiser=optimiser.init(weights), step=jnp.zeros((), jnp.int32))
    if file is not None and file.exists():
        state = restore(state, file)
    while int(state.step) < stage.steps and (deadline is None or time.perf_counter() - began < deadline):
        state, loss = run_block(state, data[0], key)
        step = int(state.step)
        if not np.isfinite(float(loss)):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step}; the last checkpoint is intact")
        if step % every < stage.block or step >= stage.steps:
            if file is not None:
                store(state, file)
            report(step, float(loss), float(check(state.average, data[1], key)), time.perf_counter() - began)
    if file is not None:
        store(state, file)
    return state.average, int(state.step)
