"""What a control loop remembers from one chunk to the next: what was sent, and where there is a way back to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from diffopt.chunks import Chunk

TRAIL = 256  # commands that are kept


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one call of `Controller.plan` leaves to the next.

    Attributes:
      past: the last three commanded postures, dt apart, the latest last [rad].
      hand: last commanded joints of the hand.
      chunk: the last one, from its first knot that is not executed yet, its last knot repeated; None if there is none.
      calls: of the controller so far.
      trail, grips: commanded joints of arm and hand since the start, at most `TRAIL`, without what was gone back [rad], [rad or m].
      waypoints: the commands of the trail, counted from its first, from which a feasible chunk began.
      rewound: how often it was rewound since a chunk was executed whole.
      barren: how many plans, the last ones without a break, found nothing feasible.
    """

    past: Float[np.ndarray, "3 A"]
    hand: Float[np.ndarray, "J"]
    chunk: Chunk | None = None
    calls: int = 0
    trail: Float[np.ndarray, "N A"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    grips: Float[np.ndarray, "N J"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    waypoints: tuple[int, ...] = ()
    rewound: int = 0
    barren: int = 0


def advanced(memory: Memory, chunk: Chunk, executed: int, usual: int) -> Memory:
    """The memory after the first `executed` knots of a chunk have been sent, of which `usual` are."""
    past = np.concatenate([memory.past, chunk.joints[:executed]])[-3:]
    rest = np.concatenate([chunk.joints[executed:], np.repeat(chunk.joints[-1:], executed, axis=0)])
    grip = np.concatenate([chunk.hand[executed:], np.repeat(chunk.hand[-1:], executed, axis=0)])
    new = ((memory.trail, chunk.joints), (memory.grips, chunk.hand))
    trail, grips = (np.concatenate([before, rows[:executed]]) for before, rows in new)
    over = max(0, len(trail) - TRAIL)
    here = (len(memory.trail) - 1,) if chunk.source == "planned" else ()
    whole = chunk.source != "rewind" and executed >= usual
    return Memory(
        past=past,
        hand=chunk.hand[executed - 1] if executed else memory.hand,
        chunk=replace(chunk, joints=rest, hand=grip),
        calls=memory.calls + 1,
        trail=trail[over:],
        grips=grips[over:],
        waypoints=tuple(i - over for i in (*memory.waypoints, *here) if i >= over),
        rewound=0 if whole else memory.rewound,
        barren=0 if chunk.source == "planned" else memory.barren + (chunk.source != "rewind"),
    )


def waypoint(memory: Memory) -> int:
    """To which command of the trail the next way back leads: one waypoint more for every rewinding before it."""
    marks = [i for i in memory.waypoints if i < len(memory.trail) - 1]
    return marks[-1 - min(memory.rewound, len(marks) - 1)] if marks else 0


def gone_back(memory: Memory, after: Memory, goal: int | None) -> Memory:
    """The memory after a way back to command `goal` of the trail has been sent; None: after a stop in its place."""
    if goal is not None:
        before = tuple(i for i in memory.waypoints if i < goal)
        after = replace(after, trail=memory.trail[: goal + 1], grips=memory.grips[: goal + 1], waypoints=before)
    return replace(after, chunk=None, rewound=memory.rewound + 1, barren=memory.barren)


def way_back(commands: Float[np.ndarray, "n D"], slower: int) -> Float[np.ndarray, "m D"]:
    """The way back along commands of which the last has been sent, one knot a step at most, after one of rest if it is slower."""
    behind = commands[::-1]
    if len(behind) == 1:
        return behind
    at = np.arange(1, slower * (len(behind) - 1) + 1) / slower
    low = np.minimum(at.astype(int), len(behind) - 2)
    share = (at - low)[:, None]
    way = (1 - share) * behind[low] + share * behind[low + 1]
    return np.concatenate([behind[:1]] * (slower > 1) + [way]).astype(np.float32)
