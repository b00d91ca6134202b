"""Embodiments: a robot as samplers and physics see it, an arm that carries a hand (or a tool, or a hand that floats).

The tree, the collision spheres and the names are static; where the base stands, limits and seeds are data, so that a robot at
another place, or a batch of places, costs no new trace. All kinematics are done in the frame of the base: obstacles and targets
are brought there, which is cheaper than carrying the robot into the world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose
from diffopt.robots import mjcf
from diffopt.robots.bodies import MOST, Spheres
from diffopt.robots.kinematics import Frames, Kinematics
from diffopt.robots.sampling import Contacts, contacts, spread

if TYPE_CHECKING:
    import mujoco

_SEEDS = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """A robot.

    Attributes:
      name: what it is called.
      arm, hand: names of the joints that place the tool, and of those that the plan gives, in the order of its vectors.
      tool: body that the plan's wrist pose speaks about.
      kinematics: the tree, in the frame of the base.
      spheres: collision bodies.
      contacts: which of their pairs can collide at all.
      xml: MJCF of the robot, for physics.
      notes: what was guessed or is missing, in words.
      base: T_world_base, of the MJCF's world frame.
      lower, upper, velocity: limits of the arm's joints [rad or m, per s]; infinite where the file has none.
      hand_lower, hand_upper: limits of the hand's joints.
      home, hand_home: a comfortable posture.
      seeds: arm postures free of self-collision and spread over the joint ranges, the home posture first.
      seed_tools: T_base_tool at each of them, stacked.
    """

    name: str = field(metadata=dict(static=True))
    arm: tuple[str, ...] = field(metadata=dict(static=True))
    hand: tuple[str, ...] = field(metadata=dict(static=True))
    tool: str = field(metadata=dict(static=True))
    kinematics: Kinematics = field(metadata=dict(static=True))
    spheres: Spheres = field(metadata=dict(static=True))
    contacts: Contacts = field(metadata=dict(static=True))
    xml: str = field(metadata=dict(static=True))
    notes: tuple[str, ...] = field(default=(), metadata=dict(static=True))
    base: Pose
    lower: Float[Array, "A"]
    upper: Float[Array, "A"]
    velocity: Float[Array, "A"]
    hand_lower: Float[Array, "H"]
    hand_upper: Float[Array, "H"]
    home: Float[Array, "A"]
    hand_home: Float[Array, "H"]
    seeds: Float[Array, "N A"]
    seed_tools: Pose

    @staticmethod
    def from_mjcf(
        source: mjcf.Source,
        *,
        tool: str,
        hand: Sequence[str] | None = None,
        base: str | None = None,
        name: str | None = None,
        velocity: dict[str, float] | None = None,
        home: dict[str, float] | None = None,
        tolerance: float | dict[str, float] = 0.005,
        most_spheres: int = MOST,
    ) -> Embodiment:
        """Read a robot from an MJCF file, an XML string or an `MjSpec`.

        Args:
          tool: body whose pose is the plan's wrist (the palm of a hand).
          hand: joints that the plan gives, in its order; default all joints below the tool.
          base: body whose frame is to be the robot's base; default the file's world frame.
          velocity: velocity limits by joint [rad/s or m/s]; MJCF has no place for them.
          home: posture by joint; default the middle of the range (zero where that is within it, for the hand).
          tolerance: how far collision spheres may reach outside of the geoms [m], or by body name ("" for the others).
          most_spheres: at most so many spheres per geom, even if the tolerance takes more.
        Raises:
          FileNotFoundError, ValueError, KeyError: no such file; a model that does not compile; a name that is not in it.
        """
        spec, label = mjcf.read(source)
        mjcf.compile(spec, label)
        mjcf.body(spec, tool, label)
        if base is not None:
            root = mjcf.body(spec, base, label)
            if root.parent.name != "world":
                raise ValueError(
                    f"base {base!r} hangs on {root.parent.name!r} in {label}; a base is a child of the world"
                )
            root.pos, root.quat = [0, 0, 0], [1, 0, 0, 0]
        model = mjcf.compile(spec, label)
        kinematics = Kinematics.from_model(model)
        title = name or spec.modelname
        hand = _hand_joints(kinematics, tool) if hand is None else tuple(hand)
        for given in (*hand, *(velocity or {}), *(home or {})):
            if given not in kinematics.joint_names:
                raise KeyError(f"no joint {given!r} in {title!r}; it has: {', '.join(kinematics.joint_names)}")
        arm = tuple(j for j in _arm_joints(kinematics, tool) if j not in hand)
        for joint in map(kinematics.joint, (*arm, *hand)):
            if joint.type not in ("hinge", "slide"):
                raise ValueError(
                    f"joint {joint.name!r} of {title!r} is of type {joint.type}; arms and hands have hinges and slides"
                )
        limits = {
            j: (kinematics.lower[kinematics.joint(j).qpos], kinematics.upper[kinematics.joint(j).qpos])
            for j in (*arm, *hand)
        }
        notes = [f"joint {j} has no limits" for j, (low, _) in limits.items() if not np.isfinite(low)]
        notes += [f"joint {j} has no velocity limit" for j in arm if j not in (velocity or {})]
        spheres = Spheres.from_model(model, tolerance=tolerance, most=most_spheres)
        allowed = max(tolerance.values()) if isinstance(tolerance, dict) else tolerance
        if max(spheres.overshoot, default=0.0) > allowed + 1e-9:
            notes.append(
                f"collision spheres reach up to {1e3 * max(spheres.overshoot):.0f} mm outside; allow more per geom"
            )
        if not len(spheres):
            notes.append("no collision geoms: collisions are not seen")
        row = lambda joints, values: jnp.asarray([values[j] for j in joints], jnp.float32)  # noqa: E731
        rest = {j: (home or {}).get(j, _rest(*limits[j], middle=j in arm)) for j in (*arm, *hand)}
        own = {j.name: j.qpos for j in kinematics.joints}
        posture = np.array(kinematics.qpos0)
        posture[[own[j] for j in rest]] = list(rest.values())
        columns = [own[j] for j in arm]
        pairs, free = contacts(model, spheres, posture, columns, [own[j] for j in hand])
        seeds = (
            spread(free[:, columns], _SEEDS, first=posture[columns], scale=_ranges(limits, arm))
            if arm
            else np.zeros((1, 0))
        )
        robot = Embodiment(
            name=title,
            arm=arm,
            hand=hand,
            tool=tool,
            kinematics=kinematics,
            spheres=spheres,
            contacts=pairs,
            xml=spec.to_xml(),
            notes=tuple(notes),
            base=Pose.identity(),
            lower=row(arm, {j: v[0] for j, v in limits.items()}),
            upper=row(arm, {j: v[1] for j, v in limits.items()}),
            velocity=row(arm, {j: (velocity or {}).get(j, np.inf) for j in arm}),
            hand_lower=row(hand, {j: v[0] for j, v in limits.items()}),
            hand_upper=row(hand, {j: v[1] for j, v in limits.items()}),
            home=row(arm, rest),
            hand_home=row(hand, rest),
            seeds=jnp.asarray(seeds, jnp.float32),
            seed_tools=Pose.identity(),
        )
        return replace(robot, seed_tools=_tool_poses(model, tool, columns, posture, seeds))

    @staticmethod
    def attach(
        arm: mjcf.Source,
        hand: mjcf.Source,
        pose: Pose | None = None,
        *,
        to: str = "flange",
        tool: str | None = None,
        **options,
    ) -> Embodiment:
        """A hand mounted on an arm, both MJCF sources (a path, an XML string, an MjSpec), all names kept.

        Args:
          pose: T_to_hand, of the hand's model frame in the body `to` of the arm; default the identity.
          tool: as in `from_mjcf`; default the hand's first body.
          options: as in `from_mjcf`.
        """
        hand_spec, label = mjcf.read(hand)
        roots = [b.name for b in hand_spec.worldbody.bodies]
        if tool is None and not roots:
            raise ValueError(f"{label} has no body to mount")
        joined = mjcf.with_gravity_compensation(mjcf.join(arm, hand_spec, to=to, pose=pose))
        return Embodiment.from_mjcf(joined, tool=tool or roots[0], **options)

    def at(self, base: Pose | Float[Array, "3"], rotation: Float[Array, "3 3"] | None = None) -> Embodiment:
        """The same robot with its base elsewhere in the world: a `Pose`, or position [m] and rotation. No new trace."""
        if not isinstance(base, Pose):
            base = Pose(
                position=jnp.asarray(base, jnp.float32),
                rotation=jnp.eye(3) if rotation is None else jnp.asarray(rotation),
            )
        return replace(self, base=base)

    def qpos(self, joints: Float[Array, "A"], hand: Float[Array, "H"] | None = None) -> Float[Array, "nq"]:
        """Generalised positions in the model's order, from the arm's joints and the hand's (default: its home)."""
        values = jnp.concatenate([joints, self.hand_home if hand is None else hand])
        index = np.array([self.kinematics.joint(j).qpos for j in (*self.arm, *self.hand)], int)
        if np.array_equal(index, np.arange(self.kinematics.nq)):
            return values
        return jnp.asarray(self.kinematics.qpos0, values.dtype).at[index].set(values)

    def frames(self, joints: Float[Array, "A"], hand: Float[Array, "H"] | None = None) -> Frames:
        """Poses of all bodies in the frame of the base."""
        return self.kinematics.fk(self.qpos(joints, hand))

    def tool_pose(self, joints: Float[Array, "A"]) -> Pose:
        """T_world_tool."""
        tool = self.kinematics.body(self.tool)
        frames = self.kinematics.fk(self.qpos(joints), only=(tool,))
        return self.base @ Pose(position=frames.position[tool], rotation=frames.rotation[tool])

    @property
    def below_tool(self) -> frozenset[int]:
        """Indices of the tool's body and of all bodies that hang on it."""
        return _below(self.kinematics, self.tool)

    def nearest_seeds(self, tool: Pose, n: int) -> Float[Array, "n A"]:
        """`n` seeds whose tool is near `tool` (T_world_tool), 0.3 m counting as much as 1 rad, nearest first: the seeds are dealt out to
        n groups, and the nearest of each is taken."""
        wanted = self.base.inverse() @ tool
        n = min(n, self.seeds.shape[0])
        size = self.seeds.shape[0] // n
        # -|p - w|^2 / .3^2 - |R - W|_F^2 / 2, less what is the same for all; |R - W|_F^2 = 4 (1 - cos angle), close to 2 angle^2
        p, R = self.seed_tools.position / 0.3, self.seed_tools.rotation.reshape(-1, 9)
        near = p @ (2 / 0.3 * wanted.position) + R @ wanted.rotation.reshape(9) - jnp.sum(p * p, axis=-1)
        groups = near[: n * size].reshape(size, n)
        best = jnp.argmax(groups, axis=0) * n + np.arange(n)
        return self.seeds[best[jax.lax.top_k(jnp.max(groups, axis=0), n)[1]]]

    def model_spec(self, *things: Any) -> mujoco.MjSpec:
        """An MjSpec of the robot with its base in place, to which each of `things` (a scene, ...) has added itself.

        Args:
          things: objects with `add_to(spec)`.
        """
        spec, _ = mjcf.read(self.xml)
        mjcf.place(spec, self.base)
        for thing in things:
            thing.add_to(spec)
        return spec

    @property
    def constraints(self) -> Any:
        """What every plan for this robot has to satisfy, as a `ConstraintSet`: reach, joint limits, self-collision."""
        if not _PROVIDERS:
            raise RuntimeError("import diffopt.constraints to have a robot's constraints")
        return _PROVIDERS[-1](self)

    def describe(self) -> str:
        """Joints, limits, collision bodies and what was guessed, as a table."""
        lines = [f"{self.name}: {len(self.arm)} arm joints, {len(self.hand)} hand joints, tool {self.tool!r}"]
        lines.append(f"{'joint':16s} {'part':5s} {'lower':>9s} {'upper':>9s} {'velocity':>9s} {'home':>9s}")
        for i, joint in enumerate(self.arm):
            row = (self.lower[i], self.upper[i], self.velocity[i], self.home[i])
            lines.append(f"{joint:16s} arm   " + " ".join(f"{float(v):9.4f}" for v in row))
        for i, joint in enumerate(self.hand):
            row = (self.hand_lower[i], self.hand_upper[i], jnp.asarray(np.nan), self.hand_home[i])
            lines.append(f"{joint:16s} hand  " + " ".join(f"{float(v):9.4f}" for v in row).replace("nan", "  -"))
        names = self.kinematics.body_names
        counts = {names[b]: self.spheres.body.count(b) for b in dict.fromkeys(self.spheres.body)}
        lines.append(
            f"collision spheres: {len(self.spheres)} (" + ", ".join(f"{b} {n}" for b, n in counts.items()) + ")"
        )
        lines.append(f"largest overshoot: {1e3 * max(self.spheres.overshoot, default=0.0):.1f} mm")
        lines.append("pairs that always touch: " + (", ".join("~".join(p) for p in self.contacts.always) or "none"))
        lines.append(f"pairs that can collide: {', '.join('~'.join(p) for p in self.contacts.names) or 'none'}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


_PROVIDERS: list[Callable[[Embodiment], Any]] = []


def provides_constraints(build: Callable[[Embodiment], Any]) -> Callable[[Embodiment], Any]:
    """Declare the function behind `Embodiment.constraints` (robots know nothing of constraints, which speak about robots)."""
    _PROVIDERS.append(build)
    return build


def _arm_joints(kinematics: Kinematics, tool: str) -> tuple[str, ...]:
    """Joints between the world and the body `tool`, from the world on."""
    joints: list[str] = []
    body = kinematics.body(tool)
    while body > 0:
        joints = [j.name for j in kinematics.bodies[body].joints] + joints
        body = kinematics.bodies[body].parent
    return tuple(joints)


def _hand_joints(kinematics: Kinematics, tool: str) -> tuple[str, ...]:
    """Joints of all bodies below the body `tool`, in model order."""
    below = _below(kinematics, tool) - {kinematics.body(tool)}
    return tuple(j.name for i in sorted(below) for j in kinematics.bodies[i].joints)


def _tool_poses(model: mujoco.MjModel, tool: str, columns: list[int], posture: np.ndarray, seeds: np.ndarray) -> Pose:
    """T_base_tool at every seed, on the host."""
    import mujoco

    data, body = mujoco.MjData(model), model.body(tool).id
    position, rotation = np.empty((len(seeds), 3), np.float32), np.empty((len(seeds), 3, 3), np.float32)
    for k, seed in enumerate(seeds):
        data.qpos[:] = posture
        data.qpos[columns] = seed
        mujoco.mj_kinematics(model, data)
        position[k], rotation[k] = data.xpos[body], data.xmat[body].reshape(3, 3)
    return Pose(position=jnp.asarray(position), rotation=jnp.asarray(rotation))


def _below(kinematics: Kinematics, tool: str) -> frozenset[int]:
    below = {kinematics.body(tool)}
    for i, body in enumerate(kinematics.bodies):  # MuJoCo lists parents first
        if i and body.parent in below:
            below.add(i)
    return frozenset(below)


def _rest(low: float, high: float, *, middle: bool) -> float:
    if not np.isfinite(low + high):
        return 0.0
    return 0.5 * (low + high) if middle else float(np.clip(0.0, low, high))


def _ranges(limits: dict[str, tuple[float, float]], joints: tuple[str, ...]) -> np.ndarray:
    width = np.array([limits[j][1] - limits[j][0] for j in joints])
    return np.where(np.isfinite(width), width, 2 * np.pi)
