"""Embodiments: a robot as samplers and physics see it, an arm that carries a hand (or a tool, or a hand that floats).

The tree, the collision spheres and the names are static; where the base stands, limits and seeds are data, so that a robot at
another place, or a batch of places, costs no new trace. All kinematics are done in the frame of the base: obstacles and targets
are brought there, which is cheaper than carrying the robot into the world.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry import Pose
from diffopt.robots import describe, mjcf
from diffopt.robots.bodies import MOST, TOLERANCE, Spheres
from diffopt.robots.couplings import roots
from diffopt.robots.describe import Origin
from diffopt.robots.kinematics import Frames, Kinematics
from diffopt.robots.primitives import Primitives
from diffopt.robots.sampling import Contacts

if TYPE_CHECKING:
    import mujoco

_SEEDS = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """A robot.

    Attributes:
      name: what it is called.
      arm, hand: names of the joints that place the tool, and of those that the plan gives, in the order of its vectors. Joints that
        follow others (`kinematics.couplings`) are in neither, and go where those want them.
      tool: body that the plan's wrist pose speaks about.
      kinematics: the tree, in the frame of the base.
      spheres: collision bodies.
      contacts: which of their pairs can collide at all.
      primitives: the collision bodies exactly, if they were asked for; the spheres then only serve to find the nearest.
      xml: MJCF of the robot, for physics.
      notes: what was guessed or is missing, in words.
      origins: per joint of the arm and the hand, where its numbers came from.
      base: T_world_base, of the MJCF's world frame.
      lower, upper, velocity: limits of the arm's joints [rad or m, per s]; infinite where the file has none.
      hand_lower, hand_upper: limits of the hand's joints.
      home, hand_home: a comfortable posture.
      seeds: arm postures free of self-collision and spread over the joint ranges, the home posture first.
      seed_tools: T_base_tool at each of them, stacked.
      hand_kept: lowest and highest joints that the hand can have whatever it is told, because of what lies between its fingers [rad or
        m]; None: it is where it is told.
    """

    name: str = field(metadata=dict(static=True))
    arm: tuple[str, ...] = field(metadata=dict(static=True))
    hand: tuple[str, ...] = field(metadata=dict(static=True))
    tool: str = field(metadata=dict(static=True))
    kinematics: Kinematics = field(metadata=dict(static=True))
    spheres: Spheres = field(metadata=dict(static=True))
    contacts: Contacts = field(metadata=dict(static=True))
    primitives: Primitives | None = field(default=None, metadata=dict(static=True))
    xml: str = field(metadata=dict(static=True))
    notes: tuple[str, ...] = field(default=(), metadata=dict(static=True))
    origins: tuple[tuple[str, Origin], ...] = field(default=(), metadata=dict(static=True))
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
    hand_kept: tuple[Float[Array, "H"], Float[Array, "H"]] | None = None

    def __repr__(self) -> str:
        return f"Embodiment({self.name!r}, arm of {len(self.arm)} joints, hand of {len(self.hand)}, tool {self.tool!r})"

    @staticmethod
    def from_mjcf(
        source: mjcf.Source,
        *,
        tool: str,
        hand: Sequence[str] | None = None,
        base: str | None = None,
        name: str | None = None,
        velocity: Mapping[str, float] | None = None,
        velocity_from: str = "given",
        limits: Mapping[str, tuple[float, float]] | None = None,
        home: Mapping[str, float] | None = None,
        tolerance: float | dict[str, float] = TOLERANCE,
        most_spheres: int = MOST,
        couple_tendons: bool = True,
        bodies: str = "spheres",
    ) -> Embodiment:
        """Read a robot from an MJCF file, an XML string or an `MjSpec`.

        The robot is the tree of the tool: whatever else stands in the file's world (a floor, a table, another arm) is left out, and
        said in `notes`.

        Args:
          tool: body whose pose is the plan's wrist (the palm of a hand).
          hand: joints that the plan gives, in its order; default all joints below the tool.
          base: body whose frame is to be the robot's base; default the file's world frame. If it floats in the file, it is fixed.
          velocity: velocity limits by joint [rad/s or m/s]; MJCF has no place for them.
          velocity_from: where these came from, for `describe`.
          limits: ranges by joint [rad or m], instead of the file's.
          home: posture by joint; default the keyframe "home", else the middle of the range (zero where that is within it, for the hand).
          tolerance: how far collision spheres may reach outside of the geoms [m], or by body name ("" for the others).
          most_spheres: at most so many spheres per geom, even if the tolerance takes more.
          couple_tendons: whether joints that share a motor through a fixed tendon move together; see `couplings`.
          bodies: what collisions are computed with: the "spheres" that cover the geoms, which is cheaper, or the "primitives" of the file
            themselves (meshes stay covered).
        Raises:
          FileNotFoundError, ValueError, KeyError, TypeError: no such file or mesh; a model that does not compile, or is no arm with a hand;
            a name that is not in it; a number that makes no sense. The message says where and what to do.
        """
        from diffopt.robots.build import build
        from diffopt.robots.options import Options

        spec, label = mjcf.read(source)
        options = Options(
            tool=tool,
            hand=hand,
            base=base,
            name=name,
            velocity=velocity or {},
            velocity_from=velocity_from,
            limits=limits or {},
            home=home or {},
            tolerance=tolerance,
            most_spheres=most_spheres,
            couple_tendons=couple_tendons,
            bodies=bodies,
            seeds=_SEEDS,
        )
        return build(spec, label, options)

    @staticmethod
    def from_urdf(
        source: str | pathlib.Path,
        *,
        tool: str,
        packages: Mapping[str, str | pathlib.Path] | None = None,
        velocity: Mapping[str, float] | None = None,
        **options,
    ) -> Embodiment:
        """Read a robot from a URDF file or string. Limits, velocity limits, efforts and mimic joints come from the file.

        Args:
          tool: link whose pose is the plan's wrist.
          packages: folders by package name, for meshes at `package://name/...`; default: the folder of that name above the file.
          velocity: velocity limits by joint instead of the file's [rad/s or m/s].
          options: as in `from_mjcf`.
        Raises:
          FileNotFoundError, ValueError, KeyError: as in `from_mjcf`.
        """
        from diffopt.robots.urdf import read

        spec, label, found = read(source, packages or {}, options.get("limits") or ())
        if not options.get("name"):
            options["name"] = spec.modelname
        try:
            return Embodiment.from_mjcf(
                spec, tool=tool, velocity={**found, **(velocity or {})}, velocity_from="file", **options
            )
        except (ValueError, KeyError) as error:
            said = str(error.args[0]).replace(f"MjSpec {spec.modelname!r}", label)
            raise type(error)(said) from error

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
        """Generalised positions in the model's order, from the arm's joints and what the hand is told (default: its home)."""
        if hand is not None and self.hand_kept is not None:
            hand = jnp.clip(hand, *self.hand_kept)
        values = jnp.concatenate([joints, self.hand_home if hand is None else hand])
        index = np.array([self.kinematics.joint(j).qpos for j in (*self.arm, *self.hand)], int)
        if np.array_equal(index, np.arange(self.kinematics.nq)):
            return values
        source = len(values) + np.arange(self.kinematics.nq)
        source[index] = np.arange(len(values))
        fixed = jnp.asarray(self.kinematics.qpos0, values.dtype)
        return self.kinematics.complete(jnp.concatenate([values, fixed])[source])

    def frames(
        self, joints: Float[Array, "A"], hand: Float[Array, "H"] | None = None, only: Sequence[int] | None = None
    ) -> Frames:
        """Poses of all bodies in the frame of the base; with `only`, as in `Kinematics.fk`."""
        frames = self.kinematics.fk(self.qpos(joints, hand), only)
        if not self.arm_followers:
            return frames
        index = np.array([self.kinematics.joint(j).qpos for j in self.arm_followers])
        return replace(frames, follow=jax.jacfwd(lambda q: self.qpos(q, hand)[index])(joints))

    def tool_pose(self, joints: Float[Array, "A"]) -> Pose:
        """T_world_tool."""
        tool = self.kinematics.body(self.tool)
        frames = self.kinematics.fk(self.qpos(joints), only=(tool,))
        return self.base @ Pose(position=frames.position[tool], rotation=frames.rotation[tool])

    @property
    def below_tool(self) -> frozenset[int]:
        """Indices of the tool's body and of all bodies that hang on it."""
        return bodies_below(self.kinematics, self.tool)

    @property
    def followers(self) -> tuple[str, ...]:
        """Joints that follow others."""
        return tuple(c.joint for c in self.kinematics.couplings)

    @property
    def arm_followers(self) -> tuple[str, ...]:
        """Joints that follow joints of the arm."""
        arm = {self.kinematics.joint(j).qpos for j in self.arm}
        couplings = self.kinematics.couplings
        return tuple(c.joint for c in couplings if roots(couplings, c.index) & arm)

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
        """Joints, limits and where each number came from, couplings, collision bodies, pairs and notes, as a table."""
        return describe.table(self)


_PROVIDERS: list[Callable[[Embodiment], Any]] = []


def provides_constraints(build: Callable[[Embodiment], Any]) -> Callable[[Embodiment], Any]:
    """Declare the function behind `Embodiment.constraints` (robots know nothing of constraints, which speak about robots)."""
    _PROVIDERS.append(build)
    return build


def bodies_below(kinematics: Kinematics, tool: str) -> frozenset[int]:
    """Indices of the body `tool` and of all bodies that hang on it."""
    below = {kinematics.body(tool)}
    for i, body in enumerate(kinematics.bodies):  # MuJoCo lists parents first
        if i and body.parent in below:
            below.add(i)
    return frozenset(below)
