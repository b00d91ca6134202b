"""What a monitor is worth: episodes of a controller on an arm in which something happens that no plan foresaw, with and without it.

Disturbances, at times and in directions that the seed gives, the same with and without a monitor:

    none        nothing
    displaced   as the tool comes near to the object, this is moved aside
    snatched    when the object has been lifted, it is put back to some other place on the table
    pushed      a force on the tool for 0.3 s that is more than its servos can hold
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import mujoco
import numpy as np
from jaxtyping import Float

from diffopt.constraints import ConstraintSet, SceneCollision
from diffopt.controller import Controller
from diffopt.geometry import Pose
from diffopt.monitor import Monitor
from diffopt.tasks.gripper import TOOL
from diffopt.tasks.workcell import Episode, Unreachable, Workcell, observation

MOMENTS = 2
NEAR = (0.07, 0.11)  # distance of the fingertips' point above the object at which it is displaced [m]
ASIDE = (0.05, 0.08)  # how far [m]
LIFTED = 0.05  # height at which it is snatched [m]
FORCE = (170.0, 240.0)  # [N]; the Panda's servos hold about 170 N at the tool
LASTING = 3  # periods that the force lasts


@dataclass(frozen=True, kw_only=True)
class DisturbedRun:
    """How one episode went.

    Attributes:
      seed: of its placements and of the disturbance. success: whether the task was solved. time: at its end [s].
      struck: when the disturbance came [s]; negative: it never did.
      rewound: how often the controller went back. alarms: what the monitor said, and when.
      hits: periods with contact between the robot and what stands fast.
      chunks: by source.
    """

    seed: int
    success: bool
    time: float = 0.0
    struck: float = -1.0
    rewound: int = 0
    alarms: tuple[str, ...] = ()
    hits: int = 0
    chunks: dict[str, int] = field(default_factory=dict)


class Disturbance:
    """Strikes once per episode; called before every period with the episode, says whether it struck now."""

    def __init__(self, kind: str, seed: int, body: str, region: tuple[float, float, float, float]) -> None:
        """
        Args:
          kind: see the module's docstring. body: the object, with a free joint of the same name.
          region: where it may be put: lowest x, highest x, lowest y, highest y [m].
        Raises:
          ValueError: there is no such kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no disturbance {kind!r}; there are: {', '.join(KINDS)}")
        self.body, self.region = body, np.array(region).reshape(2, 2).T
        self._rng, self._strike = np.random.default_rng([seed, 3]), KINDS[kind]
        self.when = self._rng.uniform()
        self.struck, self._force, self._left, self._lowest = -1.0, np.zeros(3), 0, np.inf

    def __call__(self, episode: Episode) -> None:
        if self.struck < 0 and self._strike(self, episode):
            self.struck = round(episode.time, 2)
        episode.data.body(TOOL).xfrc_applied[:3] = self._force * (self._left > 0)
        self._left -= 1

    def displaced(self, episode: Episode) -> bool:
        place = episode.data.body(self.body).xpos
        away = np.linalg.norm(episode.tool.position + 0.1 * episode.tool.rotation[:, 2] - place)
        if away > NEAR[0] + self.when * (NEAR[1] - NEAR[0]):
            return False
        angle, far = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(*ASIDE)
        self._put(episode, place[:2] + far * np.array([np.cos(angle), np.sin(angle)]), place[2])
        return True

    def snatched(self, episode: Episode) -> bool:
        height = float(episode.data.joint(self.body).qpos[2])
        self._lowest = min(self._lowest, height)
        if height - self._lowest < LIFTED * (1 + self.when):
            return False
        self._put(episode, self._rng.uniform(*self.region), self._lowest)
        return True

    def pushed(self, episode: Episode) -> bool:
        if episode.time < 0.5 + 3.0 * self.when:
            return False
        angle = self._rng.uniform(0, 2 * np.pi)
        self._force = self._rng.uniform(*FORCE) * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._left = LASTING
        return True

    def none(self, episode: Episode) -> bool:
        return False

    def _put(self, episode: Episode, place: Float[np.ndarray, "2"], height: float) -> None:
        joint = episode.data.joint(self.body)
        joint.qpos[:2], joint.qpos[2] = np.clip(place, self.region[0], self.region[1]), height
        joint.qvel[:] = 0.0
        mujoco.mj_forward(episode.cell.model, episode.data)


KINDS: dict[str, Callable[[Disturbance, Episode], bool]] = {
    "none": Disturbance.none,
    "displaced": Disturbance.displaced,
    "snatched": Disturbance.snatched,
    "pushed": Disturbance.pushed,
}


def run(
    cell: Workcell, controller: Controller, seed: int, disturbance: Disturbance, monitor: Monitor | None
) -> DisturbedRun:
    """One episode; without a monitor every chunk's first knots are executed whatever happens."""
    try:
        episode = cell.start(seed)
    except Unreachable:
        return DisturbedRun(seed=seed, success=False)
    controller = replace(controller, seed=seed, lag=cell.lag)
    memory, seen = controller.start(episode.joints), [episode.moment()] * MOMENTS
    alarms: list[str] = []
    sources: dict[str, int] = {}

    def send(joints: np.ndarray, hand: np.ndarray) -> None:
        disturbance(episode)
        episode.move_joints(joints, float(hand[0]))
        seen.append(episode.moment())

    def thing() -> Pose:
        body = episode.data.body(disturbance.body)
        return Pose(position=body.xpos.copy(), rotation=body.xmat.reshape(3, 3).copy())

    watch = monitor or Monitor()
    belief = watch.begin(episode.tool, thing())
    while not episode.over:
        around = ConstraintSet.of(SceneCollision(shapes=cell.task.obstacles(episode.data)))
        chunk, after = controller.plan(observation(seen[-MOMENTS:]), memory, around)
        sources[chunk.source] = sources.get(chunk.source, 0) + 1
        belief = watch.seen(belief, episode.tool, thing())
        for k in range(controller.execute):
            send(chunk.joints[k], chunk.hand[k])
            if episode.over:
                break
            belief, off = watch.look(belief, chunk.tool_at(k), chunk.hand[k], episode.tool, thing())
            if monitor is not None and off is not None:
                alarms.append(f"{episode.time:.1f} s: {off}")
                broken = controller.after(chunk, memory, k + 1)
                chunk, after = controller.rewind(broken, off, around)
                sources[chunk.source] = sources.get(chunk.source, 0) + 1
                for joints, hand in zip(chunk.joints, chunk.hand, strict=True):
                    if not episode.over:
                        send(joints, hand)
                belief = monitor.after(off, episode.tool, thing(), chunk.hand[-1])
                break
        memory = after
    return DisturbedRun(
        seed=seed,
        success=episode.success,
        time=round(episode.time, 2),
        struck=disturbance.struck,
        rewound=sources.get("rewind", 0),
        alarms=tuple(alarms),
        hits=episode.hits,
        chunks=sources,
    )
