"""Random scenes and places for a robot, of a chosen difficulty.

What makes a grasp infeasible for an arm is the table under the object (half of the grasps that a floating hand learns come from
below its middle), what stands around it, how far the arm's base stands and how it faces the object. A `Difficulty` is a distribution
over all of these. The first is by far the strongest, so the object stands on a stand whose height is a dial.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffopt.geometry import Pose
from diffopt.scenes.objects import resting_pose
from diffopt.scenes.solids import GraspObject, Part, part_distance
from diffopt.scenes.tabletop import Scene, tabletop

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """Distributions, all uniform between two numbers.

    Attributes:
      obstacles: how many stand on the table.
      ring: horizontal distance of an obstacle's axis from the object's [m].
      stand: height of a stand under the object [m]; none if both numbers are 0.
      gap: least distance between an obstacle and the object, and half of that among obstacles [m].
      width: half width (box) or radius (cylinder) of obstacles [m].
      height: height of obstacles [m].
      base: horizontal distance of the robot's base from the object [m].
      facing: largest angle between the base's x axis and the direction to the object [rad].
      level: largest height of the base above or below the table [m].
    """

    obstacles: int
    ring: Range
    stand: Range
    gap: float
    width: Range
    height: Range
    base: Range
    facing: float
    level: float


# Share of the plain samples of the shipped policy for which the Panda with the Allegro hand has a solution at all (inverse kinematics
# from 32 seeds each, 10 held-out objects, 32 samples each): easy 0.25, medium 0.11, hard below 0.01.
PRESETS = {
    "easy": Difficulty(
        obstacles=2,
        ring=(0.16, 0.25),
        stand=(0.08, 0.12),
        gap=0.06,
        width=(0.015, 0.03),
        height=(0.05, 0.15),
        base=(0.45, 0.60),
        facing=0.35,
        level=0.0,
    ),
    "medium": Difficulty(
        obstacles=4,
        ring=(0.11, 0.25),
        stand=(0.04, 0.08),
        gap=0.04,
        width=(0.015, 0.04),
        height=(0.05, 0.25),
        base=(0.40, 0.70),
        facing=0.8,
        level=0.05,
    ),
    "hard": Difficulty(
        obstacles=6,
        ring=(0.08, 0.25),
        stand=(0.0, 0.0),
        gap=0.025,
        width=(0.015, 0.05),
        height=(0.05, 0.30),
        base=(0.35, 0.75),
        facing=1.05,
        level=0.1,
    ),
}


def preset(difficulty: str | Difficulty) -> Difficulty:
    """A preset by name; a KeyError lists those there are."""
    if isinstance(difficulty, Difficulty):
        return difficulty
    if difficulty not in PRESETS:
        raise KeyError(f"no difficulty {difficulty!r}; there are: {', '.join(PRESETS)}; or a Difficulty(...)")
    return PRESETS[difficulty]


def random_tabletop(
    key: int | Array,
    target: GraspObject,
    difficulty: str | Difficulty = "medium",
    *,
    obstacles: int | None = None,
    points: int = 1024,
) -> Scene:
    """`target` at rest over the middle of a table, boxes and cylinders standing around it, none of them touching it or another.

    Where the difficulty has a stand, that is the first obstacle, under the object.

    Args:
      key: PRNG key or integer seed.
      difficulty: one of `PRESETS`, or a `Difficulty`.
      obstacles: how many stand around it, if not the preset's number.
    """
    chosen = preset(difficulty)
    key = _key(key)
    place, rest = jax.random.split(key)
    placement = resting_pose(target, place)
    surface = np.asarray(target.surface(512)[0]) @ np.asarray(placement.rotation, float).T + np.asarray(
        placement.position, float
    )
    rng = _generator(rest)
    parts: list[Part] = []
    if max(chosen.stand) > 0:
        height = rng.uniform(*chosen.stand)
        parts.append(_stand(surface, height))
        placement = Pose(position=placement.position + jnp.array([0.0, 0.0, height]), rotation=placement.rotation)
        surface = surface + np.array([0.0, 0.0, height])
    number = len(parts) + (chosen.obstacles if obstacles is None else obstacles)
    tries = 0
    while len(parts) < number:
        tries += 1
        further = 1 + tries / 200  # a crowded ring is widened until everything finds its place
        part = _obstacle(chosen, rng, further)
        apart = part_distance(part, surface).min()
        if apart > chosen.gap and all(_footprint_gap(part, other) > chosen.gap / 2 for other in parts):
            parts.append(part)
    return tabletop(target, placement=placement, obstacles=parts, points=points)


def random_base(
    key: int | Array, scene: Scene, difficulty: str | Difficulty = "medium", *, clearance: float = 0.15
) -> Pose:
    """T_world_base of a robot at the table: around the object, facing it roughly, `clearance` [m] away from all obstacles.

    For `Embodiment.at`, and for arms of about a metre such as the Panda.
    """
    chosen, rng = preset(difficulty), _generator(_key(key))
    middle = np.asarray(scene.placement.position, float)
    for _ in range(1000):
        angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(*chosen.base)
        x, y = middle[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
        column = np.array([[x, y, z] for z in (0.05, 0.15, 0.25, 0.35)])
        if all(part_distance(part, column).min() > clearance for part in scene.obstacles):
            break
    else:
        raise ValueError(f"no place for a base {chosen.base} m from the object and {clearance} m from all obstacles")
    yaw = angle + np.pi + rng.uniform(-chosen.facing, chosen.facing)
    c, s = np.cos(yaw), np.sin(yaw)
    return Pose(
        position=jnp.asarray([x, y, rng.uniform(-chosen.level, chosen.level)], jnp.float32),
        rotation=jnp.asarray([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], jnp.float32),
    )


def _obstacle(chosen: Difficulty, rng: np.random.Generator, further: float) -> Part:
    angle, turn = rng.uniform(-np.pi, np.pi, 2)
    distance, half = rng.uniform(*chosen.ring) * further, rng.uniform(*chosen.height) / 2
    position = (distance * np.cos(angle), distance * np.sin(angle), half)
    if rng.uniform() < 0.5:
        return Part(kind="cylinder", size=(rng.uniform(*chosen.width), half), position=position)
    c, s = np.cos(turn), np.sin(turn)
    return Part(
        kind="box",
        size=(rng.uniform(*chosen.width), rng.uniform(*chosen.width), half),
        position=position,
        rotation=np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]),
    )


def _stand(surface: np.ndarray, height: float) -> Part:
    """A square post of some height under an object with surface points (n, 3) and its centre of mass over the origin: the
    thinnest, but for 3 mm, that supports it. In each of eight directions it reaches the nearest of the lowest points that lies
    8 mm or more that way, or as far as the object goes that way.
    """
    foot = surface[surface[:, 2] < surface[:, 2].min() + 0.002, :2]
    half = 0.0
    for angle in np.arange(8) * np.pi / 4:
        way = foot @ np.array([np.cos(angle), np.sin(angle)])
        enough = foot[way >= min(0.008, 0.9 * way.max())]
        half = max(half, float(np.abs(enough).max(axis=1).min()))
    half = float(np.clip(half + 0.003, 0.012, 0.15))
    return Part(kind="box", size=(half, half, height / 2), position=(0.0, 0.0, height / 2))


def _footprint_gap(a: Part, b: Part) -> float:
    """A lower bound of the horizontal distance of two standing obstacles [m]: that of the circles around them."""
    outer = [p.size[0] if p.kind == "cylinder" else float(np.hypot(p.size[0], p.size[1])) for p in (a, b)]
    return float(np.hypot(a.position[0] - b.position[0], a.position[1] - b.position[1])) - sum(outer)


def _key(key: int | Array) -> Array:
    return jax.random.key(int(key)) if isinstance(key, (int, np.integer)) else key


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
