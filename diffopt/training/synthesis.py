"""Synthesis of grasps by bilevel optimisation, for many objects and starts at once.

Unknowns of one grasp: the wrist pose (R, x) in the object's frame and the joints q of the hand. With d_f the distance of fingertip f
to the object, n_f and c_f normal and place of its contact, G(n, c) the grasp map, and t_j the six unit forces and the zero wrench,

    minimise   w_b sum_j |G p_j + k t_j|^2 / k^2  +  w_c sum_f (d_f - d*)^2  +  w_p sum_s max(0, m_s - d_s)^2  +  w_s self-collision

    where      p_j = argmin of the quadratic program of `diffopt.training.wrench`, held fixed: the gradient flows through G alone.

The sums run over the contacts in use (all four fingers, or thumb and two), and over spheres s that cover the hand: those of fingertips
may touch (m = 0), all others keep a margin. d* is 1 cm for the first part, so that the hand finds its place with the fingers open,
and then 0. Steps are Adam's on the wrist's tangent space and the joints; joints are clipped to their limits. The scheme is that of
BODex (Chen et al. 2024, arXiv 2412.16490); what differs is the squeeze. With p_0 the forces that balance among themselves (zero
wrench), scaled to a chosen force F at the thumb, the position servos of gain K press with exactly these forces when

    squeeze = J(q)^T f / K,       pregrasp = q - squeeze,       target = q + squeeze,

one wrist pose for all three: the hand opens against the forces with which it will hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffopt.plans import Grasp
from diffopt.scenes.solids import Solid
from diffopt.training import wrench
from diffopt.training.hand import Hand

OPEN = (0.0, 0.5, 0.6, 0.5) * 3 + (1.3, 0.3, 0.3, 0.3)  # [rad] joints at the start
GRIP_CENTER = (0.085, 0.005, 0.03)  # [m, palm frame] between the open fingertips and the thumb


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Numbers of the method; lengths in metres. Hashable, static under `jit`."""

    iterations: int = 400
    open_share: float = 0.6  # of the iterations, with the fingertips `opening` away
    opening: float = 0.01
    wrench_scale: float = 0.2  # k
    friction: float = 0.1  # mu of the lower level, far below the real one: a margin
    lower_iterations: int = 4  # of the lower level per step of the upper, warm-started
    final_iterations: int = 200
    balance_weight: float = 2.0
    contact_weight: float = 5.0  # per cm^2; ten times that at the end
    penetration_weight: float = 20.0
    self_weight: float = 20.0
    margin: float = 0.004
    learning_rate: float = 0.02  # [rad]; positions move by a tenth of it [m]
    force: float = 5.0  # F at the thumb [N]
    three_finger_share: float = 0.25
    candidates: int = 8  # starts looked at for each one kept


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Wrist pose in the object frame, joints, and the lower level's forces (the warm start)."""

    position: Float[Array, "3"]
    rotation: Float[Array, "3 3"]
    joints: Float[Array, "J"]
    forces: Float[Array, "W F 8"]


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
      active: which fingers are in use.
    """

    grasp: Grasp
    contact: Float[Array, ""]
    penetration: Float[Array, ""]
    pregrasp_clearance: Float[Array, ""]
    self_penetration: Float[Array, ""]
    balance: Float[Array, ""]
    active: Float[Array, "F"]


def wrenches(scale: float) -> Float[np.ndarray, "7 6"]:
    """External wrenches k t: unit forces along the axes, and none."""
    forces = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    return (scale * np.concatenate([forces, np.zeros((7, 3))], axis=1)).astype(np.float32)


def synthesise(
    hand: Hand, solid: Solid, surface: Float[Array, "N 3"], normals: Float[Array, "N 3"], key, config: SynthesisConfig, quadric: bool
) -> Synthesis:
    """One grasp of one object; `vmap` it over objects and keys.

    Args:
      surface, normals: points of the object's surface [m] and outward normals, from which starts are drawn.
      quadric: whether the solid is a superquadric (static: the two kinds of geometry are traced apart).
    """
    distance = solid.superquadric.distance if quadric else lambda p: jnp.min(solid.parts.distance(p))
    k_start, k_mode = jax.random.split(key)
    three = jax.random.uniform(k_mode) < config.three_finger_share
    active = jnp.where(three, jnp.array([1.0, 1.0, 0.0, 1.0]), jnp.ones(4))
    state = initial(hand, distance, surface, normals, k_start, config)
    external = jnp.asarray(wrenches(config.wrench_scale))

    def energy(delta, state: State, target, contact_weight):
        R = state.rotation @ _exp(delta[3:6])
        x = state.position + delta[:3]
        frames = hand.kinematics.fk(state.joints + delta[6:])
        c, d, n = contacts(hand, frames, R, x, distance)
        G = wrench.grasp_map(c, n, solid.center, solid.radius, config.friction)
        p = wrench.balance(jax.lax.stop_gradient(G), external, active, state.forces, config.lower_iterations)
        p = jax.lax.stop_gradient(p)
        loss = config.balance_weight * jnp.sum(wrench.residual(G, p, external)) / config.wrench_scale**2
        loss += contact_weight * jnp.sum(active * ((d - target) * 100) ** 2)
        loss += config.penetration_weight * jnp.sum((_penetration(hand, frames, R, x, distance, active, config.margin) * 100) ** 2)
        loss += config.self_weight * jnp.sum((self_penetration(hand, frames, 0.002) * 100) ** 2)
        return loss, p

    scale = jnp.concatenate([jnp.full(3, 0.1), jnp.ones(3), jnp.ones(len(hand.lower))])

    def step(carry, i):
        state, first, second = carry
        share = i / config.iterations
        closing = share > config.open_share
        target = jnp.where(closing, 0.0, config.opening)
        weight = config.contact_weight * jnp.where(closing, 10.0, 1.0)
        zero = jnp.zeros(6 + len(hand.lower))
        gradient, p = jax.grad(energy, has_aux=True)(zero, state, target, weight)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0) * scale
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        rate = config.learning_rate * jnp.minimum(1.0, 4.0 * (1.02 - share) ** 2)
        correction = (1 - 0.9 ** (i + 1)) / jnp.sqrt(1 - 0.98 ** (i + 1))
        delta = -rate / correction * first / (jnp.sqrt(second) + 1e-6) * scale
        joints = jnp.clip(state.joints + delta[6:], hand.lower, hand.upper)
        state = State(position=state.position + delta[:3], rotation=state.rotation @ _exp(delta[3:6]), joints=joints, forces=p)
        return (state, first, second), None

    zero = jnp.zeros(6 + len(hand.lower))
    (state, _, _), _ = jax.lax.scan(step, (state, zero, zero), jnp.arange(config.iterations, dtype=jnp.float32))
    return finish(hand, solid, distance, state, active, config)


def initial(hand: Hand, distance, surface, normals, key, config: SynthesisConfig) -> State:
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
        x = surface[i] - depth * normals[i] - R @ jnp.asarray(GRIP_CENTER)
        joints = jnp.asarray(OPEN) + 0.1 * jax.random.normal(k_joints, (len(OPEN),))
        return R, x, jnp.clip(joints, hand.lower, hand.upper)

    def badness(R, x, joints):
        frames = hand.kinematics.fk(joints)
        deep = _penetration(hand, frames, R, x, distance, jnp.zeros(4), 0.0)
        _, d, _ = contacts(hand, frames, R, x, distance)
        return jnp.sum((deep * 100) ** 2) + 0.3 * jnp.sum((jnp.maximum(d, 0) * 100) ** 2)

    R, x, joints = jax.vmap(draw)(jax.random.split(key, config.candidates))
    best = jnp.argmin(jax.vmap(badness)(R, x, joints))
    forces = jnp.full((7, 4, wrench.EDGES), 0.1)
    return State(position=x[best], rotation=R[best], joints=joints[best], forces=forces)


def contacts(hand: Hand, frames, R, x, distance) -> tuple[Float[Array, "F 3"], Float[Array, "F"], Float[Array, "F 3"]]:
    """Contact of every fingertip in the object's frame: place on the surface [m], distance [m], unit normal into the object."""
    samples = hand.tip_samples(frames, 4)
    samples = _turn(R, samples) + x
    d = jax.vmap(jax.vmap(distance))(samples)
    weight = jax.nn.softmax(-jax.lax.stop_gradient(d) / 0.001, axis=-1)
    core = jnp.sum(weight[..., None] * samples, axis=1)
    value, outward = jax.vmap(jax.value_and_grad(distance))(core)
    outward = outward / (jnp.linalg.norm(outward, axis=-1, keepdims=True) + 1e-9)
    radius = np.array([tip[3] for tip in hand.tips], np.float32)
    return core - value[:, None] * outward, value - radius, -outward


