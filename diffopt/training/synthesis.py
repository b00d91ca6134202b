"""Synthesis of grasps by bilevel optimisation, for many objects and starts at once.

Unknowns of one grasp: the wrist pose (R, x) in the object's frame and the joints q of the hand. With d_f the distance of fingertip f
to the object, n_f and c_f normal and place of its contact, G(n, c) the grasp map, and t_j the six unit forces and the zero wrench,

    minimise   w_b sum_j |G p_j + k t_j|^2 / k^2  +  w_c sum_f (d_f - d*)^2  +  w_p sum_s max(0, m_s - d_s)^2  +  w_s self-collision

    where      p_j = argmin of the quadratic program of `diffopt.training.wrench`, held fixed: the gradient flows through G alone.

The sums run over the contacts in use (palm and four fingertips: a power grasp; four fingertips, or thumb and two: precision),
and over spheres s that cover the hand: those of contacts may touch (m = 0), all others keep a margin. d* is 1 cm for the first
part, so that the hand finds its place with the fingers open, and then 0. Steps are Adam's on the wrist's tangent space and the
joints; joints are clipped to their limits. The scheme is that of BODex (Chen et al. 2024, arXiv 2412.16490); what differs is the
squeeze. With p_0 the forces that balance among themselves (zero wrench), scaled to a chosen force F at the thumb, the position
servos of gain K press with exactly these forces when

    squeeze = J(q)^T f / K,       pregrasp = q - squeeze,       target = q + squeeze,

one wrist pose for all three: the hand opens against the forces with which it will hold. The palm's force is only a reaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.geometry.shapes import Shapes
from diffopt.plans import Grasp
from diffopt.scenes.solids import Solid
from diffopt.training import wrench
from diffopt.training.hand import Hand

OPEN = (0.0, 0.5, 0.6, 0.5) * 3 + (1.3, 0.3, 0.3, 0.3)  # [rad] joints at the start
GRIP_CENTER = (0.085, 0.005, 0.03)  # [m, palm frame] between the open fingertips and the thumb
PALM_NEAR, FINGER_NEAR = 0.008, 0.02  # [m] what is nearer to the object counts as meant to touch it
PALM_FACE = (0.026, 0.005, 0.0)  # [m, palm frame] a little in front of the palm


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Numbers of the method; lengths in metres. Hashable, static under `jit`."""

    iterations: int = 200
    open_share: float = 0.6  # of the iterations, with the fingertips `opening` away
    opening: float = 0.01
    wrench_scale: float = 0.2  # k
    friction: float = 0.1  # mu of the lower level, far below the real one: a margin
    lower_iterations: int = 2  # of the lower level per step of the upper, warm-started
    final_iterations: int = 200
    balance_weight: float = 2.0
    contact_weight: float = 5.0  # per cm^2; ten times that at the end
    penetration_weight: float = 20.0
    self_weight: float = 20.0
    margin: float = 0.004
    learning_rate: float = 0.02  # [rad]; positions move by a tenth of it [m]
    force: float = 5.0  # F at the thumb [N]
    power_share: float = 0.7  # of the starts, with the palm on the object
    three_finger_share: float = 0.25  # of the others, with thumb and two fingers
    candidates: int = 8  # starts looked at for each one kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Wrist pose in the object frame, joints, and the lower level's forces (the warm start)."""

    position: Float[Array, "3"]
    rotation: Float[Array, "3 3"]
    joints: Float[Array, "J"]
    forces: Float[Array, "W C 8"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What came out: the grasp in the object's frame and the figures to choose by.

    Attributes:
      grasp: see `diffopt.plans.Grasp`.
      contact: largest distance of a fingertip in use from the object [m].
      penetration: deepest penetration at the grasp [m].
      pregrasp_clearance: distance from hand to object at the pregrasp [m].
      self_penetration: at the grasp [m].
      balance: largest residual over the wrenches, |G p + k t| / k.
      active: which contacts are in use: palm, fingers, thumb.
    """

    grasp: Grasp
    contact: Float[Array, ""]
    penetration: Float[Array, ""]
    pregrasp_clearance: Float[Array, ""]
    self_penetration: Float[Array, ""]
    balance: Float[Array, ""]
    active: Float[Array, "C"]


def wrenches(scale: float) -> Float[np.ndarray, "7 6"]:
    """External wrenches k t: unit forces along the axes, and none."""
    forces = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    return (scale * np.concatenate([forces, np.zeros((7, 3))], axis=1)).astype(np.float32)


def synthesise(
    hand: Hand,
    solid: Solid,
    surface: Float[Array, "N 3"],
    normals: Float[Array, "N 3"],
    key,
    config: SynthesisConfig,
    quadric: bool,
) -> Synthesis:
    """One grasp of one object; `vmap` it over objects and keys.

    Args:
      surface, normals: points of the object's surface [m] and outward normals, from which starts are drawn.
      quadric: whether the solid is a superquadric (static: the two kinds of geometry are traced apart).
    """
    distance = jax.vmap(solid.superquadric.distance) if quadric else lambda points: union_distance(solid.parts, points)
    k_start, k_power, k_three = jax.random.split(key, 3)
    power = jax.random.uniform(k_power) < config.power_share
    three = (jax.random.uniform(k_three) < config.three_finger_share) & ~power
    active = jnp.stack([jnp.where(power, 1.0, 0.0), 1.0, 1.0, jnp.where(three, 0.0, 1.0), 1.0])
    state = initial(hand, distance, surface, normals, k_start, power, config)

    def plan(share):
        closing = share > config.open_share
        return (
            jnp.where(closing, 0.0, config.opening),
            config.contact_weight * jnp.where(closing, 10.0, 1.0),
            config.learning_rate * jnp.minimum(1.0, 4.0 * (1.02 - share) ** 2),
        )

    state = _descend(hand, solid, distance, state, active, config, config.iterations, plan)
    return finish(hand, solid, distance, state, active, config)


def refine(
    hand: Hand, solid: Solid, grasp: Grasp, config: SynthesisConfig, quadric: bool, iterations: int
) -> Synthesis:
    """A grasp near `grasp` (in the object's frame) that the problem above likes better: the end of its descent, begun there.

    Palm and fingers that are near enough to the object are the contacts in use; the thumb always is.
    """
    distance = jax.vmap(solid.superquadric.distance) if quadric else lambda points: union_distance(solid.parts, points)
    joints = jnp.clip(grasp.joints, hand.lower, hand.upper)
    centers = hand.sphere_centers(hand.kinematics.fk(joints))
    gaps = distance(_turn(grasp.rotation, jnp.concatenate(centers)) + grasp.position)
    touch = jnp.stack([jnp.min(gaps[a:b]) - radius for a, b, radius in _tip_rows(hand)])
    active = jnp.where(touch < np.array([PALM_NEAR, *[FINGER_NEAR] * (len(touch) - 2), np.inf]), 1.0, 0.0)
    forces = jnp.full((7, len(touch), wrench.EDGES), 0.1)
    state = State(position=grasp.position, rotation=grasp.rotation, joints=joints, forces=forces)

    def plan(share):
        return 0.0, 10 * config.contact_weight, config.learning_rate * (1.02 - share) ** 2

    state = _descend(hand, solid, distance, state, active, config, iterations, plan)
    return finish(hand, solid, distance, state, active, config)


def _descend(
    hand: Hand, solid: Solid, distance, state: State, active, config: SynthesisConfig, iterations: int, plan
) -> State:
    """`iterations` steps of Adam; `plan` tells, of the share done, the contacts' distance [m], their weight, and the rate [rad]."""
    external = jnp.asarray(wrenches(config.wrench_scale))

    def energy(delta, state: State, target, contact_weight):
        R = state.rotation @ _exp(delta[3:6])
        x = state.position + delta[:3]
        frames = hand.kinematics.fk(state.joints + delta[6:])
        centers = hand.sphere_centers(frames)
        points = _turn(R, jnp.concatenate(centers)) + x
        gaps = distance(points)
        c, d, n = contacts(hand, points, gaps, distance)
        G = wrench.grasp_map(c, n, solid.center, solid.radius, config.friction)
        p = wrench.balance(jax.lax.stop_gradient(G), external, active, state.forces, config.lower_iterations, newton=2)
        p = jax.lax.stop_gradient(p)
        loss = config.balance_weight * jnp.sum(wrench.residual(G, p, external)) / config.wrench_scale**2
        loss += contact_weight * jnp.sum(active * ((d - target) * 100) ** 2)
        loss += config.penetration_weight * jnp.sum((_penetration(hand, gaps, active, config.margin) * 100) ** 2)
        loss += config.self_weight * jnp.sum((self_penetration(hand, centers, 0.002) * 100) ** 2)
        return loss, p

    scale = jnp.concatenate([jnp.full(3, 0.1), jnp.ones(3), jnp.ones(len(hand.lower))])

    def step(carry, i):
        state, first, second = carry
        target, weight, rate = plan(i / iterations)
        zero = jnp.zeros(6 + len(hand.lower))
        gradient, p = jax.grad(energy, has_aux=True)(zero, state, target, weight)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0) * scale
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        correction = (1 - 0.9 ** (i + 1)) / jnp.sqrt(1 - 0.98 ** (i + 1))
        delta = -rate / correction * first / (jnp.sqrt(second) + 1e-6) * scale
        joints = jnp.clip(state.joints + delta[6:], hand.lower, hand.upper)
        state = State(
            position=state.position + delta[:3], rotation=state.rotation @ _exp(delta[3:6]), joints=joints, forces=p
        )
        return (state, first, second), None

    zero = jnp.zeros(6 + len(hand.lower))
    (state, _, _), _ = jax.lax.scan(step, (state, zero, zero), jnp.arange(iterations, dtype=jnp.float32))
    return state


def initial(hand: Hand, distance, surface, normals, key, power, config: SynthesisConfig) -> State:
    """A start: the open hand in front of a random place of the surface, palm facing it, any roll, some tilt.

    Of `config.candidates` random ones, that with the least collision and the best centred fingers.
    """

    def draw(key):
        k_point, k_roll, k_tilt, k_depth, k_joints = jax.random.split(key, 5)
        i = jax.random.randint(k_point, (), 0, surface.shape[0])
        approach = -normals[i] + 0.35 * jax.random.normal(k_tilt, (3,))
        approach = approach / jnp.linalg.norm(approach)
        helper = jnp.where(jnp.abs(approach[0]) < 0.7, jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0]))
        y = jnp.cross(approach, helper)
        y = y / jnp.linalg.norm(y)
        R = jnp.stack([approach, y, jnp.cross(approach, y)], axis=1)
        R = R @ _exp(jnp.array([1.0, 0.0, 0.0]) * jax.random.uniform(k_roll, minval=-jnp.pi, maxval=jnp.pi))
        depth = jax.random.uniform(k_depth, minval=0.005, maxval=0.035)
        inside = surface[i] - depth * normals[i]
        x = jnp.where(power, surface[i] - R @ jnp.asarray(PALM_FACE), inside - R @ jnp.asarray(GRIP_CENTER))
        joints = jnp.asarray(OPEN) + 0.1 * jax.random.normal(k_joints, (len(OPEN),))
        return R, x, jnp.clip(joints, hand.lower, hand.upper)

    def badness(R, x, joints):
        frames = hand.kinematics.fk(joints)
        gaps = distance(_turn(R, jnp.concatenate(hand.sphere_centers(frames))) + x)
        deep = _penetration(hand, gaps, jnp.zeros(5), 0.0)
        reach = jnp.stack([jnp.min(gaps[first:last]) for first, last, _ in _tip_rows(hand)[1:]])
        return jnp.sum((deep * 100) ** 2) + 0.3 * jnp.sum((jnp.maximum(reach - 0.012, 0) * 100) ** 2)

    R, x, joints = jax.vmap(draw)(jax.random.split(key, config.candidates))
    best = jnp.argmin(jax.vmap(badness)(R, x, joints))
    forces = jnp.full((7, 5, wrench.EDGES), 0.1)
    return State(position=x[best], rotation=R[best], joints=joints[best], forces=forces)


