"""Settings of every test run: the CPU unless told otherwise, and programs compiled once for all runs."""

import gc
import os

# Before jax is imported; a value from outside wins.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".cache", "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Traces and compiled programs are many objects that live to the end: looking through them all, again and again, takes 4 % of the time.
gc.set_threshold(100_000, 50, 100)
