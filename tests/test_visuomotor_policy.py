"""Visuomotor policies: training learns, what is saved is what is loaded, chunks come out in the world, and the loop closes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import diffopt
from diffopt.geometry import Pose
from diffopt.paths import ToolPath
from diffopt.policies import Normalizer, Observation, checkpoint
from diffopt.policies.visuomotor import ChunkDenoiser, VisuomotorNetwork
from diffopt.schedules import Cosine
from diffopt.tasks import visuomotor
from diffopt.tasks.gripper import downward
from diffopt.tasks.workcell import Workcell
from diffopt.training import demonstrations
from diffopt.training.demonstrations import Demonstrations, Noise
from diffopt.training.visuomotor import Stage, VisuomotorConfig, policy_of, train, windows

SMALL = VisuomotorConfig(
    horizon=4,
    network=dict(channels=4, points=4, width=16, features=8, widths=(8,), embedding=8),
    eyes=Stage(steps=80, batch=16, learning_rate=3e-3, warmup=10, ema=0.9),
    chunks=Stage(steps=120, batch=16, learning_rate=3e-3, warmup=10, ema=0.9),
    held_out=1,
)
SIZE = 16


def demonstrations_of_a_square(episodes: int = 6, length: int = 12) -> Demonstrations:
    """A white square lies somewhere, and the tool goes there: a quarter of the way left in every period."""
    rng = np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        place, tool = rng.uniform(-0.1, 0.1, 2), rng.uniform(-0.1, 0.1, 2)
        for _ in range(length):
            images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
            u, v = ((place + 0.1) / 0.2 * (SIZE - 5)).astype(int)
            images[0, v : v + 5, u : u + 5] = 255
            goal = tool + 0.25 * (place - tool)
            rows.append((images, [*tool, 0.2], [*goal, 0.2], [*place, 0.0], episode))
            tool = goal
    images, position, goal, landmark, episode = (np.array(column) for column in zip(*rows, strict=True))
    rotation = np.tile(downward(0.0), (len(rows), 1, 1))
    opening = np.full((len(rows), 1), 0.04)
    numbers = dict(position=position, rotation=rotation, joints=opening)
    goals = dict(goal_position=goal, goal_rotation=rotation, goal_joints=opening, landmarks=landmark[:, None])
    numbers = {k: v.astype(np.float32) for k, v in (numbers | goals).items()}
    return Demonstrations(images=images, episode=episode, seed=episode, **numbers)


TRANSFORMER = dict(transformer=dict(width=8, layers=1, heads=2, causal=False))


def untrained_policy(**more):
    data = demonstrations_of_a_square()
    _, _, state = windows(data, held_out=1)
    network = VisuomotorNetwork(dim=10, state=10, horizon=SMALL.horizon, **SMALL.network, **more, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(network)
    denoiser = ChunkDenoiser(weights=weights, graph=graph, horizon=SMALL.horizon, schedule=Cosine())
    features = Normalizer(mean=jnp.full(8, 0.1), scale=jnp.full(8, 0.3))
    return data, policy_of("square", denoiser, state, features, (2, *data.images.shape[1:]))


@pytest.fixture(scope="module")
def untrained():
    return untrained_policy()


def view_of(data: Demonstrations, i: int = 5) -> Observation:
    return Observation(
        images=data.images[i - 1 : i + 1],
        position=data.position[i - 1 : i + 1],
        rotation=data.rotation[i - 1 : i + 1],
        joints=data.joints[i - 1 : i + 1],
    )


@pytest.mark.slow
def test_training_learns_and_resumes(tmp_path):
    data, seen = demonstrations_of_a_square(), []

    def report(*row):
        seen.append(row[:3])
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, SMALL, tmp_path, report, name="square")
    policy, steps = train(data, SMALL, tmp_path, report, name="square")  # goes on from there
    assert (policy.name, steps) == ("square", 120)
    assert [row[:2] for row in seen] == [("eyes", 80), ("chunks", 100), ("chunks", 120)]  # nothing is done twice
    assert seen[0][2] < 1.0  # two mean squares of normalised numbers: the means alone achieve about 2
    assert seen[2][2] < 0.9  # the mean square of the target: 1 when nothing is learnt


def test_windows_end_with_their_episode():
    data = demonstrations_of_a_square(3)
    seen, aside, normalizer = windows(data, held_out=1)
    assert set(np.asarray(data.episode)[np.asarray(aside.start)]) == {2}
    chunk = np.asarray(normalizer.denormalize(seen.chunk(jnp.array([0, 10]), 4)))
    np.testing.assert_allclose(chunk[0, :, :3], data.goal_position[:4], atol=1e-5)
    np.testing.assert_allclose(chunk[1, :, :3], data.goal_position[[10, 11, 11, 11]], atol=1e-5)
    assert np.asarray(seen.moments(jnp.array([0, 12, 13]))).tolist() == [[0, 0], [12, 12], [12, 13]]


def test_chunks_are_tool_paths_in_the_world(untrained):
    data, policy = untrained
    result = diffopt.sample(policy.given(view_of(data)), n=3, key=0, sampler="ddim", levels=4, eta=0.0)
    assert isinstance(result.plans, ToolPath)
    assert result.plans.position.shape == (3, 4, 3) and result.plans.joints.shape == (3, 4, 1)
    R = np.asarray(result.plans.rotation)
    np.testing.assert_allclose(np.swapaxes(R, -1, -2) @ R, np.broadcast_to(np.eye(3), R.shape), atol=1e-5)
    z = policy.given(view_of(data)).encode(jax.tree.map(lambda x: x[0], result.plans))
    again = policy.given(view_of(data)).decode(z)
    np.testing.assert_allclose(again.position, result.plans.position[0], atol=1e-5)


@pytest.mark.parametrize("trunk", [{}, pytest.param(TRANSFORMER, marks=pytest.mark.slow)], ids=["unet", "transformer"])
def test_what_is_saved_is_what_is_loaded(trunk, tmp_path):
    data, policy = untrained_policy(**trunk)
    checkpoint.save(policy, tmp_path / "square", dict(data="a square"))
    loaded = diffopt.policies.load(tmp_path / "square.json")
    assert (loaded.name, loaded.spec, loaded.schedule, loaded.support) == (
        policy.name,
        policy.spec,
        policy.schedule,
        policy.support,
    )
    z = jax.random.normal(jax.random.key(0), (policy.spec.dim,))
    clean = jax.jit(lambda policy, view: policy.given(view).clean(z, jnp.asarray(0.5)))
    assert type(loaded.denoiser.network.trunk).__name__ == ("ChunkTransformer" if trunk else "ConditionalUnet1D")
    ours, theirs = clean(policy, view_of(data)), clean(loaded, view_of(data))
    np.testing.assert_allclose(ours, theirs, atol=2e-2)  # weights are kept in half precision
    assert float(jnp.abs(ours - clean(loaded, view_of(data, 30))).max()) > 1e-4


def test_other_observations_are_refused(untrained):
    data, policy = untrained
    with pytest.raises(TypeError, match="Observation"):
        policy.given(diffopt.geometry.Target(points=np.zeros((4, 3)), pose=Pose.identity()))
    with pytest.raises(ValueError, match=r"\(2, 2, 16, 16, 3\).*\(1, 2, 16, 16, 3\)"):
        policy.given(jax.tree.map(lambda x: x[1:], view_of(data)))


def test_demonstrations_are_kept_and_resumed(tmp_path):
    cell = Workcell(visuomotor.load("conveyor-catch"), size=16, render=False)
    reports = []
    for count in (1, 2):
        demonstrations.make_shards(tmp_path, cell, count, 1, Noise(), lambda *r: reports.append(r))
    data = demonstrations.load(tmp_path)
    assert [r[0] for r in reports] == [1, 2]
    assert data.episodes == 2 and len(np.unique(data.seed)) == 2
    assert (np.linalg.norm(np.diff(data.goal_position, axis=0), axis=1)[np.diff(data.episode) == 0] < 0.06).all()
    with pytest.raises(FileNotFoundError, match=r"experiments\.demonstrate"):
        demonstrations.load(tmp_path / "nothing")


def test_demonstrations_that_begin_astray_come_back():
    """From beside the block, and from above a point on the way to the bin, with nothing in the gripper."""
    cell, kinds = Workcell(visuomotor.load("pick-place"), render=False), set()
    for seed in range(1, 7):
        data = demonstrations.demonstrate(cell, seed, Noise(astray=1.0))
        assert data is not None
        block, bin = data.landmarks[0]
        tip, way = data.position[0] + 0.1 * data.rotation[0][:, 2], bin - block
        share = np.clip((tip - block)[:2] @ way[:2] / (way[:2] @ way[:2]), 0, 1)
        carried = bool((tip - block - share * way)[2] > 0.078)
        kinds.add(carried)
        assert np.linalg.norm((tip - block - carried * share * way)[:2]) < 0.08 and tip[2] < 0.3
        assert data.joints[0, 0] < 0.02 and data.goal_joints[0, 0] == pytest.approx(0.04)
    assert kinds == {True, False}


def test_cards_take_notes(untrained, tmp_path):
    _, policy = untrained
    checkpoint.save(policy, tmp_path / "square", dict(test=1))
    checkpoint.annotate(tmp_path / "square.json", dict(test=2, more=3))
    assert diffopt.policies.load(tmp_path / "square.json").name == policy.name
    assert json.loads((tmp_path / "square.json").read_text())["test"] == 2
    with pytest.raises(ValueError, match="policy"):
        checkpoint.annotate(tmp_path / "square.json", dict(policy={}))


def test_the_loop_closes():
    """A proposer that plays a demonstration back, chunk by chunk, succeeds; one that stands still does not."""
    from diffopt.evaluation.closed_loop import run

    cell = Workcell(visuomotor.load("pick-place"), render=False)
    clean = demonstrations.demonstrate(cell, 0, Noise(jitter=0.0, twist=0.0, push=0.0))
    assert clean is not None
    asked = []

    def play(views, marks):
        asked.append(views.position[:, -1])
        i = 4 * (len(asked) - 1) + np.arange(6)
        i = np.minimum(i, len(clean) - 1)
        goals = (clean.goal_position[i], clean.goal_rotation[i], clean.goal_joints[i])
        position, rotation, joints = (np.stack([g, g]) for g in goals)
        return ToolPath(position=position, rotation=rotation, joints=joints, dt=0.1)

    def stay(views, marks):
        position, rotation = (np.repeat(x[:, -1:], 6, axis=1) for x in (views.position, views.rotation))
        return ToolPath(position=position, rotation=rotation, joints=np.full((2, 6, 1), 0.04), dt=0.1)

    (done,) = run(cell, play, [0], execute=4, batch=2)
    assert done.success and done.replans == len(asked)
    short = Workcell(replace(visuomotor.load("pick-place"), time_limit=1.0), render=False)
    runs = run(short, stay, [0, 1, 2], execute=4, batch=2)
    assert [r.seed for r in runs] == [0, 1, 2]
    assert {r.reason for r in runs} == {"not in time"} and {r.replans for r in runs} == {3}
