"""Grasp data: shards of synthesised grasps that passed a protocol in physics.

A shard is one `.npz` file: the grasps of a few procedural objects that passed, and what is needed to make it again: seed, object
families, numbers of the method, versions. Every candidate is tried once, with noise on wrist and joints, and kept, without the noise,
if that noisy trial passes: a prior misses by a little, so it should learn from grasps that bear it.

A shard of repairs holds samples of a prior and, beside each, the grasp that synthesis makes of it when it goes on from there; those
within the static limits are kept (of 180 such, 96 % passed in physics, and 62 % of the samples that they repair).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from diffopt.plans import Grasp
from diffopt.scenes import objects
from diffopt.scenes.solids import GraspObject
from diffopt.training.hand import Hand, allegro
from diffopt.training.synthesis import Synthesis, SynthesisConfig, refine, synthesise

FORMAT = 2
_PRIMITIVE = tuple(f for f in objects.FAMILIES if f != "superquadric")


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How one shard is made.

    Attributes:
      targets, starts: number of objects, and of starts for each.
      balance, contact, penetration, clearance: static limits for a candidate to be tried in physics (residual, [m], [m], [m]).
      noise: standard deviations of the noise in the trial: wrist position [m], wrist rotation [rad], joints [rad], per axis.
      protocol: of `diffopt.physics.PROTOCOLS`.
      repair: iterations of synthesis that repair a prior's sample; 0 leaves the samples as they are and tries them in physics.
      repair_balance: limit of the residual for repairs, which are not tried.
    """

    targets: int = 32
    starts: int = 16
    balance: float = 0.3
    contact: float = 0.003
    penetration: float = 0.003
    clearance: float = -0.005
    noise: tuple[float, float, float] = (0.002, 0.03, 0.03)
    protocol: str = "dexgraspbench"
    repair: int = 0
    repair_balance: float = 0.4
    synthesis: SynthesisConfig = dataclasses.field(default_factory=SynthesisConfig)


def shard_objects(index: int, seed: int, targets: int) -> tuple[list[GraspObject], bool]:
    """The objects of shard `index`, and whether they are superquadrics (every fifth shard: the two geometries are traced apart)."""
    quadric = index % 5 == 4
    return objects.training(
        targets, seed=seed * 100_000 + index, families=("superquadric",) if quadric else _PRIMITIVE
    ), quadric


class Synthesiser:
    """Synthesis for batches of one size, compiled once per kind of geometry."""

    def __init__(self, hand: Hand, config: ShardConfig):
        self._hand, self._config, self._compiled = hand, config, {}

    def __call__(self, targets: Sequence[GraspObject], quadric: bool, key) -> Synthesis:
        """Grasps of all starts, flattened over (object, start), as NumPy arrays."""
        surface = [o.surface(256, seed=1) for o in targets]
        points, normals = (np.stack([s[i] for s in surface]).astype(np.float32) for i in range(2))
        arguments = (objects.stack(list(targets)), points, normals, jax.random.split(key, len(targets)))
        if quadric not in self._compiled:
            hand, config = self._hand, self._config

            def all_starts(solid, points, normals, key):
                keys = jax.random.split(key, config.starts)
                return jax.vmap(lambda k: synthesise(hand, solid, points, normals, k, config.synthesis, quadric))(keys)

            self._compiled[quadric] = jax.jit(jax.vmap(all_starts))
        out = self._compiled[quadric](*arguments)
        return jax.tree.map(lambda a: np.asarray(a).reshape((-1, *a.shape[2:])), out)


def candidates(found: Synthesis, config: ShardConfig, balance: float) -> np.ndarray:
    """Indices of the grasps that pass the static limits, with that on the residual given."""
    good = (found.balance < balance) & (found.contact < config.contact)
    good &= (found.penetration < config.penetration) & (found.self_penetration < config.penetration)
    good &= found.pregrasp_clearance > config.clearance
    return np.flatnonzero(good & np.isfinite(found.grasp.joints).all(-1))


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Candidates for a shard: grasps, the object's index of each, from how many starts they came, and what they repair, if they do."""

    grasps: Grasp
    which: np.ndarray
    starts: int
    sampled: Grasp | None = None


def take(tree, indices):
    """Rows of every array of a pytree."""
    return jax.tree.map(lambda a: np.asarray(a)[indices], tree)


def perturbed(grasp: Grasp, noise: tuple[float, float, float], rng: np.random.Generator) -> Grasp:
    """Grasps with Gaussian noise on wrist position [m], wrist rotation [rad] and joints [rad]."""
    from scipy.spatial.transform import Rotation

    n = len(grasp.position)
    turn = Rotation.from_rotvec(noise[1] * rng.normal(size=(n, 3))).as_matrix()
    return Grasp(
        position=grasp.position + noise[0] * rng.normal(size=(n, 3)),
        rotation=grasp.rotation @ turn,
        joints=grasp.joints + noise[2] * rng.normal(size=grasp.joints.shape),
        squeeze=grasp.squeeze,
    )


