"""How a grasp is tested, as data: the one definition that every engine runs.

A `Protocol` says with which solver and contact settings, how the hand closes, which loads are then put on the object, and what
counts as success. Engines read it and decide nothing themselves; a new protocol is a new value of this class.

A trial goes through

    reset at the pregrasp -> the closing phases, once -> one branch per load, each from the state in which closing ended

and a branch holds when the object, at every check, has moved less than the thresholds from where it was when the trial began.
The trial succeeds when at least `needed` branches hold, and when nothing penetrated more than `penetration` at the reset.

Sources: DexGraspBench (Chen et al., the benchmark of BODex and Dexonomy), MultiDex (Li et al. 2023, GenDexGrasp),
GraspQP (Zurbruegg et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mujoco

Vector3 = tuple[float, float, float]
POSTURES = ("pregrasp", "grasp", "squeeze")
_AXES: tuple[Vector3, ...] = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the simulation. `timestep` [s], `gravity` [m/s^2, world frame].

    `contacts` is the most contacts that MJX hands to its solver, the deepest first; C has no such limit.
    """

    timestep: float = 0.004
    integrator: str = "implicitfast"
    cone: str = "elliptic"
    impratio: float = 10.0
    iterations: int = 20
    ls_iterations: int = 20
    gravity: Vector3 = (0.0, 0.0, 0.0)
    contacts: int = 40


@dataclass(frozen=True, kw_only=True)
class Contact:
    """Contact parameters: `friction` (sliding, torsional [m], rolling [m]) of every geom; solref and solimp of the hand's geoms.

    The object keeps MuJoCo's default solref and solimp; MuJoCo averages the two of a pair.
    """

    condim: int = 4
    friction: Vector3 = (0.6, 0.02, 1e-4)
    hand_solref: tuple[float, float] = (0.005, 1.0)
    hand_solimp: Vector3 = (0.5, 0.99, 1e-4)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of closing: the targets of the hand's position servos go linearly from one posture to the next.

    Attributes:
      start, end: postures, of `POSTURES`.
      duration: [s].
      waypoints: number of equal stairs in which the targets move.
    """

    start: str
    end: str
    duration: float
    waypoints: int = 10


@dataclass(frozen=True, kw_only=True)
class Load:
    """One branch after closing: a constant force at the object's centre of mass, the servos holding the last posture.

    Attributes:
      name: how the result calls it.
      force: [N], world frame.
      duration: time under the force [s]; then `rest` without it [s].
      check: time between two checks of the thresholds [s].
      lowering: distance by which the table sinks away during the first half of the branch [m]; seen from the hand this is the
        lift. Nothing happens in a protocol without a table.
    """

    name: str
    force: Vector3
    duration: float = 2.0
    rest: float = 0.0
    check: float = 0.2
    lowering: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol for a floating hand (the palm fixed in the world) and one free object.

    Attributes:
      name, version: go into every result; a change of any number is a new version.
      mass: mass that every object is given, its inertia scaled along [kg]; None keeps the object's own.
      gain: proportional gain of the hand's position servos [N m/rad]; None keeps the robot's own. Torque limits stay the robot's.
      phases: closing.
      loads: branches, all from the closed state.
      displacement: an object whose origin moved this far from its place at the reset is lost [m].
      rotation: or that turned this far [rad]; infinite where the protocol does not look at it.
      penetration: deepest penetration allowed at the reset, hand into object or hand into itself [m].
      needed: branches that have to hold.
      table: whether a plane lies under the object.
      measure: "origin" or "centre": which point of the object has to stay ("centre": the centre of mass).
    """

    name: str
    version: int
    options: Options = Options()
    contact: Contact = Contact()
    mass: float | None = 0.1
    gain: float | None = 5.0
    phases: tuple[Phase, ...] = (
        Phase(start="pregrasp", end="grasp", duration=0.4),
        Phase(start="grasp", end="squeeze", duration=0.4),
    )
    loads: tuple[Load, ...]
    displacement: float = 0.05
    rotation: float = 0.2617993877991494  # 15 degrees
    penetration: float = 0.01
    needed: int = 6
    table: bool = False
    measure: str = "origin"

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= len(self.loads):
            raise ValueError(f"protocol '{self.name}': needed = {self.needed}, but it has {len(self.loads)} loads")
        for phase in self.phases:
            for posture in (phase.start, phase.end):
                if posture not in POSTURES:
                    raise ValueError(f"no posture '{posture}'; there are: {', '.join(POSTURES)}")

    @property
    def title(self) -> str:
        """Name and version as they stand in results, for example `dexgraspbench-v1`."""
        return f"{self.name}-v{self.version}"

    def steps(self, duration: float) -> int:
        """Number of simulation steps in `duration` [s]."""
        return round(duration / self.options.timestep)


