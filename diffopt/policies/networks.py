"""The network of the grasp prior: a residual MLP whose layers are modulated by time and object (FiLM).

    h = W_in x,   h <- h + W2 silu((1 + gamma_l) LN(h) W1 + beta_l)   for each block l,   out = W_out LN(h)

with (gamma_l, beta_l) linear in c = silu(time embedding + condition embedding). FiLM: Perez et al. 2018, arXiv 1709.07871. Time and
condition never touch the wide layers, so under `vmap` over samples of one observation their cost is paid once per level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffopt.geometry import Target
from diffopt.policies.base import Context
from diffopt.schedules import Parameterisation, Schedule, clean_estimate


class FilmBlock(nnx.Module):
    def __init__(self, width: int, embedding: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.film = nnx.Linear(embedding, 2 * width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.outer = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, h, c):
        gamma, beta = jnp.split(self.film(c), 2, axis=-1)
        return h + self.outer(nnx.silu((1 + gamma) * self.inner(self.norm(h)) + beta))


class FilmMLP(nnx.Module):
    """See the module's docstring; `features` is the length of the condition vector (0 for none)."""

    def __init__(self, *, dim: int, features: int, width: int = 512, blocks: int = 4, embedding: int = 256, rngs: nnx.Rngs):
        self.frequencies = tuple(np.geomspace(1.0, 512.0, 32).tolist())
        self.time = nnx.Sequential(
            nnx.Linear(2 * len(self.frequencies), embedding, rngs=rngs), nnx.silu, nnx.Linear(embedding, embedding, rngs=rngs)
        )
        self.condition = (
            nnx.Sequential(nnx.Linear(features, width, rngs=rngs), nnx.silu, nnx.Linear(width, embedding, rngs=rngs))
            if features
            else None
        )
        self.inlet = nnx.Linear(dim, width, rngs=rngs)
        self.blocks = nnx.List([FilmBlock(width, embedding, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.outlet = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def embed(self, features: Float[Array, "*batch features"]) -> Float[Array, "*batch embedding"]:
        """The condition's embedding; computed once per observation."""
        if self.condition is None:
            raise ValueError("this network was built with features=0 and takes no condition")
        return self.condition(features)

    def __call__(self, x, t, embedding):
        """The raw output at x and time t in [0, 1]; `embedding` comes from `embed`, or is None."""
        phase = jnp.asarray(t)[..., None] * jnp.asarray(self.frequencies)
        c = self.time(jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1))
        c = nnx.silu(c if embedding is None else c + embedding)
        h = self.inlet(x)
        for block in self.blocks:
            h = block(h, c)
        return self.outlet(self.norm(h))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NetworkDenoiser:
    """A network split into structure (static) and weights (data), with its parameterisation resolved.

    Attributes:
      weights: the nnx state.
      graph: the nnx graph definition.
      schedule: the schedule it was trained with.
      parameterisation: what its output means.
    """

    weights: Any
    graph: Any = field(metadata=dict(static=True))
    schedule: Schedule = field(metadata=dict(static=True))
    parameterisation: Parameterisation = field(metadata=dict(static=True))

    @staticmethod
    def of(network: nnx.Module, schedule: Schedule, parameterisation: Parameterisation) -> NetworkDenoiser:
        graph, weights = nnx.split(network)
        return NetworkDenoiser(weights=weights, graph=graph, schedule=schedule, parameterisation=parameterisation)

    @property
    def network(self) -> Any:
        return nnx.merge(self.graph, self.weights)

    def __call__(self, x, t, condition):
        alpha, sigma = self.schedule.scales(jnp.asarray(t))
        return clean_estimate(self.network(x, t, condition), x, alpha, sigma, self.parameterisation)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BasisPointEncoder:
    """Distances from fixed basis points to the object's surface (Prokudin et al. 2019, arXiv 1908.09186), embedded by the network.

    Attributes:
      basis: basis points in the object's frame [m].
      mean, scale: normalisation of the distances [m].
      denoiser: whose network embeds them.
    """

    basis: Float[Array, "B 3"]
    mean: Float[Array, "B"]
    scale: Float[Array, "B"]
    denoiser: NetworkDenoiser

    def features(self, points: Float[Array, "N 3"]) -> Float[Array, "B"]:
        """Normalised distance of every basis point to the nearest surface point."""
        return (basis_point_distances(self.basis, points) - self.mean) / self.scale

    def __call__(self, observation: Target) -> Context:
        if not isinstance(observation, Target):
            raise TypeError(f"this policy observes a diffopt.geometry.Target; got {type(observation).__name__}")
        return Context(condition=self.denoiser.network.embed(self.features(observation.points)), frame=observation.pose)


def basis_point_distances(basis: Float[Array, "B 3"], points: Float[Array, "N 3"]) -> Float[Array, "B"]:
    """Distance [m] from every basis point to the nearest of `points`."""
    squared = jnp.sum((basis[:, None] - points[None]) ** 2, axis=-1)
    return jnp.sqrt(jnp.min(squared, axis=-1))