def make_shard(
    index: int,
    seed: int,
    config: ShardConfig,
    propose: Callable,
    folder: Path,
    versions: dict,
    threads: int | None = 1,
    source: str = "synthesis",
) -> dict:
    """Propose grasps for the objects of shard `index`, try them in physics, write those that pass; returns statistics.

    Repairs are written as they are.

    Args:
      propose: called with objects, whether they are superquadrics, and a key; returns a `Proposal`.
    """
    began = time.perf_counter()
    targets, quadric = shard_objects(index, seed, config.targets)
    proposal = propose(targets, quadric, jax.random.fold_in(jax.random.key(seed), index))
    proposed = time.perf_counter()
    if proposal.sampled is None:
        from diffopt.physics import load_engine
        from diffopt.tasks.floating_grasp import FloatingHand, evaluate

        noisy = perturbed(proposal.grasps, config.noise, np.random.default_rng([seed, index]))
        hand, engine = FloatingHand.load("allegro"), load_engine("c", threads=threads)
        outcome = evaluate(hand, targets, noisy, proposal.which, config.protocol, engine)
        passed, extra = np.flatnonzero(outcome.success), {}
    else:
        passed = np.arange(len(proposal.which))
        extra = {f"sampled_{name}": value for name, value in vars(proposal.sampled).items()}
    stats = dict(
        index=index,
        seed=seed,
        objects=len(targets),
        starts=proposal.starts,
        tried=len(proposal.which),
        passed=len(passed),
        proposal_s=round(proposed - began, 2),
        physics_s=round(time.perf_counter() - proposed, 2),
    )
    about = dict(
        format=FORMAT, source=source, **stats, config=dataclasses.asdict(config), quadric=quadric, versions=versions
    )
    temporary = folder / f".shard_{seed}_{index:05d}.tmp.npz"
    columns = vars(take(proposal.grasps, passed)) | extra
    np.savez(temporary, **columns, which=proposal.which[passed], about=json.dumps(about))
    temporary.rename(folder / f"shard_{seed}_{index:05d}.npz")
    return stats


def make_shards(
    folder: Path,
    count: int,
    seed: int,
    config: ShardConfig,
    versions: dict,
    report: Callable[[dict], None],
    threads: int | None = 1,
    policy: str | Path | None = None,
) -> None:
    """Write shards 0..count-1 of `seed` into `folder`; those already there are kept.

    With a `policy` (name or path of a card), candidates are its samples instead of synthesised grasps: those that pass teach the
    next prior what this one can hit. With `config.repair` too, they are repaired instead of tried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if policy is None:
        propose, source = from_synthesis(config), "synthesis"
    elif config.repair:
        propose, source = from_repair(policy, config), f"repaired samples of {Path(policy).stem}"
    else:
        propose, source = from_policy(policy, config), f"samples of {Path(policy).stem}"
    for index in range(count):
        if not (folder / f"shard_{seed}_{index:05d}.npz").exists():
            report(make_shard(index, seed, config, propose, folder, versions, threads, source))


def from_synthesis(config: ShardConfig) -> Callable:
    """Candidates by optimisation, as `make_shard` takes them."""
    run = Synthesiser(allegro(), config)

    def propose(targets, quadric, key) -> Proposal:
        found = run(targets, quadric, key)
        chosen = candidates(found, config, config.balance)
        return Proposal(grasps=take(found.grasp, chosen), which=chosen // config.starts, starts=len(found.balance))

    return propose


def from_policy(name: str | Path, config: ShardConfig) -> Callable:
    """Candidates by plain DDIM from a grasp prior, as `make_shard` takes them."""
    from diffopt.policies import checkpoint
    from diffopt.training.quality import sample_floating

    policy = checkpoint.load(name)

    def propose(targets, quadric, key) -> Proposal:
        grasps, which = sample_floating(policy, targets, config.starts, key)
        return Proposal(grasps=grasps, which=which, starts=len(which))

    return propose


def from_repair(name: str | Path, config: ShardConfig) -> Callable:
    """Samples of a grasp prior, repaired by synthesis, as `make_shard` takes them."""
    sample, hand = from_policy(name, config), allegro()

    @partial(jax.jit, static_argnames="quadric")
    def repair(solids, which, grasps, quadric):
        def one(i, grasp):
            solid = jax.tree.map(lambda a: a[i], solids)
            return refine(hand, solid, grasp, config.synthesis, quadric, config.repair)

        return jax.vmap(one)(which, grasps)

    def propose(targets, quadric, key) -> Proposal:
        drawn = sample(targets, quadric, key)
        found = jax.tree.map(np.asarray, repair(objects.stack(list(targets)), drawn.which, drawn.grasps, quadric))
        chosen = candidates(found, config, config.repair_balance)
        return Proposal(
            grasps=take(found.grasp, chosen),
            which=drawn.which[chosen],
            starts=drawn.starts,
            sampled=take(drawn.grasps, chosen),
        )

    return propose