def union_distance(parts: Shapes, points: Float[Array, "M 3"]) -> Float[Array, "M"]:
    """Signed distances [m] of many points to a union of shapes: `Shapes.distance` written by components, which compiles to a few
    long loops on a CPU."""
    offset = [points[:, None, i] - parts.position[:, i] for i in range(3)]
    x, y, z = (sum(offset[j] * parts.rotation[:, j, i] for j in range(3)) for i in range(3))
    half, tiny = parts.half, 1e-14
    radial = jnp.sqrt(x * x + y * y + 1e-12) - half[:, 0]
    qx, qy, qz = (jnp.sqrt(v * v + tiny) - half[:, i] for i, v in enumerate((x, y, z)))
    qx, qy = jnp.where(parts.round, radial, qx), jnp.where(parts.round, jnp.minimum(radial, qz), qy)
    ox, oy, oz = jnp.maximum(qx, 0), jnp.where(parts.round, 0, jnp.maximum(qy, 0)), jnp.maximum(qz, 0)
    outside = jnp.sqrt(ox * ox + oy * oy + oz * oz + tiny)
    return jnp.min(outside + jnp.minimum(jnp.maximum(jnp.maximum(qx, qy), qz), 0) - parts.radius, axis=1)


def _tip_rows(hand: Hand) -> list[tuple[int, int, float]]:
    """Per contact (palm, fingers, thumb): first and last row of its spheres among all of the hand's, and their radius [m]."""
    first, rows = 0, {}
    for body, local, radius in hand.spheres:
        a, _, _ = rows.get(body, (first, 0, 0))
        first += len(local)
        rows[body] = (a, first, radius)
    return [rows[hand.groups[-1][0]]] + [rows[tip[0]] for tip in hand.tips]