def _penetration(hand: Hand, frames, R, x, distance, active, margin) -> Float[Array, "S"]:
    """By how much every sphere is nearer to the object than allowed [m]; fingertips in use may touch, distal links too."""
    centers, allowed = [], []
    tip_of = {tip[0]: f for f, tip in enumerate(hand.tips)}
    for (body, local, radius), points in zip(hand.spheres, hand.sphere_centers(frames)):
        centers.append(points)
        keep = jnp.where(active[tip_of[body]] > 0, 0.0, margin) if body in tip_of else jnp.asarray(margin)
        allowed.append(jnp.broadcast_to(radius + keep, (len(local),)))
    points = _turn(R, jnp.concatenate(centers)) + x
    return jnp.maximum(jnp.concatenate(allowed) - jax.vmap(distance)(points), 0.0)


def self_penetration(hand: Hand, frames, margin: float) -> Float[Array, "P"]:
    """By how much spheres of different fingers, and of fingers and palm, are too near to each other [m]."""
    groups = []
    for bodies in hand.groups:
        inside = [(points, radius) for (b, _, radius), points in zip(hand.spheres, hand.sphere_centers(frames)) if b in bodies]
        centers = jnp.concatenate([points for points, _ in inside])
        radii = np.concatenate([np.full(len(points), radius, np.float32) for points, radius in inside])
        groups.append((centers, radii))
    fingers, palm = groups[:-1], groups[-1]
    pairs = [(fingers[i], fingers[i + 1]) for i in range(len(fingers) - 2)]
    pairs += [(fingers[-1], finger) for finger in fingers[:-1]]
    far = [(c[5:], r[5:]) for c, r in fingers]  # from the medial link on: the others are excluded by the model
    pairs += [(finger, palm) for finger in far]
    out = []
    for (a, ra), (b, rb) in pairs:
        squared = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        out.append(jnp.maximum(ra[:, None] + rb[None] + margin - jnp.sqrt(squared + 1e-9), 0).ravel())
    return jnp.concatenate(out)


