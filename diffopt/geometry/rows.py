"""Vectors as three rows of numbers, so that the innermost loop runs over many of them and not over the three coordinates."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

TINY = 1e-30

Vector = tuple[Any, Any, Any]
Matrix = list[list[Any]]


def dot(a: Vector, b: Vector) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def plus(a: Vector, b: Vector) -> Vector:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def scale(a: Vector, s: Any) -> Vector:
    return a[0] * s, a[1] * s, a[2] * s


def norm(v: Vector) -> Any:
    return jnp.sqrt(dot(v, v) + TINY)


def where(condition: Any, a: Vector, b: Vector) -> Vector:
    return jnp.where(condition, a[0], b[0]), jnp.where(condition, a[1], b[1]), jnp.where(condition, a[2], b[2])


def matrix(rotation: Any) -> Matrix:
    """Its entries; the first two axes are those of the matrix."""
    return [[rotation[i, j] for j in range(3)] for i in range(3)]


def turn(R: Matrix, v: Vector) -> Vector:
    """R v"""
    return dot(tuple(R[0]), v), dot(tuple(R[1]), v), dot(tuple(R[2]), v)


def turn_back(R: Matrix, v: Vector) -> Vector:
    """R^T v"""
    return tuple(R[0][j] * v[0] + R[1][j] * v[1] + R[2][j] * v[2] for j in range(3))  # type: ignore[return-value]
