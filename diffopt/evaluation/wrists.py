"""A prior of wrist poses whose density is known: the kernel density of demonstrated gripper poses around a cylinder.

The gripper closes across a standing cylinder of radius r and half length L, in the object's frame with z along its axis:

    c = (cos phi, sin phi, 0)             closing direction, phi uniform
    a = cos theta (z x c) + sin theta z   approach, theta uniform
    p = s z - 0.1 a                       origin of the gripper, its fingertips at height s, |s| <= 0.75 L

kept where the object ends within the fingers' length, and disturbed by a few millimetres and degrees. In normalised coordinates
(position 3, 6-d rotation 6; unit variance each) the prior is the mixture of a normal of standard deviation h around each of them, so that
the denoiser is exact (`policies.mixture`). h is about where the likelihood of poses held out is largest: it is 0.15 for 4096 poses.

A plan is "on the prior" if the density of the demonstrations there, with kernels of width h in units of `UNITS` for position and
rotation, is above that of 99 % of the prior's own draws. Plans and draws are taken as they are decoded, with a proper rotation; the units
are the same for all directions, since making a rotation proper carries the noise of one of its columns into the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffopt.geometry import Pose, rotation_from_6d, rotation_to_6d
from diffopt.plans import Grasp
from diffopt.policies import Policy, gaussian_mixture
from diffopt.policies.base import Context, Normalizer
from diffopt.scenes.solids import GraspObject, Part
from diffopt.schedules import Cosine, Schedule

RADIUS, HALF_LENGTH = 0.025, 0.08  # of the object [m]
PINCH, FINGER = (
    0.1,
    0.04,
)  # from the gripper's origin to its fingertips, and how deep an object fits between the fingers [m]
OPEN = 0.04  # position of a finger [m]
JITTER = (0.005, 0.05)  # of a demonstration [m, rad]
POSES, BANDWIDTH = 4096, 0.15
UNITS = np.array([0.065] * 3 + [0.577] * 6)  # of position [m] and rotation: what both vary by
OUTSIDE = 0.01  # share of the prior's own draws that do not count as its


def target() -> GraspObject:
    """The cylinder; it only stands."""
    part = Part(kind="cylinder", size=(RADIUS, HALF_LENGTH))
    return GraspObject(
        name="rod", family="cylinder", parts=(part,), mass=0.2, rests=((0.0, 0.0, -1.0),), axis_symmetric=True
    )


def demonstrations(count: int = POSES, seed: int = 0) -> Float[np.ndarray, "count 9"]:
    """Gripper poses in the object's frame: position [m] and the first two columns of the rotation."""
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count:
        phi, theta = rng.uniform(-np.pi, np.pi, (2, 4 * count))
        s = rng.uniform(-0.75, 0.75, 4 * count) * HALF_LENGTH
        up = np.array([0.0, 0.0, 1.0])
        c = np.stack([np.cos(phi), np.sin(phi), 0 * phi], axis=1)
        a = np.cos(theta)[:, None] * np.cross(up, c) + np.sin(theta)[:, None] * up
        # where a ray from the fingertips towards the palm leaves the object
        side = RADIUS / np.maximum(np.abs(np.cos(theta)), 1e-9)
        end = (HALF_LENGTH + np.sign(np.sin(theta)) * s) / np.maximum(np.abs(np.sin(theta)), 1e-9)
        R = np.stack([np.cross(c, a), c, a], axis=-1) @ _turn(JITTER[1] * rng.normal(size=(4 * count, 3)))
        p = s[:, None] * up - PINCH * a + JITTER[0] * rng.normal(size=(4 * count, 3))
        kept.append(np.concatenate([p, R[:, :, 0], R[:, :, 1]], axis=1)[np.minimum(side, end) <= FINGER])
    return np.concatenate(kept)[:count]


