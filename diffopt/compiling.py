"""How programs are compiled.

XLA for CPUs, as locked, spends most of its time on its fusion emitters and on LLVM's optimisation beyond the first level. Without them
compilation takes 18 s instead of 46 (a Panda among obstacles on a mixture of poses) or 20 instead of 37 (the shipped grasp policy on Panda
and Allegro). Few plans take as long as before (four 14 ms, one 52 ms, both ways), 64 in one call 15 % longer (335 ms instead of 291;
all on one slow core), 256 half as long again (1.5 ms a plan instead of 1.0 on two cores; plain sampling 0.9 instead of 0.45). So `sample`
does without; who draws thousands of times wraps it in a `jax.jit` of his own, whose options then count.
Inverse kinematics, which is written for the fusion emitters, would be half as fast without them, and keeps them.

Steps of MJX need to be without fusion emitters anyhow: these merge the kinematics of a long chain of bodies into one expression in which
each body computes all those before it again. A step of an arm with a hand took 180 ms, and takes 0.4 ms without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp

Options = dict[str, bool | int]


def compiler_options(least: bool = True) -> Options:
    """Options of XLA for `jax.jit` and `Lowered.compile`; none on an accelerator.

    Args:
      least: whether to leave out LLVM's later optimisations also; physics, which runs for long, has them.
    """
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_cpu_use_fusion_emitters": False} | ({"xla_backend_optimization_level": 1} if least else {})


class Program:
    """`jax.jit`, with `compiler_options` where it is the outermost one; inside of others it is theirs that count."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._function, self._options = function, options
        self._inner = jax.jit(function, **options)
        update_wrapper(self, function)

    @cached_property  # asking for the backend starts it, which an import should not
    def _outer(self) -> Any:
        return jax.jit(self._function, compiler_options=compiler_options(), **self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = (jnp.zeros(()), *jax.tree.leaves((args, kwargs)))  # the first is traced where anything is
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (self._inner if traced else self._outer)(*args, **kwargs)

    def count(self) -> int:
        """How many programs were compiled, those inside of others apart."""
        return self._outer._cache_size()


jit = Program
