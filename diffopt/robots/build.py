"""From an MjSpec to an embodiment: which joints are the arm's and which the hand's, their limits, collision bodies, pairs, seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from diffopt.geometry import Pose
from diffopt.robots import mjcf
from diffopt.robots.bodies import Spheres
from diffopt.robots.couplings import complete, roots, unread
from diffopt.robots.describe import Origin
from diffopt.robots.embodiment import Embodiment, bodies_below
from diffopt.robots.kinematics import Kinematics
from diffopt.robots.options import Options
from diffopt.robots.primitives import Primitives
from diffopt.robots.ranges import narrowed
from diffopt.robots.sampling import contacts, spread

if TYPE_CHECKING:
    import mujoco

MOST_JOINTS = 100  # that the plan and the arm together may have


def build(spec: mujoco.MjSpec, label: str, options: Options) -> Embodiment:
    """The embodiment of a spec, which is changed on the way."""
    key = _home_key(mjcf.compile(spec, label))
    notes = mjcf.tidy(spec, options.tool, options.base, label)
    model = mjcf.compile(spec, label)
    kinematics = Kinematics.from_model(model, tendons=options.couple_tendons)
    title = options.name or spec.modelname
    options.check(kinematics.joint_names, kinematics.body_names[1:], title)
    arm, hand = _parts(kinematics, options, title)
    limits, limits_from = _limits(model, kinematics, (*arm, *hand), options)
    home, home_from = _home(limits, arm, options.home, key, notes)
    notes += _missing(kinematics, arm, hand, limits, options, title) + list(unread(model))

    spheres = Spheres.from_model(model, tolerance=options.tolerance, most=options.most_spheres)
    primitives = Primitives.from_model(model, spheres) if options.bodies == "primitives" else None
    further = {kinematics.body_names[b]: e for b, e in sorted(zip(spheres.body, spheres.overshoot, strict=True))}
    further = {body: e for body, e in further.items() if e > options.allowed(body) + 1e-9}
    if further:
        worst = max(further, key=lambda body: further[body])
        notes.append(
            f"collision spheres reach up to {1e3 * further[worst]:.0f} mm outside (of {worst}; further than asked for: "
            f"{', '.join(further)}); allow more per geom than most_spheres={options.most_spheres}"
        )
    if not len(spheres):
        notes.append("no collision geoms: collisions are not seen")

    index = {j.name: j.qpos for j in kinematics.joints}
    columns = [index[j] for j in arm]
    posture = np.array(kinematics.qpos0)
    posture[[index[j] for j in home]] = list(home.values())
    posture = complete(kinematics.couplings, posture)
    bounds = np.array([limits[j] for j in (*arm, *hand)]).reshape(-1, 2)
    ranges, hand_columns = (bounds[:, 0], bounds[:, 1]), [index[j] for j in hand]
    pairs, free = contacts(model, spheres, posture, ranges, columns, hand_columns, kinematics.couplings, primitives)
    if arm and not len(free):
        notes.append("in none of the postures tried is the robot clear of itself: look at its collision bodies")
    seeds = np.zeros((1, 0))
    if arm:
        seeds = spread(free[:, columns], options.seeds, first=posture[columns], scale=_ranges(limits, arm))

    def row(joints: Iterable[str], values: Mapping[str, float]) -> jnp.ndarray:
        return jnp.asarray([values[j] for j in joints], jnp.float32)

    lower, upper = ({j: v[side] for j, v in limits.items()} for side in (0, 1))
    return Embodiment(
        name=title,
        arm=arm,
        hand=hand,
        tool=options.tool,
        kinematics=kinematics,
        spheres=spheres,
        contacts=pairs,
        primitives=primitives,
        xml=spec.to_xml(),
        notes=tuple(notes),
        origins=_origins(model, arm, hand, limits_from, home_from, options),
        base=Pose.identity(),
        lower=row(arm, lower),
        upper=row(arm, upper),
        velocity=row(arm, {j: options.velocity.get(j, np.inf) for j in arm}),
        hand_lower=row(hand, lower),
        hand_upper=row(hand, upper),
        home=row(arm, home),
        hand_home=row(hand, home),
        seeds=jnp.asarray(seeds, jnp.float32),
        seed_tools=_tool_poses(model, kinematics, options.tool, columns, posture, seeds),
    )


def _parts(kinematics: Kinematics, options: Options, title: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The joints of the arm (between the world and the tool) and of the hand (below it), followers replaced by what they follow."""
    followers = {c.joint: c for c in kinematics.couplings}
    for joint in options.hand or ():
        if joint in followers:
            raise ValueError(
                f"joint {joint!r} of {title!r} follows others ({followers[joint].origin}); leave it out of the hand"
            )
    by_index = {j.qpos: j.name for j in kinematics.joints}

    def leaders(joints: Iterable[str]) -> tuple[str, ...]:
        found = (i for j in joints for i in sorted(roots(kinematics.couplings, kinematics.joint(j).qpos)))
        return tuple(dict.fromkeys(by_index[i] for i in found))

    above: list[str] = []
    body = kinematics.body(options.tool)
    while body > 0:
        above = [j.name for j in kinematics.bodies[body].joints] + above
        body = kinematics.bodies[body].parent
    if options.hand is not None:
        hand = tuple(options.hand)
        arm = tuple(j for j in leaders(j for j in above if j not in hand) if j not in hand)
    else:
        arm = leaders(above)
        below = sorted(bodies_below(kinematics, options.tool) - {kinematics.body(options.tool)})
        hand = tuple(j for j in leaders(j.name for i in below for j in kinematics.bodies[i].joints) if j not in arm)
    if len(arm) + len(hand) > MOST_JOINTS:
        raise ValueError(
            f"{title!r} has {len(arm)} joints above and {len(hand)} below the tool {options.tool!r}, more than {MOST_JOINTS} "
            "together; choose another tool, name the plan's joints with hand=[...], or cut the model down"
        )
    for name in (*arm, *hand):
        kind = kinematics.joint(name).type
        if kind not in ("hinge", "slide"):
            where = "; give its body as base= to have it fixed, where at() puts it" if kind == "free" else ""
            raise ValueError(
                f"joint {name!r} of {title!r} is of type {kind}; arms and hands have hinges and slides{where}"
            )
    return arm, hand