def _axes(force: float, **kwargs: float) -> tuple[Load, ...]:
    """The six loads of `force` [N] along the axes of the world."""
    names = ("+x", "-x", "+y", "-y", "+z", "-z")
    return tuple(Load(name=n, force=tuple(force * c for c in a), **kwargs) for n, a in zip(names, _AXES, strict=True))  # type: ignore[arg-type]


def dexgraspbench() -> Protocol:
    """DexGraspBench, main branch: 1.0 N (ten times the mass of 0.1 kg) for 2 s along each axis, all six held within 5 cm and 15 deg."""
    return Protocol(name="dexgraspbench", version=1, loads=_axes(1.0))


def dexgraspbench_paper() -> Protocol:
    """DexGraspBench as in the paper: 0.03 kg, 0.3 N, gain 1. Not comparable with the main branch."""
    return replace(dexgraspbench(), name="dexgraspbench-paper", mass=0.03, gain=1.0, loads=_axes(0.3))


def dexgraspbench_table() -> Protocol:
    """DexGraspBench on a table: 1.0 N downwards in place of gravity, 0.1 m of lift in 1 s and 1 s of holding, against the lifted pose."""
    lift = Load(name="lift", force=(0.0, 0.0, -1.0), duration=2.0, lowering=0.1)
    return replace(dexgraspbench(), name="dexgraspbench-table", loads=(lift,), needed=1, table=True)


def multidex() -> Protocol:
    """MultiDex: 0.5 N per kg of object, 50/60 s a direction, moved less than 2 cm in all six (Suc.6; `Outcome.held` has the rest)."""
    loads = _axes(0.05, duration=50 / 60, check=10 / 60)
    return Protocol(
        name="multidex", version=1, loads=loads, displacement=0.02, rotation=float("inf"), penetration=float("inf")
    )


def graspqp() -> Protocol:
    """GraspQP: 0.2 kg, friction 1, 3 N for 0.5 s and 0.25 s of rest; centre of mass within 3 cm in at least half of the six.

    Ours forks the six from the same closed state; the original applies them one after the other.
    """
    loads = _axes(3.0, duration=0.5, rest=0.25, check=0.05)
    contact = Contact(friction=(1.0, 0.02, 1e-4))
    return Protocol(
        name="graspqp",
        version=1,
        contact=contact,
        mass=0.2,
        loads=loads,
        displacement=0.03,
        rotation=float("inf"),
        needed=3,
        measure="centre",
    )


PROTOCOLS: dict[str, Callable[[], Protocol]] = {
    "dexgraspbench": dexgraspbench,
    "dexgraspbench-paper": dexgraspbench_paper,
    "dexgraspbench-table": dexgraspbench_table,
    "multidex": multidex,
    "graspqp": graspqp,
}


def load_protocol(name: str) -> Protocol:
    """The preset of that name. Raises ValueError, with the names that exist."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol '{name}'; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]()


def set_options(spec: mujoco.MjSpec, options: Options) -> None:
    """Writes the settings of the simulation into a scene, in place."""
    import mujoco

    spec.option.timestep = options.timestep
    spec.option.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{options.integrator.upper()}")
    spec.option.cone = getattr(mujoco.mjtCone, f"mjCONE_{options.cone.upper()}")
    spec.option.impratio = options.impratio
    spec.option.iterations = options.iterations
    spec.option.ls_iterations = options.ls_iterations
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.gravity = options.gravity
    spec.add_numeric(name="max_contact_points", data=[options.contacts], size=1)


def set_contact(spec: mujoco.MjSpec, contact: Contact, hand: str) -> None:
    """Writes the contact parameters into a scene, in place; geoms in the subtree of the body `hand` are the hand's."""
    for geom in spec.geoms:
        geom.condim = contact.condim
        geom.friction = contact.friction
    for geom in spec.body(hand).find_all("geom"):
        geom.solref[:2] = contact.hand_solref
        geom.solimp[:3] = contact.hand_solimp


def exclude_fixed(spec: mujoco.MjSpec) -> None:
    """Keeps what is put in its place (mocap bodies of the world) from colliding with what else stands fast, in place. C MuJoCo leaves such
    pairs out by itself; in MJX 3.17.0 a post that reaches into a table is a contact that nothing can resolve, beside which single precision
    loses all others."""
    placed = [body for body in spec.worldbody.bodies if body.mocap]
    still = [spec.worldbody, *(body for body in spec.worldbody.bodies if not body.mocap and not body.joints)]
    for i, body in enumerate(placed):
        for other in [*still, *placed[:i]]:
            spec.add_exclude(bodyname1=other.name, bodyname2=body.name)


def set_gain(spec: mujoco.MjSpec, gain: float, hand: str) -> None:
    """Gives the position servos of the hand's joints a proportional gain [N m/rad], in place."""
    own = {joint.name for joint in spec.body(hand).find_all("joint")}
    for actuator in spec.actuators:
        if actuator.target in own:
            actuator.gainprm[0] = gain
            actuator.biasprm[1] = -gain
