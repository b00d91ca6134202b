"""The reverse process as a dynamical system whose control is the noise.

Levels k = K .. 0 have scales (alpha_k, sigma_k). With the clean estimate x0 = D(x_k, t_k) and the noise estimate
e = (x_k - alpha_k x0)/sigma_k,

    x_{k-1} = mean_k + std_k u_k,
    mean_k  = alpha_{k-1} x0 + sqrt(sigma_{k-1}^2 - std_k^2) e,
    std_k   = eta sigma_{k-1} sqrt(1 - (alpha_k sigma_{k-1} / (alpha_{k-1} sigma_k))^2).

This is DDIM's family (Song et al. 2021, arXiv 2010.02502, eqs. 12 and 16) written so that it also holds on paths that do not preserve
variance. u_k ~ N(0, I) with eta = 1 is DDPM; eta = 0 is DDIM, and on the flow path exactly Euler's method. The last step has std_1 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffopt.policies.base import Policy
from diffopt.schedules import levels


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ReverseProcess:
    """A bound policy on a grid of levels, in normalised coordinates.

    Attributes:
      policy: the policy, with its context.
      times: t_k for k = 0 .. K.
      alpha, sigma: scales at the levels.
      std: standard deviation of the step from level k to k - 1, at index k (0 at index 0).
    """

    policy: Policy
    times: Float[Array, "K+1"]
    alpha: Float[Array, "K+1"]
    sigma: Float[Array, "K+1"]
    std: Float[Array, "K+1"]

    @staticmethod
    def of(policy: Policy, *, count: int = 16, eta: float = 1.0, rho: float = 1.0) -> ReverseProcess:
        """The process of `policy` on `count` levels with stochasticity eta in [0, 1]."""
        times = jnp.asarray(levels(count, rho))
        alpha, sigma = policy.schedule.scales(times)
        ratio = alpha[1:] * sigma[:-1] / (alpha[:-1] * sigma[1:])
        std = eta * sigma[:-1] * jnp.sqrt(jnp.maximum(1 - ratio**2, 0))
        return ReverseProcess(
            policy=policy, times=times, alpha=alpha, sigma=sigma, std=jnp.concatenate([jnp.zeros(1), std])
        )

    @property
    def count(self) -> int:
        """Number K of steps."""
        return self.times.shape[0] - 1

    @property
    def dim(self) -> int:
        return self.policy.spec.dim

    def prior(self, key: Array) -> Float[Array, "n"]:
        """x_K: pure noise."""
        return jax.random.normal(key, (self.dim,)) * self.sigma[-1]

    def clean(self, x: Float[Array, "n"], k) -> Float[Array, "n"]:
        """The clean estimate at level k; one evaluation of the network."""
        return self.policy.clean(x, self.times[k])

    def mean(self, x: Float[Array, "n"], clean: Float[Array, "n"], k) -> Float[Array, "n"]:
        """Mean of the next iterate, given the clean estimate at (x, k)."""
        noise = (x - self.alpha[k] * clean) / self.sigma[k]
        kept = jnp.sqrt(jnp.maximum(self.sigma[k - 1] ** 2 - self.std[k] ** 2, 0))
        return self.alpha[k - 1] * clean + kept * noise

    def mean_std(self, x: Float[Array, "n"], k) -> tuple[Float[Array, "n"], Float[Array, ""]]:
        """Mean and standard deviation of the next iterate."""
        return self.mean(x, self.clean(x, k), k), self.std[k]

    def step(self, x: Float[Array, "n"], control: Float[Array, "n"], k) -> Float[Array, "n"]:
        """The next iterate under the control (the noise) at level k."""
        mean, std = self.mean_std(x, k)
        return mean + std * control

    def rollout(self, x: Float[Array, "n"], controls: Float[Array, "K n"]) -> Float[Array, "n"]:
        """x_0 from x_K; row i of `controls` acts at level K - i."""

        def body(x, step):
            k, control = step
            return self.step(x, control, k), None

        x, _ = jax.lax.scan(body, x, (jnp.arange(self.count, 0, -1), controls))
        return x
