"""How programs are compiled.

XLA for CPUs, as locked, spends most of its time on two things that programs of ours gain little from: its fusion emitters, and LLVM's
optimisation beyond the first level. Without them a first call of `sample` takes less than half as long, and later calls as long as before
(docs/sampling.md). Without fusion emitters steps of MJX are faster, too: there each body of a long chain was computed with all
those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp

Options = dict[str, bool | int]


def compiler_options(least: bool = True) -> Options:
    """Options of XLA for `jax.jit` and `Lowered.compile`; none on an accelerator.

    Args:
      least: whether to leave out LLVM's later optimisations also, which long loops of small steps, as of physics, do gain from.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_use_fusion_emitters": False} | ({"xla_backend_optimization_level": 1} if least else {})


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit`, with `compiler_options` where it is the outermost one; inside of others it is theirs that count."""
    inner = jax.jit(function, **options)

    @cache  # asking for the backend starts it, which an import should not
    def outer() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = (jnp.zeros(()), *jax.tree.leaves((args, kwargs)))  # the first is traced where anything is
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (inner if traced else outer())(*args, **kwargs)

    return call
