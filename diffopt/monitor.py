"""Whether what happens is what was planned: the tool where its servos should have it, the object where it should be by now.

    monitor = diffopt.Monitor(holding=lambda hand: hand[0] < 0.02)
    belief = monitor.begin(tool, object)
    belief = monitor.seen(belief, tool, object)                # when a chunk has been planned
    ...                                                        # and after every period, with what was sent and what is measured
    belief, deviation = monitor.look(belief, chunk.tool_at(k), chunk.hand[k], tool, object)
    if deviation is not None:
            chunk, memory = controller.rewind(memory, deviation)
        ...                                                    # all of it is sent
        belief = monitor.after(deviation, tool, object, chunk.hand[-1])

A chunk predicts the tool at its knots. Of an object it is expected that it stays where it was seen, or goes the way that was foretold; and
that, once the hand has closed on it, it stays where it then is in the hand,

    T_world_object(t) = T_world_tool(t) T_tool_object,      T_tool_object = T_world_tool(c)^-1 T_world_object(c),

c a few periods after the command to close. The same while after the command to open nothing is expected, for it falls. The thresholds are
those that RIGVid reports (arXiv 2507.00990).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from diffopt.geometry import Pose


def never(hand: Float[np.ndarray, "J"]) -> bool:
    """Of a hand whose grasps are not followed."""
    return False


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """What is not where it was expected.

    Attributes:
      what: "tool" or "object". distance, angle: by how much [m], [rad].
      held: whether the object was expected in the hand.
    """

    what: Literal["tool", "object"]
    distance: float
    angle: float
    held: bool

    def __str__(self) -> str:
        place = " in the hand" if self.what == "object" and self.held else ""
        return f"{self.what}{place} off by {100 * self.distance:.1f} cm, {np.rad2deg(self.angle):.0f} degrees"


@dataclass(frozen=True, kw_only=True)
class Belief:
    """Where an object is thought to be.

    Attributes:
      tool, object: T_world_tool and T_world_object when that was last certain; None: nothing is expected of an object.
      held: whether the hand is told to hold it.
      wait: periods to go until anything is expected of it again.
    """

    tool: Pose
    object: Pose | None
    held: bool = False
    wait: int = 0


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """See the module's docstring.

    Attributes:
      position, angle: how far off is off [m], [rad].
      holding: whether the hand, at these told joints, holds what is in it.
      settle: periods after a command to close or to open in which nothing is expected of the object.
    """

    position: float = 0.03
    angle: float = float(np.deg2rad(20))
    holding: Callable[[Float[np.ndarray, "J"]], bool] = never
    settle: int = 4

    def begin(self, tool: Pose, object: Pose | None = None, hand: Float[np.ndarray, "J"] | None = None) -> Belief:
        """What is believed when the object (if it is tracked) has just been seen, T_world_tool and T_world_object measured."""
        return Belief(tool=tool, object=object, held=hand is not None and self.holding(hand))

    def seen(self, belief: Belief, tool: Pose, object: Pose | None) -> Belief:
        """What is believed when a chunk has been planned from what is seen: an object outside of the hand is expected where it is now."""
        return belief if belief.held else replace(belief, tool=tool, object=object)

    def after(self, deviation: Deviation, tool: Pose, object: Pose | None, hand: Float[np.ndarray, "J"]) -> Belief:
        """What is believed when the robot has gone back because of `deviation`, to these joints of the hand: of an object that was not
        where it should be nothing is expected before a chunk is planned anew or, if the hand is closed, before it opens."""
        return self.begin(tool, object if deviation.what == "tool" else None, hand)

    def look(
        self,
        belief: Belief,
        expected: Pose,
        hand: Float[np.ndarray, "J"],
        tool: Pose,
        object: Pose | None = None,
        foretold: Pose | None = None,
    ) -> tuple[Belief, Deviation | None]:
        """What is believed after a period, and what is off, if anything is.

        Args:
          expected: T_world_tool by the plan. hand: joints that the hand was told.
          tool, object: as measured; no object is tracked if None.
          foretold: where an object that moves by itself should be, unless it is held; default where it was.
        """
        distance, angle = gap(expected, tool)
        if distance > self.position or angle > self.angle:
            return belief, Deviation(what="tool", distance=distance, angle=angle, held=belief.held)
        held = self.holding(hand)
        if held != belief.held:
            return replace(belief, held=held, wait=self.settle), None
        if belief.wait > 0:
            return replace(belief, tool=tool, object=object, wait=belief.wait - 1), None
        if object is None or belief.object is None:
            return belief, None
        place = tool @ (belief.tool.inverse() @ belief.object) if held else foretold or belief.object
        distance, angle = gap(place, object)
        if distance > self.position or angle > self.angle:
            return belief, Deviation(what="object", distance=distance, angle=angle, held=held)
        return belief, None


def gap(a: Pose, b: Pose) -> tuple[float, float]:
    """Distance [m] and angle [rad] between two poses."""
    cosine = (np.trace(np.asarray(a.rotation).T @ np.asarray(b.rotation)) - 1) / 2
    distance = np.linalg.norm(np.asarray(a.position, float) - np.asarray(b.position, float))
    return float(distance), float(np.arccos(np.clip(cosine, -1, 1)))
