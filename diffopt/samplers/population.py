"""Sequential Monte Carlo over the levels: a population of iterates, weighted, resampled, and moved.

With a potential G_k(x_k), a proposal of mean mu + drift, and the plain step p as the target's dynamics,

    log w += G_k(x_k) - G_{k+1}(x_{k+1}) + log p(x_k | x_{k+1}) / q(x_k | x_{k+1}),

so that at the end the weights are those of p(x_0) exp(G_0(x_0)). The population is resampled, systematically, when its effective size
falls below half. After the last level the member of the greatest potential is returned, of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.process import ReverseProcess
from diffopt.samplers.guidance import Guide, Tracks
from diffopt.samplers.walk import Walked


class Look(NamedTuple):
    """What is seen at an iterate: its clean estimate, potential, joint tracks, and the drift of the proposal."""

    clean: Float[Array, "n"]
    potential: Float[Array, ""]
    tracks: Tracks
    drift: Float[Array, "n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Members:
    """Leaves have a leading axis of members.

    Attributes:
      x, tracks: iterates and their joints.
      weight: log w. potential: G where it was last seen. ratio: log p/q of the last move.
      energy: 1/2 sum |control|^2 along the ancestry.
    """

    x: Array
    tracks: Tracks
    weight: Array
    potential: Array
    ratio: Array
    energy: Array


def steer(
    process: ReverseProcess,
    guide: Guide,
    key: Array,
    count: int,
    look: Callable[[Array, Tracks, Any], Look],
    judge: Callable[[Array, Tracks], Array],
) -> Walked:
    """The returned member; its carry is its joint tracks.

    Args:
      look: at an iterate, its tracks and level; one evaluation of the network.
      judge: G_0 of a plan.
    """
    init_key, noise_key, resample_key = jax.random.split(key, 3)
    x = jax.vmap(process.prior)(jax.random.split(init_key, count))
    zero = jnp.zeros(count)
    tracks = jax.vmap(lambda x: guide.start(process.clean(x, process.count)) if guide.seeds(x) else {})(x)
    members = Members(x=x, tracks=tracks, weight=zero, potential=zero, ratio=zero, energy=zero)

    def body(members: Members, step) -> tuple[Members, None]:
        k, z, key = step
        seen = jax.vmap(lambda x, tracks: look(x, tracks, k))(members.x, members.tracks)
        weight = members.weight + seen.potential - members.potential + members.ratio
        index, weight = resampled(key, weight)
        seen, x, energy = jax.tree.map(lambda leaf: leaf[index], (seen, members.x, members.energy))
        mean = jax.vmap(lambda x, clean: process.mean(x, clean, k))(x, seen.clean)
        std = process.std[k]
        pushed = jnp.where(std > 0, seen.drift / jnp.where(std > 0, std, 1.0), 0.0)
        control = z + pushed
        ratio = jnp.where(std > 0, 0.5 * jnp.sum(z**2 - control**2, axis=1), 0.0)
        spent = jnp.where(std > 0, 0.5 * jnp.sum(control**2, axis=1), 0.0)
        return Members(
            x=mean + std * control,
            tracks=seen.tracks,
            weight=weight,
            potential=seen.potential,
            ratio=ratio,
            energy=energy + spent,
        ), None

    noise = jax.random.normal(noise_key, (process.count, count, process.dim))
    steps = (jnp.arange(process.count, 0, -1), noise, jax.random.split(resample_key, process.count))
    members, _ = jax.lax.scan(body, members, steps)
    ended = jax.vmap(guide.follow)(members.x, members.tracks)
    final = jax.vmap(judge)(members.x, ended)
    best = jnp.argmax(jnp.where(jnp.isfinite(final), final, -jnp.inf))
    x, tracks, energy = jax.tree.map(lambda leaf: leaf[best], (members.x, ended, members.energy))
    return Walked(x=x, carry=tracks, energy=energy, moved=jnp.zeros(()))


def resampled(key: Array, weight: Float[Array, "N"]) -> tuple[Array, Float[Array, "N"]]:
    """Ancestors and new log weights: systematic resampling where the effective size is below half, otherwise everybody stays."""
    count = len(weight)
    weight = jnp.where(jnp.isfinite(weight), weight, -jnp.inf)
    weight = weight - jnp.max(weight)
    share = jax.nn.softmax(weight)
    few = 1 / jnp.sum(share**2) < count / 2
    points = (jax.random.uniform(key) + jnp.arange(count)) / count
    drawn = jnp.minimum(jnp.searchsorted(jnp.cumsum(share), points), count - 1)
    return jnp.where(few, drawn, jnp.arange(count)), jnp.where(few, 0.0, weight)
