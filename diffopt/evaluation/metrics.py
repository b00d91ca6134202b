"""Static metrics of grasps, at the grasp pose, over all grasps whether they succeed or not.

Distances are MuJoCo's signed distances between the geoms of hand and object (`mj_geomDistance`), independent of any planner.

Quality Q1 (Ferrari and Canny 1992, L1): every contact may press with at most 1 N in total within its friction cone, linearised
to eight edges; the quality is the radius of the largest ball around the origin inside the convex hull of the resulting wrenches
[force, torque / length], `length` being the largest distance of the object's surface from its centre of mass. Zero without
force closure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from diffopt.physics.engine import Trial, reset

EDGES = 8


@dataclass(frozen=True, kw_only=True)
class GraspMetrics:
    """Metrics of N grasps; NaN where there is no plan.

    Attributes:
      penetration: deepest of the hand in the object [m]. self_penetration: of the hand in itself [m].
      contact_distance: mean over the fingers of the distance between finger and object, clipped at 1 cm [m].
      contacts: number of links within 2 mm of the object.
      quality: Q1, from the contacts within 2 mm.
    """

    penetration: Float[np.ndarray, "N"]
    self_penetration: Float[np.ndarray, "N"]
    contact_distance: Float[np.ndarray, "N"]
    contacts: Int[np.ndarray, "N"]
    quality: Float[np.ndarray, "N"]


def grasp_metrics(trials: Sequence[Trial], near: float = 0.002, clip: float = 0.01) -> GraspMetrics:
    """Metrics of the trials' grasp postures. `near` [m]: what counts as contact; `clip` [m]: of the contact distance."""
    rows = np.array([_one(t, near, clip) for t in trials], dtype=float).reshape(-1, 5)
    return GraspMetrics(
        penetration=rows[:, 0],
        self_penetration=rows[:, 1],
        contact_distance=rows[:, 2],
        contacts=np.nan_to_num(rows[:, 3]).astype(int),
        quality=rows[:, 4],
    )


def _one(trial: Trial, near: float, clip: float) -> list[float]:
    import mujoco

    if not trial.planned:
        return [np.nan] * 5
    model = trial.model
    data = mujoco.MjData(model)
    reset(trial, data, posture=trial.grasp)
    hand, target = model.body(trial.hand).id, model.body(trial.target).id
    own = model.body_rootid[model.geom_bodyid] == model.body_rootid[hand]
    links = np.flatnonzero(own & (model.geom_contype | model.geom_conaffinity).astype(bool))
    parts = np.flatnonzero(model.geom_bodyid == target)

    line, points, normals = np.zeros(6), [], []
    nearest: dict[int, float] = {}  # by body
    for link in links:
        body = int(model.geom_bodyid[link])
        for part in parts:
            distance = mujoco.mj_geomDistance(model, data, int(link), int(part), 0.1, line)
            if distance < nearest.get(body, np.inf):
                nearest[body] = distance
            if abs(distance) < near and np.linalg.norm(line[3:] - line[:3]) > 1e-9:
                inward = (line[3:] - line[:3]) * (1.0 if distance > 0 else -1.0)  # from the hand to the object
                points.append(0.5 * (line[:3] + line[3:]))
                normals.append(inward / np.linalg.norm(inward))
    fingers: dict[int, float] = {}  # by the finger's first body below the palm
    for body, distance in nearest.items():
        finger = _below(model, body, hand)
        if finger != hand:
            fingers[finger] = min(fingers.get(finger, np.inf), distance)
    self_depth = 0.0
    for contact in data.contact[: data.ncon]:
        if own[contact.geom].all():
            self_depth = max(self_depth, -float(contact.dist))
    friction = float(model.geom_friction[parts[0], 0])
    length = float(max(model.geom_rbound[p] + np.linalg.norm(data.geom_xpos[p] - data.xipos[target]) for p in parts))
    quality = epsilon_quality(np.array(points), np.array(normals), data.xipos[target], friction, length)
    return [
        max(0.0, -min(nearest.values())),
        self_depth,
        float(np.mean(np.clip(np.abs(list(fingers.values())), 0.0, clip))),
        sum(abs(d) < near for d in nearest.values()),
        quality,
    ]


def _below(model, body: int, hand: int) -> int:
    """The ancestor of `body` that hangs directly on `hand` (or `hand` itself)."""
    while body != hand and model.body_parentid[body] != hand:
        body = int(model.body_parentid[body])
    return body


def epsilon_quality(
    points: Float[np.ndarray, "C 3"],
    normals: Float[np.ndarray, "C 3"],
    centre: Float[np.ndarray, "3"],
    friction: float,
    length: float,
) -> float:
    """Q1 of contacts at `points` [m] with unit inward normals; 0 without force closure.

    Args:
      centre: about which torques are taken [m].
      length: by which torques are divided [m].
    """
    from scipy.spatial import ConvexHull, QhullError

    if len(points) < 2:
        return 0.0
    wrenches = [np.zeros(6)]
    for point, normal in zip(points, normals, strict=True):
        first = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
        first /= np.linalg.norm(first)
        second = np.cross(normal, first)
        for angle in 2.0 * np.pi * np.arange(EDGES) / EDGES:
            force = normal + friction * (np.cos(angle) * first + np.sin(angle) * second)
            force /= np.sqrt(1.0 + friction**2)
            wrenches.append(np.concatenate([force, np.cross(point - centre, force) / length]))
    try:
        hull = ConvexHull(np.array(wrenches))
    except QhullError:  # flat: the wrenches do not span all six directions
        return 0.0
    return max(0.0, float(-hull.equations[:, -1].max()))


def diversity(vectors: Float[np.ndarray, "N n"], k: int = 5) -> Float[np.ndarray, "k"]:
    """Share of the variance in the first 1..k principal components of plan vectors; the smaller, the more diverse.

    Args:
      vectors: plans as vectors in the object's frame, each column already in comparable units.
    """
    vectors = np.asarray(vectors, dtype=float)
    if len(vectors) < 2:
        raise ValueError(f"diversity needs at least two plans; given {len(vectors)}")
    variance = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    total = variance.sum()
    shares = np.cumsum(variance) / total if total > 0 else np.ones(len(variance))
    return np.pad(shares, (0, max(0, k - len(shares))), constant_values=1.0)[:k]