def contacts(hand: Hand, points, gaps, distance) -> tuple[Float[Array, "C 3"], Float[Array, "C"], Float[Array, "C 3"]]:
    """Contacts in the object's frame, the palm's first, then the fingertips': place on the surface [m], distance [m], unit normal
    into the object.

    Args:
      points, gaps: centres of the hand's spheres in the object's frame [m], and their signed distances to the object [m].
    """
    rows = _tip_rows(hand)
    weights = [jax.nn.softmax(-jax.lax.stop_gradient(gaps[a:b]) / 0.001) for a, b, _ in rows]
    core = jnp.stack([jnp.sum(w[:, None] * points[a:b], axis=0) for w, (a, b, _) in zip(weights, rows, strict=True)])
    value, pull = jax.vjp(distance, core)
    (outward,) = pull(jnp.ones_like(value))
    outward = outward / (jnp.sqrt(jnp.sum(outward**2, axis=-1, keepdims=True)) + 1e-9)
    return core - value[:, None] * outward, value - np.array([radius for _, _, radius in rows], np.float32), -outward


def _penetration(hand: Hand, gaps, active, margin) -> Float[Array, "S"]:
    """By how much every sphere is nearer to the object than allowed [m]; palm and fingertips in use may touch it."""
    contact_of = {tip[0]: f + 1 for f, tip in enumerate(hand.tips)} | {hand.groups[-1][0]: 0}
    allowed = []
    for body, local, radius in hand.spheres:
        keep = jnp.where(active[contact_of[body]] > 0, 0.0, margin) if body in contact_of else jnp.asarray(margin)
        allowed.append(jnp.broadcast_to(radius + keep, (len(local),)))
    return jnp.maximum(jnp.concatenate(allowed) - gaps, 0.0)


