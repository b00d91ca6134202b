"""L-BFGS with a search over several step lengths at once, for samplers that optimise a whole chain.

    d = H grad f (Liu and Nocedal 1989; optax),      z <- z - t d   with the t of `LENGTHS` at which f is least, if it is less than before

A strong-Wolfe search evaluates one step length after the other, and under `vmap` every lane waits for the slowest; here all lengths are
evaluated side by side, and the number of evaluations is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LENGTHS = (2.0, 1.0, 0.4, 0.1, 0.02)


class Descended(NamedTuple):
    """The unknowns, the value there, how often f was evaluated, and whether the last iteration hardly helped any more."""

    z: Any
    value: Float[Array, ""]
    evaluations: int
    settled: Array


def descend(f: Callable[[Any], Float[Array, ""]], z: Any, *, iterations: int, memory: int = 10) -> Descended:
    """Minimise f from z, by `iterations` steps, always all of them; `memory` pairs make the quasi-Newton matrix."""
    import optax

    solver = optax.scale_by_lbfgs(memory_size=memory)
    lengths = jnp.asarray(LENGTHS)

    def body(carry, _):
        z, value, grad, state, _ = carry
        direction, state = solver.update(grad, state, z)

        def at(t):
            return jax.tree.map(lambda a, d: a - t * d, z, direction)

        values = jax.vmap(lambda t: f(at(t)))(lengths)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        taken = at(jnp.where(values[best] < value, lengths[best], 0.0))
        taken = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), taken, z)
        new, grad = jax.value_and_grad(f)(taken)
        return (taken, new, grad, state, value - new <= 1e-4 * (1 + jnp.abs(value))), None

    start = (z, *jax.value_and_grad(f)(z), solver.init(z), jnp.asarray(False))
    (z, value, _, _, settled), _ = jax.lax.scan(body, start, length=iterations)
    return Descended(z, value, 1 + iterations * (len(LENGTHS) + 1), settled)