def _turn(v: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3 3"]:
    """Rotation matrices of rotation vectors [rad]."""
    angle = np.linalg.norm(v, axis=1)[:, None, None] + 1e-12
    x, y, z = (v / angle[:, 0]).T
    K = np.stack([np.stack([0 * x, -z, y], 1), np.stack([z, 0 * x, -x], 1), np.stack([-y, x, 0 * x], 1)], 1)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


@dataclass(frozen=True, kw_only=True)
class WristSpec:
    """Layout of a wrist pose as a vector: position (3) and 6-d rotation (6) in the object's frame. The fingers stay as they are.

    Attributes:
      fingers: their joints [rad, m].
      hold: what counts as one in `difference` for the place of the object in the hand [m], as for `GraspSpec`; 0 for the plain
        distance of the vectors.
    """

    fingers: tuple[float, ...] = (OPEN,)
    hold: float = field(default=0.0)

    plan_type = Grasp
    dim = 9

    def decode(self, vector: Float[Array, "9"], frame: Pose) -> Grasp:
        wrist = frame @ Pose(position=vector[:3], rotation=rotation_from_6d(vector[3:9]))
        fingers = jnp.asarray(self.fingers, vector.dtype)
        return Grasp(position=wrist.position, rotation=wrist.rotation, joints=fingers, squeeze=jnp.zeros_like(fingers))

    def encode(self, plan: Grasp, frame: Pose) -> Float[Array, "9"]:
        wrist = frame.inverse() @ plan.wrist
        return jnp.concatenate([wrist.position, rotation_to_6d(wrist.rotation)])

    def difference(
        self, vector: Float[Array, "9"], reference: Float[Array, "9"], scale: Float[Array, "9"]
    ) -> Float[Array, "9"]:
        plain = (vector - reference) / scale
        if not self.hold:
            return plain
        turn = rotation_from_6d(vector[3:9]) @ rotation_from_6d(reference[3:9]).T
        return jnp.concatenate([(vector[:3] - turn @ reference[:3]) / self.hold, plain[3:]])

    def rows(self, *fields: str) -> np.ndarray:
        return np.arange(9) if {"position", "rotation"} & set(fields) else np.arange(0)


def wrist_prior(
    *, count: int = POSES, bandwidth: float = BANDWIDTH, hold: float = 0.0, schedule: Schedule | None = None
) -> Policy:
    """The policy; bind it with `placed`."""
    poses = demonstrations(count)
    normalizer = Normalizer.fit(poses)
    means = np.asarray(normalizer.normalize(jnp.asarray(poses, jnp.float32)))
    made = gaussian_mixture(means, bandwidth, schedule=schedule or Cosine(), spec=WristSpec(hold=hold))
    return replace(made, normalizer=normalizer, name="wrist-poses")


def placed(policy: Policy, pose: Pose) -> Policy:
    """The policy for the object at T_world_object."""
    return replace(policy, context=Context(frame=pose))


def proper(policy: Policy, x: Any) -> Float[np.ndarray, "N 9"]:
    """Normalised vectors as they are decoded, their rotations orthonormal."""
    bound = replace(policy, context=Context())
    return np.asarray(jax.vmap(lambda v: bound.encode(bound.decode(v)))(jnp.asarray(x)))


@dataclass(frozen=True, kw_only=True)
class Support:
    """A log density by NumPy in double precision, and from where on a plan counts as one of the prior's; made by `Support.of`.

    Attributes:
      means: of the kernels, normalised.
      factor: of every normalised coordinate, for the kernels' width to be `bandwidth` in all directions.
      least: of the log density.
    """

    means: Float[np.ndarray, "C n"]
    factor: Float[np.ndarray, "n"]
    bandwidth: float
    least: float

    @staticmethod
    def of(policy: Policy, draws: int = 8192, units: Float[np.ndarray, "n"] | None = None) -> Support:
        """Of a policy that is a mixture with one width; `units` of the kernels in the plan's coordinates, default those of the policy."""
        mixture: Any = policy.denoiser
        factor = (
            np.ones(mixture.means.shape[1])
            if units is None
            else np.asarray(policy.normalizer.scale, np.float64) / units
        )
        free = Support(
            means=np.asarray(mixture.means, np.float64),
            factor=factor,
            bandwidth=float(mixture.scales[0, 0]),
            least=-np.inf,
        )
        x = proper(policy, mixture.sample(jax.random.key(4321), draws))
        return replace(free, least=float(np.quantile(free.log_density(x), OUTSIDE)))

    def log_density(self, x: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "N"]:
        """Of proper normalised vectors, up to a constant; -inf for what is not finite."""
        from scipy.spatial.distance import cdist
        from scipy.special import logsumexp

        square = cdist(np.asarray(x, np.float64) * self.factor, self.means * self.factor, "sqeuclidean")
        value = logsumexp(-0.5 * square / self.bandwidth**2, axis=1)
        return np.where(np.isfinite(value), value, -np.inf)

    def __call__(self, x: Float[np.ndarray, "N n"]) -> Bool[np.ndarray, "N"]:
        """Whether proper normalised vectors are on the prior."""
        return self.log_density(x) >= self.least
