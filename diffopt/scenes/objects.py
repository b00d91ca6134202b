"""Objects to grasp: procedural families, split into training and held-out, and shapes with published dimensions.

Every family is a function of a random generator. Sizes lie on a grid of 0.1 mm; the first size of a training object is an even
multiple of it and that of a held-out object an odd one, so no held-out object was ever trained on, whatever the seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from diffopt.geometry.pose import Pose
from diffopt.scenes.solids import KINDS, GraspObject, Part, Solid, stack

__all__ = [
    "FAMILIES",
    "KINDS",
    "GraspObject",
    "Part",
    "Solid",
    "benchmark",
    "held_out",
    "resting_pose",
    "stack",
    "training",
]

_GRID = 1e-4
_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_TURN_X = np.diag([1.0, -1.0, -1.0])
_TURNS = (np.eye(3), _TURN_X, np.diag([-1.0, 1.0, -1.0]), np.diag([-1.0, -1.0, 1.0]))
_X_FROM_Z = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # takes the part's z to the object's x
_Y_FROM_Z = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # takes the part's z to the object's y


def _faces(*axes) -> tuple[tuple[float, float, float], ...]:
    return tuple(tuple(sign * v for v in axis) for axis in axes for sign in (1.0, -1.0))


def _upright_or_lying() -> tuple[tuple[float, float, float], ...]:
    return (*_faces(_Z), _X)


def box(half, mass: float, name: str = "box") -> GraspObject:
    """A box of half extents `half` [m]."""
    return GraspObject(
        name=name,
        family="box",
        parts=(Part(kind="box", size=tuple(half)),),
        mass=mass,
        rests=_faces(_X, _Y, _Z),
        symmetries=_TURNS,
    )


def cylinder(radius: float, half_length: float, mass: float, name: str = "cylinder") -> GraspObject:
    """A cylinder about z."""
    return GraspObject(
        name=name,
        family="cylinder",
        parts=(Part(kind="cylinder", size=(radius, half_length)),),
        mass=mass,
        rests=_upright_or_lying(),
        symmetries=(np.eye(3), _TURN_X),
        axis_symmetric=True,
    )


def capsule(radius: float, half_length: float, mass: float, name: str = "capsule") -> GraspObject:
    """A capsule about z; it can only lie."""
    return GraspObject(
        name=name,
        family="capsule",
        parts=(Part(kind="capsule", size=(radius, half_length)),),
        mass=mass,
        rests=(_X,),
        symmetries=(np.eye(3), _TURN_X),
        axis_symmetric=True,
    )


def ball(radius: float, mass: float, name: str = "ball") -> GraspObject:
    """A ball."""
    part = Part(kind="sphere", size=(radius,))
    return GraspObject(
        name=name, family="ball", parts=(part,), mass=mass, rests=_faces(_Z), symmetries=_TURNS, axis_symmetric=True
    )


def superquadric(axes, exponents, mass: float, name: str = "superquadric") -> GraspObject:
    """A superquadric; it rests on its flattest side."""
    part = Part(kind="superquadric", size=tuple(axes), exponents=tuple(exponents))
    flattest = (_X, _Y, _Z)[int(np.argmin(axes))]
    return GraspObject(
        name=name, family="superquadric", parts=(part,), mass=mass, rests=_faces(flattest), symmetries=_TURNS
    )


def mug(radius: float, half_height: float, mass: float, handle: float = 0.03, name: str = "mug") -> GraspObject:
    """A mug: a closed cylinder about z with a handle of three capsules towards +x; `handle` is how far it stands out [m]."""
    bar, reach, rise = 0.006, radius + handle - 0.006, 0.55 * half_height
    arm = dict(kind="capsule", size=(bar, (reach - radius) / 2), rotation=_X_FROM_Z)
    middle = (reach + radius) / 2
    parts = (
        Part(kind="cylinder", size=(radius, half_height)),
        Part(kind="capsule", size=(bar, rise), position=(reach, 0.0, 0.0)),
        Part(position=(middle, 0.0, rise), **arm),
        Part(position=(middle, 0.0, -rise), **arm),
    )
    return GraspObject(name=name, family="mug", parts=parts, mass=mass, rests=_faces(_Z), symmetries=(np.eye(3),))


def bottle(
    radius: float, half_height: float, neck: float, neck_length: float, mass: float, name: str = "bottle"
) -> GraspObject:
    """A bottle about z: a cylinder of `radius` and `half_height` with a thinner neck on top; it stands."""
    parts = (
        Part(kind="cylinder", size=(radius, half_height)),
        Part(
            kind="cylinder",
            size=(neck, (neck_length + 0.01) / 2),
            position=(0.0, 0.0, half_height + (neck_length - 0.01) / 2),
        ),
    )
    rests = ((0.0, 0.0, -1.0), _X)
    return GraspObject(
        name=name, family="bottle", parts=parts, mass=mass, rests=rests, symmetries=(np.eye(3),), axis_symmetric=True
    )


def hammer(
    grip: float, half_length: float, head: float, half_head: float, mass: float, name: str = "hammer"
) -> GraspObject:
    """A hammer: a handle (capsule of radius `grip`) along x and a head (cylinder of radius `head`) along y at its end; it lies."""
    parts = (
        Part(kind="capsule", size=(grip, half_length), rotation=_X_FROM_Z),
        Part(kind="cylinder", size=(head, half_head), position=(half_length, 0.0, 0.0), rotation=_Y_FROM_Z),
    )
    # It touches the table with the head's side and the handle's far end: the common tangent of both circles in the x-z plane.
    slope = (grip - head) / (2 * half_length)
    rest = (float(slope), 0.0, -float(np.sqrt(1 - slope**2)))
    rests = (rest, (rest[0], 0.0, -rest[2]))
    return GraspObject(name=name, family="hammer", parts=parts, mass=mass, rests=rests, symmetries=(np.eye(3), _TURN_X))


def dumbbell(
    grip: float, half_length: float, head: float, half_head: float, mass: float, name: str = "dumbbell"
) -> GraspObject:
    """Two discs of radius `head` on a bar of radius `grip` about z; it stands or lies."""
    parts = (
        Part(kind="cylinder", size=(grip, half_length)),
        Part(kind="cylinder", size=(head, half_head), position=(0.0, 0.0, half_length)),
        Part(kind="cylinder", size=(head, half_head), position=(0.0, 0.0, -half_length)),
    )
    symmetries = (np.eye(3), _TURN_X)
    rests = _upright_or_lying()
    return GraspObject(
        name=name, family="dumbbell", parts=parts, mass=mass, rests=rests, symmetries=symmetries, axis_symmetric=True
    )


def _random_box(rng, size):
    return box((size(0.018, 0.042), size(0.02, 0.06), size(0.02, 0.12)), 1.0)


def _random_cylinder(rng, size):
    return cylinder(size(0.018, 0.045), size(0.016, 0.11), 1.0)


def _random_capsule(rng, size):
    return capsule(size(0.018, 0.04), size(0.015, 0.09), 1.0)


def _random_ball(rng, size):
    return ball(size(0.024, 0.048), 1.0)


def _random_superquadric(rng, size):
    return superquadric(
        (size(0.02, 0.045), size(0.022, 0.055), size(0.025, 0.1)), rng.uniform(0.35, 1.0, 2).tolist(), 1.0
    )


def _random_mug(rng, size):
    return mug(size(0.03, 0.045), size(0.035, 0.055), 1.0, handle=size(0.022, 0.035))


def _random_bottle(rng, size):
    radius = size(0.024, 0.042)
    return bottle(radius, size(0.045, 0.085), size(0.012, 0.7 * radius), size(0.03, 0.06), 1.0)


def _random_hammer(rng, size):
    grip = size(0.013, 0.02)
    return hammer(grip, size(0.06, 0.11), size(grip + 0.004, grip + 0.016), size(0.035, 0.055), 1.0)


def _random_dumbbell(rng, size):
    grip = size(0.014, 0.022)
    return dumbbell(grip, size(0.05, 0.08), size(grip + 0.008, 0.045), size(0.01, 0.02), 1.0)


FAMILIES: dict[str, Callable] = {
    "box": _random_box,
    "cylinder": _random_cylinder,
    "capsule": _random_capsule,
    "ball": _random_ball,
    "superquadric": _random_superquadric,
    "mug": _random_mug,
    "bottle": _random_bottle,
    "hammer": _random_hammer,
    "dumbbell": _random_dumbbell,
}
_SHARES = dict(box=5, cylinder=4, capsule=2, ball=1, superquadric=4, mug=1, bottle=2, hammer=1, dumbbell=1)


def training(n: int, seed: int = 0, families=tuple(FAMILIES)) -> list[GraspObject]:
    """`n` random objects to train on; the first k of a longer list are the same."""
    return _procedural(n, seed, 0, families)


def held_out(n: int, seed: int = 0, families=tuple(FAMILIES)) -> list[GraspObject]:
    """`n` random objects that are never in `training`, whatever the seeds."""
    return _procedural(n, seed, 1, families)


def _procedural(n: int, seed: int, parity: int, families) -> list[GraspObject]:
    unknown = [f for f in families if f not in FAMILIES]
    if unknown:
        raise ValueError(f"no object family {unknown[0]!r}; there are: {', '.join(FAMILIES)}")
    share = np.array([_SHARES[f] for f in families], float)
    objects = []
    for i in range(n):
        rng = np.random.default_rng([seed, parity, i])
        family = families[int(rng.choice(len(families), p=share / share.sum()))]
        first = True

        def size(low: float, high: float, rng=rng) -> float:
            nonlocal first
            steps = int(rng.uniform(low, high) / _GRID)
            steps = steps - steps % 2 + parity if first else steps
            first = False
            return steps * _GRID

        made = FAMILIES[family](rng, size)
        density = rng.uniform(200.0, 900.0)  # [kg/m3]
        mass = float(np.clip(density * sum(p.volume() for p in made.parts), 0.02, 0.6))
        objects.append(replace(made, name=f"{family}_{'held' if parity else 'train'}_{seed}_{i}", mass=mass))
    return objects


def benchmark() -> list[GraspObject]:
    """Shapes with the published dimensions and masses of common benchmark objects."""
    mustard = GraspObject(
        name="mustard_bottle",
        family="bottle",
        parts=(
            Part(kind="box", size=(0.029, 0.0475, 0.0725)),
            Part(kind="cylinder", size=(0.014, 0.0275), position=(0.0, 0.0, 0.09)),
        ),
        mass=0.603,
        rests=((0.0, 0.0, -1.0), _X),
        symmetries=(np.eye(3), _TURNS[3]),
    )
    return [
        box((0.03, 0.08, 0.115), 0.411, "cracker_box"),
        box((0.019, 0.0445, 0.0875), 0.514, "sugar_box"),
        cylinder(0.033, 0.0505, 0.349, "soup_can"),
        mustard,
        box((0.025, 0.0485, 0.041), 0.370, "potted_meat_can"),
        cylinder(0.0425, 0.0165, 0.171, "tuna_can"),
        box((0.025, 0.0375, 0.025), 0.028, "foam_brick"),
        ball(0.03235, 0.058, "tennis_ball"),
        ball(0.0365, 0.047, "orange"),
        mug(0.04, 0.041, 0.118, name="mug"),
    ]


def resting_pose(obj: GraspObject, key) -> Pose:
    """A stable pose on a table at random: T_table_object, with the table's surface at z = 0 and the object over its origin.

    Args:
      key: PRNG key; it chooses the rest and the turn about the vertical.
    """
    which, turn = jax.random.split(key)
    down = np.asarray(obj.rests[int(jax.random.randint(which, (), 0, len(obj.rests)))], float)
    angle = float(jax.random.uniform(turn, (), minval=-np.pi, maxval=np.pi))
    R = _turn_z(angle) @ _rotation_to_minus_z(down)
    over = R @ obj.center_of_mass
    return Pose(
        position=jnp.asarray([-over[0], -over[1], obj.support(down)], jnp.float32), rotation=jnp.asarray(R, jnp.float32)
    )


def _rotation_to_minus_z(v: np.ndarray) -> np.ndarray:
    """A rotation matrix R with R v = -z."""
    z = -v / np.linalg.norm(v)
    x = np.cross(np.eye(3)[int(np.argmin(np.abs(z)))], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def _turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