def finish(hand: Hand, solid: Solid, distance, state: State, active, config: SynthesisConfig) -> Synthesis:
    """The triplet of an optimised state, and its static figures."""
    R, x = state.rotation, state.position
    frames = hand.kinematics.fk(state.joints)
    c, d, n = contacts(hand, frames, R, x, distance)
    G = wrench.grasp_map(c, n, solid.center, solid.radius, config.friction)
    external = jnp.asarray(wrenches(config.wrench_scale))
    p = wrench.balance(G, external, active, state.forces, config.final_iterations)
    balance = jnp.sqrt(jnp.max(wrench.residual(G, p, external))) / config.wrench_scale
    edges = G[:3].reshape(3, 4, wrench.EDGES)
    forces = jnp.einsum("cfe,fe->fc", edges, p[-1])
    forces = forces * config.force / (jnp.sum(p[-1, -1]) + 1e-6)  # object frame [N]
    squeeze = _torques(hand, state.joints, _turn(R.T, c - x), _turn(R.T, forces)) / hand.gain
    open_frames = hand.kinematics.fk(jnp.clip(state.joints - squeeze, hand.lower, hand.upper))
    none = jnp.zeros(4)
    return Synthesis(
        grasp=Grasp(position=x, rotation=R, joints=state.joints, squeeze=squeeze),
        contact=jnp.max(jnp.abs(d) * active),
        penetration=jnp.max(_penetration(hand, frames, R, x, distance, none, 0.0)),
        pregrasp_clearance=-jnp.max(_signed(hand, open_frames, R, x, distance)),
        self_penetration=jnp.max(self_penetration(hand, frames, 0.0)),
        balance=balance,
        active=active,
    )


def _signed(hand: Hand, frames, R, x, distance) -> Float[Array, "S"]:
    """Penetration of every sphere [m], negative when clear."""
    radii = jnp.asarray(np.concatenate([np.full(len(local), radius, np.float32) for _, local, radius in hand.spheres]))
    return radii - jax.vmap(distance)(_turn(R, jnp.concatenate(hand.sphere_centers(frames))) + x)


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