def self_penetration(hand: Hand, centers: list[Float[Array, "k 3"]], margin: float) -> Float[Array, "P"]:
    """By how much spheres of different fingers, and of fingers and palm, are too near to each other [m] (exact at touching)."""
    groups = []
    for bodies in hand.groups:
        inside = [(points, radius) for (b, _, radius), points in zip(hand.spheres, centers, strict=True) if b in bodies]
        radii = np.concatenate([np.full(len(points), radius, np.float32) for points, radius in inside])
        groups.append((jnp.concatenate([points for points, _ in inside]), radii))
    fingers, palm = groups[:-1], groups[-1]
    moving = [(c[2:], r[2:]) for c, r in fingers]  # the base links cannot meet
    distal = [(c[6:], r[6:]) for c, r in fingers]  # what can meet the palm: the model excludes the rest
    pairs = [(moving[i], moving[i + 1]) for i in range(len(moving) - 2)]
    pairs += [(distal[-1], finger) for finger in moving[:-1]]
    pairs += [(finger, palm) for finger in distal]
    out = []
    for (a, ra), (b, rb) in pairs:
        squared = sum((a[:, None, i] - b[None, :, i]) ** 2 for i in range(3))
        least = ra[:, None] + rb[None] + margin
        out.append(jnp.maximum((least**2 - squared) / (2 * least), 0).ravel())
    return jnp.concatenate(out)