def _limits(
    model: mujoco.MjModel, kinematics: Kinematics, joints: tuple[str, ...], options: Options
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Ranges of the independent joints, within which their followers are in theirs; and where they came from."""
    limits: dict[str, tuple[float, float]] = {}
    origin: dict[str, str] = {}
    for joint in map(kinematics.joint, joints):
        limits[joint.name], origin[joint.name] = (kinematics.lower[joint.qpos], kinematics.upper[joint.qpos]), "file"
        if joint.name in options.limits:
            low, high = map(float, options.limits[joint.name])
            limits[joint.name], origin[joint.name] = (low, high), "given"
        elif not np.isfinite(limits[joint.name]).all():
            servo = _servo(model, joint.name)
            limits[joint.name], origin[joint.name] = (-np.inf, np.inf), "missing"
            if servo is not None and model.actuator_ctrllimited[servo]:
                low, high = map(float, model.actuator_ctrlrange[servo])
                limits[joint.name] = low, high
                origin[joint.name] = "actuator"
    own = {c.index: (kinematics.lower[c.index], kinematics.upper[c.index]) for c in kinematics.couplings}
    for joint in map(kinematics.joint, joints):
        limits[joint.name], by = narrowed(
            kinematics.couplings, np.array(kinematics.qpos0), joint.qpos, limits[joint.name], own
        )
        if by:
            origin[joint.name] += f", narrowed by {' and '.join(by)}"
    return limits, origin


def _servo(model: mujoco.MjModel, joint: str) -> int | None:
    """The position servo of a joint: gain kp and bias -kp q, one to one."""
    for a in range(model.nu):
        drives = model.actuator_trntype[a] == 0 and model.actuator_trnid[a, 0] == model.joint(joint).id
        if (
            drives
            and model.actuator_gear[a, 0] == 1
            and model.actuator_biasprm[a, 1] == -model.actuator_gainprm[a, 0] != 0
        ):
            return a
    return None


def _home(
    limits: dict[str, tuple[float, float]],
    arm: tuple[str, ...],
    given: Mapping[str, float],
    key: dict[str, float],
    notes: list[str],
) -> tuple[dict[str, float], dict[str, str]]:
    home: dict[str, float] = {}
    origin: dict[str, str] = {}
    for joint, (low, high) in limits.items():
        bounded = np.isfinite(low + high)
        if joint in given:
            home[joint], origin[joint] = float(given[joint]), "given"
        elif joint in key:
            home[joint], origin[joint] = key[joint], "keyframe"
        elif joint in arm and bounded:
            home[joint], origin[joint] = 0.5 * (low + high), "middle"
        else:
            home[joint], origin[joint] = float(np.clip(0.0, low, high)), "zero" if low <= 0 <= high else "limit"
        if not low - 1e-6 <= home[joint] <= high + 1e-6:
            notes.append(
                f"home of joint {joint}, {home[joint]:g}, is outside of its limits, and was moved to the nearer one"
            )
            home[joint] = float(np.clip(home[joint], low, high))
    return home, origin


def _home_key(model: mujoco.MjModel) -> dict[str, float]:
    """Positions of hinges and slides by name in the keyframe 'home', if there is one."""
    keys = [k for k in range(model.nkey) if model.key(k).name == "home"]
    scalar = [j for j in range(model.njnt) if model.jnt_type[j] >= 2] if keys else []
    return {model.joint(j).name: float(model.key_qpos[keys[0], model.jnt_qposadr[j]]) for j in scalar}


def _missing(
    kinematics: Kinematics,
    arm: tuple[str, ...],
    hand: tuple[str, ...],
    limits: dict[str, tuple[float, float]],
    options: Options,
    title: str,
) -> list[str]:
    """What is missing, in words; an arm's slide without limits is an error, because its postures cannot be tried."""
    endless = [j for j, (low, high) in limits.items() if not np.isfinite([low, high]).all()]
    for joint in endless:
        if kinematics.joint(joint).type == "slide":
            raise ValueError(
                f"slide {joint!r} of {title!r} has no limits; give it a range in the file, or limits={{{joint!r}: (low, high)}}"
            )
    notes = [f"joint {j} has no limits" for j in endless]
    notes += [f"joint {j} has no velocity limit" for j in arm if j not in options.velocity]
    leaders = set().union(*(roots(kinematics.couplings, c.index) for c in kinematics.couplings))
    held = [
        j.name
        for j in kinematics.joints
        if j.name not in (*arm, *hand) and j.name not in {c.joint for c in kinematics.couplings}
    ]
    if held:
        follow = [j for j in held if kinematics.joint(j).qpos in leaders]
        more = f" (and so do the followers of {', '.join(follow)})" if follow else ""
        notes.append(f"neither above nor below the tool, these stay where the file has them{more}: {', '.join(held)}")
    return notes


def _origins(
    model: mujoco.MjModel,
    arm: tuple[str, ...],
    hand: tuple[str, ...],
    limits_from: dict[str, str],
    home_from: dict[str, str],
    options: Options,
) -> tuple[tuple[str, Origin], ...]:
    out = []
    for name in (*arm, *hand):
        joint = model.joint(name).id
        torque, torque_from = np.inf, "missing"
        if model.jnt_actfrclimited[joint]:
            torque, torque_from = float(np.abs(model.jnt_actfrcrange[joint]).max()), "file"
        for a in range(model.nu):
            drives = model.actuator_trntype[a] == 0 and model.actuator_trnid[a, 0] == joint
            force = float(np.abs(model.actuator_forcerange[a]).max() * abs(model.actuator_gear[a, 0]))
            if drives and model.actuator_forcelimited[a] and force <= torque:
                torque, torque_from = force, "actuator"
        velocity = options.velocity_from if name in options.velocity else "missing"
        facts = dict(limits=limits_from[name], velocity=velocity, home=home_from[name])
        out.append((name, Origin(torque=torque, torque_from=torque_from, **facts)))
    return tuple(out)


def _tool_poses(
    model: mujoco.MjModel, kinematics: Kinematics, tool: str, columns: list[int], posture: np.ndarray, seeds: np.ndarray
) -> Pose:
    """T_base_tool at every seed, on the host."""
    import mujoco

    data, body = mujoco.MjData(model), model.body(tool).id
    postures = np.tile(posture, (len(seeds), 1))
    postures[:, columns] = seeds
    position, rotation = np.empty((len(seeds), 3), np.float32), np.empty((len(seeds), 3, 3), np.float32)
    for k, qpos in enumerate(complete(kinematics.couplings, postures)):
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        position[k], rotation[k] = data.xpos[body], data.xmat[body].reshape(3, 3)
    return Pose(position=jnp.asarray(position), rotation=jnp.asarray(rotation))


def _ranges(limits: dict[str, tuple[float, float]], joints: tuple[str, ...]) -> np.ndarray:
    width = np.array([limits[j][1] - limits[j][0] for j in joints])
    return np.where(np.isfinite(width), width, 2 * np.pi)
