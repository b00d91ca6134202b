"""How good a grasp prior is: plain samples for a floating hand, tested in physics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffopt.geometry import Pose, Target
from diffopt.plans import Grasp
from diffopt.policies.base import Policy
from diffopt.process import ReverseProcess
from diffopt.scenes.solids import GraspObject
from diffopt.training.dataset import POINTS


def sample_floating(
    policy: Policy,
    objects: Sequence[GraspObject],
    each: int,
    key,
    *,
    levels: int = 16,
    eta: float = 0.0,
    rho: float = 1.0,
) -> tuple[Grasp, np.ndarray]:
    """`each` grasps of every object, in the object's frame, by DDIM; and the object's index of each."""
    points = jnp.asarray(np.stack([o.surface(POINTS)[0] for o in objects]), jnp.float32)
    keys = jax.random.split(key, (len(objects), each))

    out = _run(policy, points, keys, levels, eta, rho)
    return jax.tree.map(lambda a: np.asarray(a).reshape((-1, *a.shape[2:])), out), np.repeat(
        np.arange(len(objects)), each
    )


@partial(jax.jit, static_argnames=("levels", "eta", "rho"))
def _run(policy: Policy, points, keys, levels: int, eta: float, rho: float) -> Grasp:
    def one_object(points, keys):
        bound = policy.given(Target(points=points, pose=Pose.identity()))
        process = ReverseProcess.of(bound, count=levels, eta=eta, rho=rho)

        def one(key):
            first, rest = jax.random.split(key)
            return bound.decode(process.rollout(process.prior(first), jax.random.normal(rest, (levels, process.dim))))

        return jax.vmap(one)(keys)

    return jax.vmap(one_object)(points, keys)
