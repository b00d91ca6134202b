"""Courses in MJX's JAX implementation: batches of one structure, in pieces of `PIECE` checks, decided ones leaving in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from diffopt.compiling import compiler_options
from diffopt.physics.course import Course, Record, Watch, at_start
from diffopt.physics.mjx_scene import structure_of, translate
from diffopt.physics.mjx_step import step

if TYPE_CHECKING:
    import mujoco

PIECE = 25
_STATE = ("qpos", "qvel", "qacc_warmstart")
_LARGE = 1e10  # beyond it MuJoCo calls a state unstable (mjMAXVAL)


def follow_in_mjx(
    courses: Sequence[Course],
    watch: Watch,
    width: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Runs courses, `width` of one structure at a time.

    Raises ValueError for a scene that MJX cannot simulate.
    """
    scenes = [_Scene.of(course) for course in courses]
    groups: dict[tuple, list[int]] = {}
    for i, (course, scene) in enumerate(zip(courses, scenes, strict=True)):
        masks = tuple(m.tobytes() for press in course.presses for m in press)
        key = (structure_of(scene.host), scene.shapes, course.steps, course.bodies, masks)
        groups.setdefault(key, []).append(i)
    for key, members in groups.items():
        lanes = min(width, len(members))
        example = _Example(scene=scenes[members[0]], course=courses[members[0]])
        piece = _compiled(key, lanes, example)
        for first in range(0, len(members), lanes):
            part = members[first : first + lanes]
            _run(piece, [scenes[i] for i in part], [courses[i] for i in part], part, lanes, watch)
            if progress is not None:
                progress(len(part))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scene:
    """A translated scene and its arrays."""

    host: mujoco.MjModel
    model: Any
    shapes: tuple

    @staticmethod
    def of(course: Course) -> _Scene:
        from mujoco import mjx

        host = translate(course.spec, course.model)
        if host.opt.cone != 1:  # mjCONE_ELLIPTIC, where a contact's first row is its normal force
            raise ValueError(
                "MJX runs courses with elliptic cones; the scene has pyramidal ones: set Options(cone='elliptic')"
            )
        model = mjx.put_model(host, impl="jax")
        return _Scene(host=host, model=model, shapes=tuple(np.shape(leaf) for leaf in jax.tree.leaves(model)))


@dataclass(frozen=True, kw_only=True)
class _Example:
    """One course of a structure. A cache does not compare it: the key beside it says everything."""

    scene: _Scene
    course: Course

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Example)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=16)
def _compiled(key: tuple, lanes: int, example: _Example) -> Callable:
    """The jitted function of one structure: (leaves of the models, states, targets of a piece) -> (states, rows)."""
    from mujoco import mjx

    course, treedef = example.course, jax.tree.structure(example.scene.model)
    template = mjx.make_data(example.scene.host, impl="jax")
    bodies, presses, steps = np.array(course.bodies), course.presses, course.steps

    def piece(leaves: list, state: dict, targets: Any) -> tuple[dict, dict]:
        model = jax.tree.unflatten(treedef, leaves)

        def check(state: dict, target: Any) -> tuple[dict, dict]:
            data = template.replace(**state, ctrl=target)
            data = jax.lax.fori_loop(0, steps, lambda _, d: step(model, d), data)
            contact = data._impl.contact
            normal = jnp.where(contact.dist < contact.includemargin, data._impl.efc_force[contact.efc_address], 0.0)
            row = {
                "qpos": data.qpos,
                "qvel": data.qvel,
                "position": data.xpos[bodies],
                "rotation": data.xmat[bodies].reshape(-1, 3, 3),
                "force": jnp.stack([jnp.sum(jnp.where(_between(contact.geom, a, b), normal, 0.0)) for a, b in presses]),
            }
            return {k: getattr(data, k) for k in _STATE}, row

        return jax.lax.scan(check, state, targets)

    return jax.jit(jax.vmap(piece), compiler_options=compiler_options(least=False))


def _between(geoms: Any, a: np.ndarray, b: np.ndarray) -> Any:
    """Which contacts are between two sets of geoms."""
    in_a, in_b = jnp.asarray(a)[geoms], jnp.asarray(b)[geoms]
    return (in_a & in_b[:, ::-1]).any(1)


def _run(
    piece: Callable,
    scenes: Sequence[_Scene],
    courses: Sequence[Course],
    names: Sequence[int],
    lanes: int,
    watch: Watch,
) -> None:
    """At most `lanes` courses side by side; the batch is filled up with copies of the first."""
    fill = [*range(len(courses)), *[0] * (lanes - len(courses))]
    leaves = [np.stack(column) for column in zip(*(jax.tree.leaves(scenes[j].model) for j in fill), strict=True)]
    starts = [at_start(courses[j]) for j in fill]
    state: Any = {k: np.stack([getattr(s, k) for s in starts]).astype(np.float32) for k in _STATE}
    going = set(range(len(courses)))
    sound = np.ones(lanes, dtype=bool)
    longest = max(len(c.targets) for c in courses)
    for done in range(0, longest, PIECE):
        if not going:
            break
        rows = np.arange(done, done + PIECE)
        targets = np.stack([courses[j].targets[np.minimum(rows, len(courses[j].targets) - 1)] for j in fill])
        state, out = piece(leaves, state, targets.astype(np.float32))
        found = {k: np.asarray(v, dtype=float) for k, v in out.items()}
        fine = _sound(found["qpos"]) & _sound(found["qvel"])
        stable = np.logical_and.accumulate(np.concatenate([sound[:, None], fine], 1), axis=1)[:, 1:]
        sound = stable[:, -1]
        for j in sorted(going):
            record = Record(**{k: v[j] for k, v in found.items()}, stable=stable[j])
            left = len(courses[j].targets) - done
            if not watch(names[j], record[:left]) or left <= PIECE:
                going.discard(j)


def _sound(values: np.ndarray) -> np.ndarray:
    """Per simulation and check, whether all numbers are finite and not absurd."""
    return (np.abs(np.nan_to_num(values, nan=np.inf)) < _LARGE).all(-1)
