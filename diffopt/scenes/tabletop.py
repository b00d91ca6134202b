"""A table with obstacles and an object to grasp.

The table's surface is z = 0 of the world. A `Scene` is plain host data; what samplers take from it, `constraints` and `target`, are
pytrees of the same structure for all scenes with as many obstacles, so they can be stacked and mapped over and do not retrace.

    scene = tabletop(cup, obstacles=[Part(kind="box", size=(0.03, 0.05, 0.1), position=(0.2, 0.0, 0.1))])
    scene = random_tabletop(key, cup, "medium")
    robot = robot.at(random_base(key, scene, "medium"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from diffopt.constraints import ConstraintSet, FieldCollision, SceneCollision
from diffopt.geometry import Pose, Shapes, Target
from diffopt.scenes.solids import GraspObject, Part
from diffopt.scenes.surroundings import Surrounding

if TYPE_CHECKING:
    import mujoco

KINDS = ("box", "cylinder", "capsule", "sphere")
_TABLE = Part(
    kind="box", size=(0.75, 0.75, 0.25), position=(0.0, 0.0, -0.25)
)  # a block: pushes out upwards, however deep


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A table, obstacles fixed in the world, and an object.

    Attributes:
      table: a box [m], in the world frame.
      obstacles: convex primitives in the world frame.
      surroundings: obstacles that are no primitives.
      object: what is to be grasped; None for none.
      placement: T_world_object.
      points: number of surface points that a policy is shown.
    """

    table: Part = field(default=_TABLE)
    obstacles: tuple[Part, ...] = ()
    surroundings: tuple[Surrounding, ...] = ()
    object: GraspObject | None = None
    placement: Pose = field(default_factory=Pose.identity)
    points: int = 1024

    def __post_init__(self):
        for part in self.obstacles:
            if part.kind not in KINDS:
                raise ValueError(f"an obstacle is a {part.kind}; it may be: {', '.join(KINDS)}")

    @property
    def shapes(self) -> Shapes:
        """Table and obstacles as signed-distance shapes in the world frame."""
        out = self.table.shape()
        for part in self.obstacles:
            out = out | part.shape()
        return out

    @property
    def bound(self) -> Shapes:
        """One shape, in the world frame, that holds the object: itself if it is one primitive, else the box around it."""
        if self.object is None:
            return Shapes.none()
        parts = self.object.parts
        if len(parts) == 1:
            own = parts[0].shape()
        else:
            lower, upper = self.object.bounds
            own = Part(kind="box", size=tuple((upper - lower) / 2), position=tuple((lower + upper) / 2)).shape()
        return own.transform(self.placement.position, self.placement.rotation)

    @cached_property
    def constraints(self) -> ConstraintSet:
        """`scene_collision`: the robot clear of table and obstacles, and its arm (but not its hand) of the object; and
        `field_collision`: of the surroundings, if there are any."""
        out = ConstraintSet.of(SceneCollision(shapes=self.shapes, arm_shapes=self.bound))
        return out | FieldCollision(fields=tuple(s.field for s in self.surroundings)) if self.surroundings else out

    @cached_property
    def target(self) -> Target:
        """The object as a grasp policy sees it, for `policy.given(scene.target)`."""
        if self.object is None:
            raise ValueError("this scene has no object to grasp: give tabletop(...) a target")
        points, _ = self.object.surface(self.points)
        return Target(points=jnp.asarray(points, jnp.float32), pose=self.placement)

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add table, obstacles and surroundings (not the object) to a MuJoCo spec: geoms "table", "obstacle_0", ..., and those of
        "surrounding_0", ..., fixed in the world."""
        import mujoco

        kinds = dict(box="mjGEOM_BOX", cylinder="mjGEOM_CYLINDER", capsule="mjGEOM_CAPSULE", sphere="mjGEOM_SPHERE")
        for name, part in [("table", self.table), *((f"obstacle_{i}", part) for i, part in enumerate(self.obstacles))]:
            quaternion = np.zeros(4)
            mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(part.rotation, float).ravel())
            spec.worldbody.add_geom(
                name=name,
                type=getattr(mujoco.mjtGeom, kinds[part.kind]),
                size=[*part.size, *[0.0] * (3 - len(part.size))],
                pos=list(part.position),
                quat=quaternion.tolist(),
                rgba=[0.75, 0.7, 0.62, 1.0] if name == "table" else [0.55, 0.6, 0.68, 1.0],
            )
        for i, surrounding in enumerate(self.surroundings):
            surrounding.add_to(spec, f"surrounding_{i}")


def tabletop(
    target: GraspObject | None = None,
    *,
    placement: Pose | None = None,
    objects: Sequence[GraspObject | tuple[GraspObject, Pose]] = (),
    obstacles: Sequence[Part] = (),
    surroundings: Sequence[Surrounding] = (),
    table: tuple[float, float] = (0.75, 0.75),
    points: int = 1024,
) -> Scene:
    """A table (surface at z = 0) with an object to grasp, and things in the way.

    Args:
      target: the object to grasp; default the first of `objects`.
      placement: T_world_object; default standing over the origin on its first rest.
      objects: more objects, each with its T_world_object (or standing over the origin); they are obstacles and do not move.
      obstacles: convex primitives in the world frame.
      surroundings: closed meshes, terrains and point clouds.
      table: half extents of its surface [m].
      points: number of surface points that a policy is shown.
    """
    placed = [(entry, None) if isinstance(entry, GraspObject) else entry for entry in objects]
    if target is None and placed:
        (target, own), *placed = placed
        placement = own if placement is None else placement
    if target is not None and placement is None:
        placement = _standing(target)
    parts = list(obstacles)
    for thing, pose in placed:
        parts += _in_world(thing, _standing(thing) if pose is None else pose)
    return Scene(
        table=replace(_TABLE, size=(*table, _TABLE.size[2])),
        obstacles=tuple(parts),
        surroundings=tuple(surroundings),
        object=target,
        placement=Pose.identity() if placement is None else placement,
        points=points,
    )


def _standing(thing: GraspObject) -> Pose:
    """T_table_object on its first rest, over the origin."""
    down = np.asarray(thing.rests[0], float)
    axis = np.cross(down, [0.0, 0.0, -1.0])
    c = -down[2]  # the rotation that takes `down` to -z: about `axis`, or half a turn about x
    K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    R = np.diag([1.0, -1.0, -1.0]) if c < -1 + 1e-9 else np.eye(3) + K + K @ K / (1 + c)
    return Pose(
        position=jnp.asarray([0.0, 0.0, thing.support(down)], jnp.float32), rotation=jnp.asarray(R, jnp.float32)
    )


def _in_world(thing: GraspObject, pose: Pose) -> list[Part]:
    position, rotation = np.asarray(pose.position, float), np.asarray(pose.rotation, float)
    return [
        replace(
            part, position=tuple(rotation @ np.asarray(part.position) + position), rotation=rotation @ part.rotation
        )
        for part in thing.parts
    ]
