"""Task-to-joint lift: the plan is followed in joint space, level by level, under barriers there (row 19 of the catalogue).

    q <- q + clip(J^+ xi)                                             xi from the plan that q realises to the clean estimate
    q <- q + dq,  min 1/2 |dq|^2  s.t.  grad h(q) . dq >= gamma (d - h(q))      for every inequality, h = -row

EmbodiSteer (arXiv 2606.12965). J^+ is damped. The clean estimate is replaced by the plan that q realises, the noise estimate kept, so that
what comes out is reachable by construction. The step of joints is clipped; bounds are kept by clipping, too. Equalities other than those
that realise the plan are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array

from diffopt.constraints import ConstraintSet
from diffopt.process import ReverseProcess
from diffopt.samplers.base import Draw
from diffopt.samplers.guidance import Guide
from diffopt.samplers.halfspaces import nearest
from diffopt.samplers.registry import Card
from diffopt.samplers.walk import Stepped, finish, keeping_noise, plain_draw, tracks_at, walk


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TaskToJoint:
    """See the module's docstring.

    Attributes:
      strength: gamma.
      margin: d, in units of `softness`.
      longest: largest change of a joint in the lift [rad, or m].
      damping: of the pseudo-inverse.
      inner: lifts per level.
      softness: of the rows. tracks: of the joints. See `guidance`.
      terminal: solver steps of a terminal correction; the paper has none.
    """

    strength: float | Array = 1.0
    margin: float | Array = 0.0
    longest: float | Array = 0.3
    damping: float | Array = 0.05
    inner: int = field(default=2, metadata=dict(static=True))
    softness: float | Array = 10.0
    tracks: int = field(default=2, metadata=dict(static=True))
    terminal: int = field(default=0, metadata=dict(static=True))

    def __call__(self, process: ReverseProcess, constraints: ConstraintSet, key: Array, warm: None = None) -> Draw:
        if not constraints:
            return plain_draw(process, constraints, key)
        if not constraints.realised:
            raise ValueError(
                "sampler 'task_to_joint' lifts plans to joints and needs a constraint that realises a plan from them, such as Reach; "
                f"this set has: {', '.join(constraints.names)}"
            )
        policy = process.policy
        guide = Guide(policy=policy, constraints=constraints, softness=self.softness, tracks=self.tracks)
        bounds = constraints.bounds()

        def realised(clean, q):
            return policy.encode(constraints.realise(policy.decode(clean), q, policy.context))

        def within(q):
            return {name: jnp.clip(value, *bounds[name]) if name in bounds else value for name, value in q.items()}

        def lift(clean, q):
            flat, unravel = jax.flatten_util.ravel_pytree(q)

            def inequalities(f):
                return guide.signed(realised(clean, unravel(f)), unravel(f))[1]

            for _ in range(self.inner):
                J = jax.jacfwd(lambda f: realised(clean, unravel(f)))(flat)
                gap = clean - realised(clean, unravel(flat))
                step = jnp.linalg.solve(J.T @ J + self.damping**2 * jnp.eye(flat.size), J.T @ gap)
                flat = flat + jnp.clip(step, -self.longest, self.longest)
                rows = inequalities(flat)
                flat = flat + nearest(
                    jnp.zeros_like(flat), -jax.jacfwd(inequalities)(flat), self.strength * (rows + self.margin)
                )
                flat = jax.flatten_util.ravel_pytree(within(unravel(flat)))[0]
            return unravel(flat)

        def merit(clean, q):
            x = realised(clean, q)
            return jnp.sum((x - clean) ** 2) + 10 * guide.cost(x, q)

        def rule(x, tracks, level):
            k = level.k
            clean = process.clean(x, k)
            tracks = jax.vmap(lambda q: lift(clean, q))(tracks)
            best = jnp.argmin(jax.vmap(lambda q: merit(clean, q))(tracks))
            target = realised(clean, jax.tree.map(lambda leaf: leaf[best], tracks))
            ahead = keeping_noise(process, x, clean, target, k) + process.std[k] * level.noise
            return Stepped(ahead, process.mean(x, clean, k), tracks)

        walked = walk(process, key, rule, tracks_at(process, guide))
        return finish(process, guide, walked, walked.carry, evaluations=process.count, terminal=self.terminal)


CARD = Card(
    name="task_to_joint",
    build=TaskToJoint,
    row=19,
    paper="EmbodiSteer, arXiv 2606.12965",
    summary="the plan is followed in joint space, level by level, under barriers there",
    needs=("gradient", "joints"),
    strength=("strength", (0.1, 0.25, 0.5, 0.75, 1.0)),
)