def finish(hand: Hand, solid: Solid, distance, state: State, active, config: SynthesisConfig) -> Synthesis:
    """The triplet of an optimised state, and its static figures."""
    R, x = state.rotation, state.position
    centers = hand.sphere_centers(hand.kinematics.fk(state.joints))
    points = _turn(R, jnp.concatenate(centers)) + x
    gaps = distance(points)
    c, d, n = contacts(hand, points, gaps, distance)
    G = wrench.grasp_map(c, n, solid.center, solid.radius, config.friction)
    external = jnp.asarray(wrenches(config.wrench_scale))
    p = wrench.balance(G, external, active, state.forces, config.final_iterations)
    balance = jnp.sqrt(jnp.max(wrench.residual(G, p, external))) / config.wrench_scale
    edges = G[:3].reshape(3, 5, wrench.EDGES)
    forces = jnp.einsum("cfe,fe->fc", edges, p[-1])
    forces = forces * config.force / (jnp.sum(p[-1, -1]) + 1e-6)  # object frame [N]
    squeeze = (
        _torques(hand, state.joints, _turn(R.T, c - x)[1:], _turn(R.T, forces)[1:]) / hand.gain
    )  # the palm only reacts
    open_frames = hand.kinematics.fk(jnp.clip(state.joints - squeeze, hand.lower, hand.upper))
    opened = distance(_turn(R, jnp.concatenate(hand.sphere_centers(open_frames))) + x)
    radii = np.concatenate([np.full(len(local), radius, np.float32) for _, local, radius in hand.spheres])
    return Synthesis(
        grasp=Grasp(position=x, rotation=R, joints=state.joints, squeeze=squeeze),
        contact=jnp.max(jnp.abs(d) * active),
        penetration=jnp.max(radii - gaps),
        pregrasp_clearance=jnp.min(opened - radii),
        self_penetration=jnp.max(self_penetration(hand, centers, 0.0)),
        balance=balance,
        active=active,
    )


def _torques(hand: Hand, joints, points, forces) -> Float[Array, "J"]:
    """J^T f [N m]: joint torques with which the fingertips press `forces` [N] at `points` (both in the palm frame)."""
    frames = hand.kinematics.fk(joints)
    bodies = [tip[0] for tip in hand.tips]
    local = [frames.rotation[b].T @ (points[f] - frames.position[b]) for f, b in enumerate(bodies)]

    def work(q):
        moved = hand.kinematics.fk(q)
        return sum(forces[f] @ (moved.position[b] + moved.rotation[b] @ local[f]) for f, b in enumerate(bodies))

    return jax.grad(work)(joints)


def _turn(R, points):
    """R p for points (..., 3), elementwise."""
    return points[..., 0:1] * R[:, 0] + points[..., 1:2] * R[:, 1] + points[..., 2:3] * R[:, 2]


def _exp(w: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rotation matrix of a rotation vector [rad], smooth at zero."""
    squared = jnp.sum(w * w) + 1e-12
    angle = jnp.sqrt(squared)
    a, b = jnp.sin(angle) / angle, (1 - jnp.cos(angle)) / squared
    x, y, z = w
    K = jnp.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return jnp.eye(3) + a * K + b * (K @ K)
