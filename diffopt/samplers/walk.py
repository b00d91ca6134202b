"""One loop over the levels for every sampler that changes a step: a rule per level, and the control that it amounts to.

A rule takes x_k to x_{k-1}. Whatever it does, it is the control u = (x_{k-1} - mu(x_k)) / std_k of the plain process, mu being the
plain mean at the x_k that the network saw last; 1/2 sum |u|^2 is the energy that is reported. At the last level std = 0: what a rule
moves there is no control but a terminal move, and is reported as such. With eta = 0 that holds for every level, and the energy is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw, stats
from diffopt.samplers.ddim import DDIM
from diffopt.samplers.guidance import Guide, Tracks
from diffopt.samplers.projection import Projection


class Level(NamedTuple):
    """What a rule is told: the level, the noise drawn for its step, and a key for whatever else it draws."""

    k: Array
    noise: Float[Array, "n"]
    key: Array


class Stepped(NamedTuple):
    """What a rule answers.

    Attributes:
      x: the next iterate.
      mean: mean of the plain step, from the x that the network saw last.
      carry: for the next level.
    """

    x: Float[Array, "n"]
    mean: Float[Array, "n"]
    carry: Any


Rule = Callable[[Float[Array, "n"], Any, Level], Stepped]


@dataclass(frozen=True, kw_only=True)
class Walked:
    """x_0, the last carry, 1/2 sum |control|^2, and how far the last level moved x_0 from its plain mean."""

    x: Float[Array, "n"]
    carry: Any
    energy: Float[Array, ""]
    moved: Float[Array, ""]


def walk(
    process: ReverseProcess, key: Array, rule: Rule, begin: Callable[[Array, Any], Any], *, share: float = 1.0
) -> Walked:
    """Plain steps, then `rule` on the last `share` of the levels.

    Args:
      key: used as by plain sampling, so that with a rule that does nothing the plan is the plain one.
      begin: the first carry, from the iterate and the level at which the rule sets in.
    """
    init_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (process.count, process.dim))
    keys = jax.random.split(jax.random.fold_in(noise_key, 1), process.count)
    levels = jnp.arange(process.count, 0, -1)
    free = process.count - solved_levels(process, share)

    def plain(x, step):
        k, z = step
        return process.step(x, z, k), _energy(process.std[k], z)

    def body(state, step):
        x, carry = state
        k, z, key = step
        done = rule(x, carry, Level(k, z, key))
        offset, std = done.x - done.mean, process.std[k]
        acting = std > 0
        control = jnp.where(acting, offset / jnp.where(acting, std, 1.0), 0.0)
        return (done.x, done.carry), (_energy(std, control), _norm(offset))

    x, before = jax.lax.scan(plain, process.prior(init_key), (levels[:free], noise[:free]))
    if free == process.count:
        return Walked(x=x, carry=begin(x, 0), energy=jnp.sum(before), moved=jnp.zeros(()))
    carry = begin(x, levels[free])
    (x, carry), (energy, moved) = jax.lax.scan(body, (x, carry), (levels[free:], noise[free:], keys[free:]))
    return Walked(x=x, carry=carry, energy=jnp.sum(before) + jnp.sum(energy), moved=moved[-1])


def solved_levels(process: ReverseProcess, share: float) -> int:
    """How many levels the last `share` of them are."""
    return round(share * process.count)


def plain_draw(process: ReverseProcess, constraints: ConstraintSet, key: Array) -> Draw:
    """What every sampler answers where nothing is asked for."""
    return DDIM()(process, constraints, key)


def tracks_at(process: ReverseProcess, guide: Guide) -> Callable[[Array, Any], Tracks]:
    """Joint tracks for the clean estimate at the level where a rule sets in; without joints the network is not asked."""
    return lambda x, k: guide.start(process.clean(x, k)) if guide.seeds(x) else {}


def finish(
    process: ReverseProcess,
    guide: Guide,
    walked: Walked,
    tracks: Tracks,
    *,
    evaluations: Any,
    terminal: int = 0,
    iterations: Any = 0,
    begun: int = 1,
) -> Draw:
    """The plan as it came out, with the joints that come nearest; or, with `terminal` > 0, corrected by so many solver steps.

    `begun`: how many times the network was asked for where the joint tracks begin, if there are any.
    """
    x, aux, settled, moved = walked.x, {}, jnp.asarray(True), walked.moved
    if terminal:
        projection = Projection.onto(process, guide.constraints, tracks=guide.tracks, passes=terminal)
        end = projection(x, projection.start(x))
        moved = moved + _norm(end.x - end.reference)
        x, aux, settled, iterations = end.x, end.aux, end.settled, iterations + end.iterations
    else:
        aux = guide.realise(x, tracks)
    return Draw(
        x=x,
        aux=aux,
        settled=settled,
        stats=stats(
            evaluations=evaluations + (begun if tracks else 0),
            iterations=iterations,
            control_energy=walked.energy,
            terminal_move=moved,
        ),
        warm=None,
    )


def shifted_noise(process: ReverseProcess, clean, noise_shift, k, most) -> Float[Array, "n"]:
    """The clean estimate when the noise estimate is moved: x0 - (sigma/alpha) shift, each coordinate within [-most, most].

    At the noisiest levels alpha is near zero; the samplers of the papers clip their estimate to the range of the data there, too.
    """
    moved = clean - process.sigma[k] / process.alpha[k] * noise_shift
    return jnp.where(noise_shift == 0, clean, jnp.clip(moved, -most, most))


def keeping_noise(process: ReverseProcess, x, clean, target, k) -> Float[Array, "n"]:
    """The mean of the next iterate when the clean estimate is replaced by a target and the noise estimate is kept."""
    return process.mean(x, clean, k) + process.alpha[k - 1] * (target - clean)


def renoised(process: ReverseProcess, x, k, noise) -> Float[Array, "n"]:
    """x_k drawn from the forward process given x_{k-1}."""
    ratio = process.alpha[k] / process.alpha[k - 1]
    return ratio * x + jnp.sqrt(jnp.maximum(process.sigma[k] ** 2 - (ratio * process.sigma[k - 1]) ** 2, 0)) * noise


def _energy(std, control):
    return 0.5 * jnp.sum(jnp.where(std > 0, control, 0.0) ** 2)


def _norm(v: Float[Array, "n"]) -> Float[Array, ""]:
    """|v|, with a finite derivative at zero."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
