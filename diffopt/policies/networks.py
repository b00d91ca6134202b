"""The network of the grasp prior: residual MLPs whose layers are modulated by time and object (FiLM), in two stages.

    h = W_in x,   h <- h + W2 silu((1 + gamma_l) LN(h) W1 + beta_l)   for each block l,   out = W_out LN(h)

with (gamma_l, beta_l) linear in c = silu(time embedding + condition embedding). FiLM: Perez et al. 2018, arXiv 1709.07871. Time and
condition never touch the wide layers, so under `vmap` over samples of one observation their cost is paid once per level.

The first stage maps x_t to v' and so to a clean grasp x0' = alpha x_t - sigma v'. The second looks at the object from the hand as it
stands at x0' (`diffopt.policies.view`) and corrects it:

    v = v' + R' o,    o = second(LN(h), look(x0'), x0', (x_t - alpha x0')/sigma),

where R' is the wrist's rotation in x0': what the second stage sees and says of position and rotation stands in the wrist's frame. All of
this is one evaluation of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffopt.geometry import Target, rotation_from_6d
from diffopt.policies.base import Context, Normalizer
from diffopt.policies.view import Foot, HandView
from diffopt.schedules import Schedule


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
    """The first stage; `features` is the length of the condition vector."""

    def __init__(self, *, dim: int, features: int, width: int, blocks: int, embedding: int, rngs: nnx.Rngs):
        self.frequencies = tuple(np.geomspace(1.0, 512.0, 32).tolist())
        self.time = nnx.Sequential(
            nnx.Linear(2 * len(self.frequencies), embedding, rngs=rngs),
            nnx.silu,
            nnx.Linear(embedding, embedding, rngs=rngs),
        )
        self.condition = nnx.Sequential(
            nnx.Linear(features, width, rngs=rngs), nnx.silu, nnx.Linear(width, embedding, rngs=rngs)
        )
        self.inlet = nnx.Linear(dim, width, rngs=rngs)
        self.blocks = nnx.List([FilmBlock(width, embedding, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.outlet = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def embed(self, features: Float[Array, "*batch features"]) -> Float[Array, "*batch embedding"]:
        """The condition's embedding; computed once per observation."""
        return self.condition(features)

    def hidden(self, x, t, embedding):
        """At x and time t in [0, 1]: what `outlet` maps to v, and the modulation c."""
        phase = jnp.asarray(t)[..., None] * jnp.asarray(self.frequencies)
        c = nnx.silu(self.time(jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)) + embedding)
        h = self.inlet(x)
        for block in self.blocks:
            h = block(h, c)
        return self.norm(h), c


