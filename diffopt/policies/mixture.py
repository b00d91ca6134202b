"""Exact priors: Gaussian mixtures, for which the clean estimate is known in closed form.

For x0 ~ sum_i w_i N(m_i, diag s_i^2) and x = alpha x0 + sigma eps, with v_i = alpha^2 s_i^2 + sigma^2,

    E[x0 | x] = sum_i r_i(x) (m_i + alpha s_i^2 / v_i (x - alpha m_i)),      r_i(x) proportional to w_i N(x; alpha m_i, v_i).

With one component per data point and a common s this is the exact denoiser of a kernel density estimate. It is the oracle against
which samplers are tested: no network error stands between a sampler and its posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.plans import PlanSpec, PointSpec
from diffopt.policies.base import Normalizer, Policy
from diffopt.schedules import Cosine, Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """The denoiser of a mixture; also its sampler and density.

    Attributes:
      means: component means.
      scales: standard deviations, per component and coordinate.
      log_weights: unnormalised log weights.
      schedule: the noise schedule.
    """

    means: Float[Array, "C n"]
    scales: Float[Array, "C n"]
    log_weights: Float[Array, "C"]
    schedule: Schedule = field(metadata=dict(static=True))

    def __call__(self, x, t, condition):
        alpha, sigma = self.schedule.scales(jnp.asarray(t))
        variance = alpha**2 * self.scales**2 + sigma**2
        offset = x - alpha * self.means
        log_r = self.log_weights - 0.5 * jnp.sum(offset**2 / variance + jnp.log(variance), axis=-1)
        each = self.means + alpha * self.scales**2 / variance * offset
        return jax.nn.softmax(log_r) @ each

    def sample(self, key: Array, n: int) -> Float[Array, "n dim"]:
        """Exact draws of x0."""
        pick_key, noise_key = jax.random.split(key)
        pick = jax.random.categorical(pick_key, self.log_weights, shape=(n,))
        return self.means[pick] + self.scales[pick] * jax.random.normal(noise_key, (n, self.means.shape[1]))

    def log_density(self, x0: Float[Array, "dim"]) -> Float[Array, ""]:
        """Log density of x0."""
        z = (x0 - self.means) / self.scales
        each = -0.5 * jnp.sum(z**2 + 2 * jnp.log(self.scales) + jnp.log(2 * jnp.pi), axis=-1)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.log_weights) + each)


def gaussian_mixture(
    means, scales, weights=None, *, schedule: Schedule | None = None, spec: PlanSpec | None = None
) -> Policy:
    """A policy whose prior is exactly a Gaussian mixture.

    Args:
      means: (C, n) component means, in the plan's coordinates.
      scales: standard deviations; anything that broadcasts to (C, n), all positive.
      weights: (C,) positive weights; equal by default.
      schedule: noise schedule; `Cosine()` by default.
      spec: what the vector means; a plain `PointSpec` by default.
    """
    means = jnp.atleast_2d(jnp.asarray(means, jnp.float32))
    count, dim = means.shape
    weights = jnp.ones(count) if weights is None else jnp.asarray(weights, jnp.float32)
    if weights.shape != (count,):
        raise ValueError(f"weights have shape {weights.shape}; {count} components need ({count},)")
    schedule = Cosine() if schedule is None else schedule
    denoiser = GaussianMixture(
        means=means,
        scales=jnp.broadcast_to(jnp.asarray(scales, jnp.float32), means.shape),
        log_weights=jnp.log(weights),
        schedule=schedule,
    )
    return Policy(
        denoiser=denoiser,
        normalizer=Normalizer.identity(dim),
        schedule=schedule,
        spec=PointSpec(dim=dim) if spec is None else spec,
        name="gaussian-mixture",
        needs_observation=False,
    )
