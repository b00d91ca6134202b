"""Policies: a denoiser with everything that is needed to sample plans from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose, Target
from diffopt.plans import PlanSpec
from diffopt.schedules import Schedule


class Denoiser(Protocol):
    """A network, or an exact formula, with its parameterisation resolved; a pytree."""

    def __call__(self, x: Float[Array, "n"], t: Float[Array, ""], condition: Any) -> Float[Array, "n"]:
        """The estimate E[x0 | x_t = x] of the clean normalised vector."""
        ...


class Encoder(Protocol):
    """Turns what the user observes into the denoiser's condition, once per observation; a pytree."""

    def __call__(self, observation: Any) -> Context: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Context:
    """An observation as the denoiser sees it, and the frame in which its vectors are given.

    Attributes:
      condition: what the denoiser takes; any pytree.
      frame: T_world_frame.
    """

    condition: Any = None
    frame: Pose = field(default_factory=Pose.identity)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """The network's coordinates: z = (v - mean) / scale."""

    mean: Float[Array, "n"]
    scale: Float[Array, "n"]

    @staticmethod
    def identity(dim: int) -> Normalizer:
        return Normalizer(mean=jnp.zeros(dim), scale=jnp.ones(dim))

    @staticmethod
    def fit(vectors: Float[np.ndarray, "N n"], smallest: float = 1e-3) -> Normalizer:
        """Zero mean and unit variance over `vectors`; coordinates that hardly vary keep the scale `smallest`."""
        return Normalizer(
            mean=jnp.asarray(vectors.mean(0), jnp.float32),
            scale=jnp.asarray(np.maximum(vectors.std(0), smallest), jnp.float32),
        )

    def normalize(self, vector: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return (vector - self.mean) / self.scale

    def denormalize(self, z: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return z * self.scale + self.mean


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TargetFrame:
    """The encoder of policies that look at nothing: only the target's frame counts."""

    def __call__(self, observation: Target | None) -> Context:
        return Context() if observation is None else Context(frame=observation.pose)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Policy:
    """A pretrained diffusion or flow policy.

    Attributes:
      name: for reports.
      denoiser: clean-plan estimator in normalised coordinates.
      encoder: observation to context.
      normalizer: between the plan's vector and the network's coordinates.
      context: what `given` bound; None before.
      schedule: noise schedule the denoiser was trained with.
      spec: what the vector means.
      needs_observation: whether it can be sampled before `given`.
      support: largest normalised coordinate, in absolute value, of a plan that still counts as this policy's; infinite for no such bound.
      executed: of a chunk, the first row that a receding horizon executes, and the first that it does not; rows before lie in the past.
        None: from the first on, as many as the controller likes.
    """

    denoiser: Denoiser
    encoder: Encoder = field(default_factory=TargetFrame)
    normalizer: Normalizer
    context: Context | None = None
    schedule: Schedule = field(metadata=dict(static=True))
    spec: PlanSpec = field(metadata=dict(static=True))
    name: str = field(default="policy", metadata=dict(static=True))
    needs_observation: bool = field(default=True, metadata=dict(static=True))
    support: float = field(default=math.inf, metadata=dict(static=True))
    executed: tuple[int, int] | None = field(default=None, metadata=dict(static=True))

    def __repr__(self) -> str:
        bound = "" if self.context is None else ", bound"
        return f"Policy({self.name!r}, {self.spec.plan_type.__name__} of {self.spec.dim} numbers{bound})"

    def given(self, observation: Any) -> Policy:
        """This policy bound to an observation (for a grasp policy, a `Target`)."""
        return replace(self, context=self.encoder(observation))

    def bound(self) -> Policy:
        """This policy with its context and nothing that is only needed to make one; a ValueError if none was given."""
        return replace(self, context=self._context, encoder=TargetFrame())

    def decode(self, z: Float[Array, "n"]) -> Any:
        """The plan, in the world, of a normalised vector."""
        return self.spec.decode(self.normalizer.denormalize(z), self._context.frame)

    def encode(self, plan: Any) -> Float[Array, "n"]:
        """The normalised vector of a plan."""
        return self.normalizer.normalize(self.spec.encode(plan, self._context.frame))

    def difference(self, z: Float[Array, "n"], reference: Float[Array, "n"]) -> Float[Array, "m"]:
        """How far the plan of normalised z is from that of `reference`, in standard deviations, or in what the spec counts as one; half
        its squared norm is the distance of plans."""
        raw = self.normalizer.denormalize
        return self.spec.difference(raw(z), raw(reference), self.normalizer.scale)

    def clean(self, z: Float[Array, "n"], t: Float[Array, ""]) -> Float[Array, "n"]:
        """The denoiser's clean estimate at normalised z and time t."""
        return self.denoiser(z, t, self._context.condition)

    @property
    def _context(self) -> Context:
        if self.context is not None:
            return self.context
        if self.needs_observation:
            raise ValueError(f"policy {self.name!r} has no observation yet; bind one first: policy.given(scene.target)")
        return Context()
