"""The floating hand: its palm fixed in the world at the grasp's wrist pose, a free object, and a protocol.

hand = FloatingHand.load("allegro")
outcome = evaluate(hand, objects, grasps, which, protocol="dexgraspbench")
outcome.success.mean()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
from jaxtyping import Float, Int

from diffopt.geometry import Pose
from diffopt.physics.engine import Engine, Outcome, Trial, load_engine
from diffopt.physics.protocol import Protocol, load_protocol, set_contact, set_gain, set_options
from diffopt.plans import Grasp

if TYPE_CHECKING:
    import mujoco


class Solid(Interface):
    """An object to grasp, as `diffopt.scenes.GraspObject` is. `add_to` adds a free body of that name and mass [kg] (None: its own)."""

    def add_to(self, spec: mujoco.MjSpec, *, name: str, mass: float | None) -> mujoco.MjsBody: ...


@dataclass(frozen=True, kw_only=True)
class FloatingHand:
    """A hand without an arm.

    Attributes:
      name: the hand's name.
      xml: its MJCF; the root body has no joint, and position servos drive the joints.
      root: name of its root body.
      joint_names: order of a grasp's joints.
    """

    name: str
    xml: str
    root: str
    joint_names: tuple[str, ...]

    @classmethod
    def load(cls, name: str) -> FloatingHand:
        """A hand of `diffopt/robots/models`, by the name of its file. The joints keep the file's order."""
        import mujoco

        models = resources.files("diffopt.robots") / "models"
        file = models / f"{name}.xml"
        if not file.is_file():
            known = sorted(f.name.removesuffix(".xml") for f in models.iterdir() if f.name.endswith(".xml"))
            raise ValueError(f"no hand '{name}'; there are models of: {', '.join(known)}")
        xml = file.read_text(encoding="utf-8")
        spec = mujoco.MjSpec.from_string(xml)
        root = spec.worldbody.first_body()
        if root is None or root.first_joint() is not None:
            raise ValueError(f"'{name}' is no floating hand: its root body must exist and have no joint")
        return cls(name=name, xml=xml, root=root.name, joint_names=tuple(j.name for j in spec.joints))

    def scene(self, target: Solid, protocol: Protocol, table_height: float | None = None) -> mujoco.MjModel:
        """The compiled scene: hand on a mocap body, the object, and for a table protocol a table that can sink.

        Args:
          table_height: height of the table's top [m, world]; only for protocols with a table, which need it.
        """
        import mujoco

        spec = mujoco.MjSpec.from_string(self.xml)
        root = spec.body(self.root)
        root.mocap = True
        target.add_to(spec, name="object", mass=protocol.mass)
        if protocol.table:
            if table_height is None:
                raise ValueError(f"protocol '{protocol.name}' has a table: give table_height [m]")
            table = spec.worldbody.add_body(name="table", mocap=True, pos=(0.0, 0.0, table_height))
            table.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(1.0, 1.0, 0.1))
        set_options(spec, protocol.options)
        set_contact(spec, protocol.contact, hand=self.root)
        if protocol.gain is not None:
            set_gain(spec, protocol.gain, hand=self.root)
        return spec.compile()


def trials(
    hand: FloatingHand,
    targets: Sequence[Solid],
    grasps: Grasp,
    which: Int[np.ndarray, "N"],
    protocol: Protocol,
    placement: Pose | None = None,
    squeeze: float = 1.0,
    table_height: float | None = None,
) -> list[Trial]:
    """One trial per grasp.

    Args:
      targets: the objects.
      grasps: N grasps, in the world.
      which: index into `targets` of each grasp's object.
      placement: poses of the N objects in the world, or one for all (None: the identity).
      squeeze: factor on the grasps' squeeze: 1 as planned; 0 holds the grasp's own joints.
    """
    position, rotation = np.asarray(grasps.position, float), np.asarray(grasps.rotation, float)
    joints, offset = np.asarray(grasps.joints, float), np.asarray(grasps.squeeze, float)
    which = np.asarray(which, dtype=int)
    n, dof = len(position), len(hand.joint_names)
    if joints.shape != (n, dof):
        raise ValueError(f"grasps.joints has shape {joints.shape}; hand '{hand.name}' needs ({n}, {dof})")
    if which.shape != (n,):
        raise ValueError(f"which has shape {which.shape}; {n} grasps need ({n},)")
    if n and not (which.min() >= 0 and which.max() < len(targets)):
        raise ValueError(f"which ranges over {which.min()}..{which.max()}, but there are {len(targets)} objects")
    place = Pose.identity() if placement is None else placement
    place_position = np.broadcast_to(np.asarray(place.position, float), (n, 3))
    place_rotation = np.broadcast_to(np.asarray(place.rotation, float), (n, 3, 3))

    models = {int(k): hand.scene(targets[k], protocol, table_height) for k in np.unique(which)}
    order, lower, upper = _actuator_order(next(iter(models.values())), hand) if models else (None, None, None)

    def target_of(q: Float[np.ndarray, "J"]) -> Float[np.ndarray, "U"]:
        return np.clip(q[order], lower, upper)

    return [
        Trial(
            model=models[int(which[i])],
            hand=hand.root,
            wrist_position=position[i],
            wrist_rotation=rotation[i],
            object_position=place_position[i],
            object_rotation=place_rotation[i],
            pregrasp=target_of(joints[i] - squeeze * offset[i]),
            grasp=target_of(joints[i]),
            squeeze=target_of(joints[i] + squeeze * offset[i]),
        )
        for i in range(n)
    ]


def _actuator_order(model: mujoco.MjModel, hand: FloatingHand) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each actuator, the index of its joint among the hand's, and that joint's limits [rad]."""
    driven = [int(j) for j in model.actuator_trnid[:, 0]]
    names = [model.joint(j).name for j in driven]
    if sorted(names) != sorted(hand.joint_names):
        raise ValueError(
            f"hand '{hand.name}': servos drive {', '.join(names)}; the joints are {', '.join(hand.joint_names)}"
        )
    limits = model.jnt_range[driven]
    limits = np.where(model.jnt_limited[driven][:, None], limits, np.array([-np.inf, np.inf]))
    return np.array([hand.joint_names.index(name) for name in names]), limits[:, 0], limits[:, 1]


def evaluate(
    hand: FloatingHand,
    targets: Sequence[Solid],
    grasps: Grasp,
    which: Int[np.ndarray, "N"],
    protocol: Protocol | str = "dexgraspbench",
    engine: Engine | str = "auto",
    placement: Pose | None = None,
    squeeze: float = 1.0,
    table_height: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Tests N grasps; arguments as in `trials`. A grasp with a NaN is not run and fails as "no plan"."""
    protocol = load_protocol(protocol) if isinstance(protocol, str) else protocol
    engine = load_engine(engine) if isinstance(engine, str) else engine
    batch = trials(hand, targets, grasps, which, protocol, placement, squeeze, table_height)
    return engine.run(protocol, batch, progress)