class Correction(nnx.Module):
    """The second stage: `inputs` numbers and the `hidden` ones of the first stage to `dim`; all zero before training."""

    def __init__(self, *, dim: int, inputs: int, hidden: int, width: int, blocks: int, embedding: int, rngs: nnx.Rngs):
        self.inlet = nnx.Linear(inputs, width, rngs=rngs)
        self.handover = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)
        self.blocks = nnx.List([FilmBlock(width, embedding, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.outlet = nnx.Linear(width, dim, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, inputs, hidden, c):
        h = self.inlet(inputs) + self.handover(hidden)
        for block in self.blocks:
            h = block(h, c)
        return self.outlet(self.norm(h))


class GraspNetwork(nnx.Module):
    """Both stages; `look` is the length of what the hand sees. See the module's docstring."""

    def __init__(
        self,
        *,
        dim: int,
        features: int,
        look: int,
        width: int,
        blocks: int,
        embedding: int,
        second_width: int,
        second_blocks: int,
        rngs: nnx.Rngs,
    ):
        self.first = FilmMLP(dim=dim, features=features, width=width, blocks=blocks, embedding=embedding, rngs=rngs)
        sizes = dict(width=second_width, blocks=second_blocks, embedding=embedding)
        self.second = Correction(dim=dim, inputs=look + 2 * dim, hidden=width, rngs=rngs, **sizes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GraspDenoiser:
    """A `GraspNetwork` split into structure (static) and weights (data), with all that it needs to see the object from the hand.

    Attributes:
      weights: the nnx state.
      normalizer: between the network's coordinates and the grasp vector (laid out as in `diffopt.plans.GraspSpec`).
      view: the hand's eyes.
      graph: the nnx graph definition.
      schedule: the schedule it was trained with.
    """

    weights: Any
    normalizer: Normalizer
    view: HandView
    graph: Any = field(metadata=dict(static=True))
    schedule: Schedule = field(metadata=dict(static=True))

    @property
    def network(self) -> Any:
        return nnx.merge(self.graph, self.weights)

    def __call__(self, x, t, condition: Seen):
        return self.estimates(x, t, condition)[1]

    def estimates(self, x, t, condition: Seen, apart: bool = False) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
        """The clean estimates of the first stage and of both. `apart`: no derivatives flow from the second into the first (to train)."""
        network = self.network
        alpha, sigma = self.schedule.scales(jnp.asarray(t))
        hidden, modulation = network.first.hidden(x, t, condition.embedding)
        coarse = alpha * x - sigma * network.first.outlet(hidden)
        start, hidden, modulation = (
            jax.lax.stop_gradient((coarse, hidden, modulation)) if apart else (coarse, hidden, modulation)
        )
        vector = self.normalizer.denormalize(start)
        joints, squeeze = jnp.split(vector[9:], 2)
        rotation = rotation_from_6d(vector[3:9])
        look = self.view.look(vector[:3], rotation, joints, squeeze, condition.foot)
        noise = self._to_wrist(rotation, (x - alpha * start) / sigma)
        out = network.second(jnp.concatenate([look, start, noise]), hidden, modulation)
        return coarse, start - sigma * self._from_wrist(rotation, out)

    @property
    def _stretch(self) -> Float[Array, "3 3"]:
        """Scales of position and rotation columns over their mean over the axes: in the wrist's frame no axis is special."""
        scale = self.normalizer.scale[:9].reshape(3, 3)
        return scale / scale.mean(axis=-1, keepdims=True)

    def _to_wrist(self, rotation: Float[Array, "3 3"], z: Float[Array, "n"]) -> Float[Array, "n"]:
        """A difference of normalised vectors with its position and rotation columns in the wrist's frame."""
        return jnp.concatenate([((z[:9].reshape(3, 3) * self._stretch) @ rotation).reshape(9), z[9:]])

    def _from_wrist(self, rotation: Float[Array, "3 3"], z: Float[Array, "n"]) -> Float[Array, "n"]:
        """The inverse of `_to_wrist`."""
        return jnp.concatenate([(z[:9].reshape(3, 3) @ rotation.T / self._stretch).reshape(9), z[9:]])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Seen:
    """An object as the network takes it: the embedding of its basis-point distances, and the foot of any point on its surface."""

    embedding: Float[Array, "E"]
    foot: Foot


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
    denoiser: GraspDenoiser

    def features(self, points: Float[Array, "N 3"]) -> Float[Array, "B"]:
        """Normalised distance of every basis point to the nearest surface point."""
        return (basis_point_distances(self.basis, points) - self.mean) / self.scale

    def __call__(self, observation: Target) -> Context:
        if not isinstance(observation, Target):
            raise TypeError(f"this policy observes a diffopt.geometry.Target; got {type(observation).__name__}")
        embedding = self.denoiser.network.first.embed(self.features(observation.points))
        return Context(condition=Seen(embedding=embedding, foot=Foot.of(observation.points)), frame=observation.pose)


def basis_point_distances(basis: Float[Array, "B 3"], points: Float[Array, "N 3"]) -> Float[Array, "B"]:
    """Distance [m] from every basis point to the nearest of `points`."""
    squared = jnp.sum((basis[:, None] - points[None]) ** 2, axis=-1)
    return jnp.sqrt(jnp.min(squared, axis=-1))
