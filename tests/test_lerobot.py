"""Published policies against what LeRobot 0.4.4 computed with the same files (`data/lerobot/make.py`), and how strictly they are read."""

import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import diffopt
from diffopt.constraints import ConstraintSet, from_residual
from diffopt.paths import JointPathSpec
from diffopt.plans import ActionChunk
from diffopt.policies import from_lerobot, gaussian_mixture
from diffopt.policies.published.denoiser import ddim
from diffopt.process import ReverseProcess

DATA = Path(__file__).parent / "data" / "lerobot"
PARITY = 1e-4


def make():
    """The module that made the data, for its formula of the weights."""
    spec = importlib.util.spec_from_file_location("make_lerobot", DATA / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Both committed policies, the weights of the one with images written out."""
    image = tmp_path_factory.mktemp("lerobot") / "image"
    shutil.copytree(DATA / "image", image)
    arrays = {}
    for key, shape in json.loads((DATA / "image" / "shapes.json").read_text()).items():
        if key.endswith("pos_grid"):  # the crop of 40 x 44 pixels ends in 2 x 2
            arrays[key] = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], np.float32)
        else:
            arrays[key] = make().weight(key, tuple(shape))
    save_file(arrays, image / "model.safetensors")
    return {"state": DATA / "state", "image": image}


def expectation(directory):
    expected = load_file(directory / "expected.safetensors")
    return expected, {
        key.removeprefix("in/"): value for key, value in expected.items() if key.startswith("in/observation")
    }


def check_parity(directory):
    """Everything that `expected.safetensors` holds; returns the largest error of each."""
    expected, observation = expectation(directory)
    policy = from_lerobot(directory).given(observation).bound()
    T = policy.schedule.steps
    steps = jnp.arange(1, T + 1) / T
    found = {"abar": policy.schedule.scales(steps)[0] ** 2, "condition": policy.context.condition}
    output = jax.jit(lambda denoiser, *args: denoiser.output(*args))
    noise = expected["in/noise"].reshape(-1)
    for key in expected:
        if key.startswith("unet/"):
            condition = jnp.asarray(expected["condition"])
            found[key] = output(policy.denoiser, noise, jnp.float32(key[5:]), condition).reshape(expected[key].shape)
    if "ddim" in expected:
        found["ddim"] = policy.decode(ddim(policy, noise, 10)).actions
    if "ddpm" in expected:
        controls = expected["in/draws"].reshape(T, -1)
        rollout = jax.jit(lambda process: process.rollout(noise, controls))
        found["ddpm"] = policy.decode(rollout(ReverseProcess.of(policy, count=T))).actions
    assert set(found) == {key for key in expected if not key.startswith("in/")}
    errors = {key: float(np.abs(value - expected[key]).max()) for key, value in found.items()}
    # A hundred unclipped steps of small linear betas: the step's deviation is a difference of near numbers in float32, here and there.
    limits = {key: 5 * PARITY if key == "ddpm" and policy.denoiser.clip is None else PARITY for key in errors}
    assert all(errors[key] < limits[key] for key in errors), errors
    return errors


@pytest.mark.parametrize("name", [pytest.param("state", marks=pytest.mark.slow), "image"])
def test_numbers_are_lerobots(name, directories):
    """Schedule, condition, network, DDIM with 10 steps, and DDPM with 100 under the same noise: our reverse process with eta = 1."""
    check_parity(directories[name])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["state", "image", "three", "cameras", "deep", "wide"])
def test_numbers_are_lerobots_today(variant, tmp_path):
    """Against LeRobot itself, where LEROBOT_PYTHON names an interpreter that has it (0.4.4; 8.5 GB with PyTorch)."""
    python = os.environ.get("LEROBOT_PYTHON")
    if python is None:
        pytest.skip("LEROBOT_PYTHON names no interpreter with lerobot")
    subprocess.run([python, DATA / "make.py", variant, tmp_path / variant], check=True, capture_output=True)
    print(variant, check_parity(tmp_path / variant))


def test_images_are_taken_in_both_layouts_and_as_bytes(directories):
    _, observation = expectation(directories["image"])
    policy = from_lerobot(directories["image"])
    (camera,) = (name for name in observation if "image" in name)
    pixels = np.round(255 * observation[camera]).astype(np.uint8)

    def condition(image):
        return policy.given(observation | {camera: image}).context.condition

    reference = condition(np.float32(pixels) / 255)
    np.testing.assert_allclose(condition(pixels), reference, atol=1e-5)
    np.testing.assert_allclose(condition(np.moveaxis(pixels, 1, -1)), reference, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"front has shape \(1, 3, 46, 52\); expected \(2, 3, 46, 52\) or \(2, 46, 52, 3\)"
    ):
        condition(pixels[:1])
    with pytest.raises(ValueError, match=r"lacks observation\.images\.front; it has observation\.state"):
        policy.given({"observation.state": observation["observation.state"]})


@pytest.mark.slow
def test_a_published_policy_is_sampled_under_constraints():
    """A bound on one action that plain samples break is kept, and the plan is the chunk in the units of the data."""
    _, observation = expectation(DATA / "state")
    policy = from_lerobot(DATA / "state").given(observation)
    assert policy.spec.executed == (1, 5)
    plain = diffopt.sample(policy, n=16, key=0, sampler="ddim", levels=10)
    actions = np.asarray(plain.plans.actions)
    assert actions.shape == (16, 8, 5)
    bound = float(np.median(actions[:, 4, 2]))
    low = ConstraintSet.of(
        from_residual(
            lambda plan, bound: plan.actions[4:5, 2] - bound, jnp.float32(bound), name="low", plan_type=ActionChunk
        )
    )
    result = diffopt.sample(policy, low, n=16, key=0, levels=10)
    assert result.feasible.all()
    assert (result.plans.actions[:, 4, 2] <= bound + 1e-3).all()


def test_ddim_refuses_what_is_not_published():
    policy = gaussian_mixture(np.zeros((1, 2), np.float32), 1.0)
    with pytest.raises(TypeError, match="GaussianMixture"):
        ddim(policy, jnp.zeros(2), 3)
    with pytest.raises(ValueError, match="trained on 100 steps"):
        ddim(from_lerobot(DATA / "state"), jnp.zeros(40), 101)


def altered(tmp_path, file="config.json", change=lambda content: None):
    """A copy of the committed policy with one json file changed."""
    copy = shutil.copytree(DATA / "state", tmp_path / "copy")
    content = json.loads((copy / file).read_text())
    change(content)
    (copy / file).write_text(json.dumps(content))
    return copy


def test_fields_of_the_config_are_not_guessed(tmp_path):
    def change(config):
        del config["kernel_size"], config["resize_shape"]  # the second is a later field, and may be absent
        config["attention_heads"] = 4

    with pytest.raises(ValueError, match="missing: kernel_size; unknown: attention_heads"):
        from_lerobot(altered(tmp_path, change=change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prediction_type="score"), "prediction_type is 'score'; supported: epsilon, sample, v_prediction"),
        (dict(down_dims=[16, 24, 32]), r"lacks 48 arrays: diffusion\.unet\.down_modules\.1\.2"),
        (dict(kernel_size=3), "which does not give"),
        (dict(type="act"), "type is 'act'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_lerobot(altered(tmp_path, change=lambda config: config.update(change)))


def test_unknown_weights_steps_and_files_are_refused(tmp_path):
    file = "policy_preprocessor.json"
    copy = altered(tmp_path, file, lambda p: p["steps"].append({"registry_name": "delta_processor", "config": {}}))
    with pytest.raises(ValueError, match="step 'delta_processor' is not supported"):
        from_lerobot(copy)
    content = json.loads((DATA / "state" / file).read_text())
    content["steps"][3]["state_file"] = "../state/elsewhere.safetensors"
    (copy / file).write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.safetensors"):
        from_lerobot(copy)
    shutil.copy(DATA / "state" / file, copy / file)
    save_file(
        load_file(copy / "model.safetensors") | {"diffusion.extra": np.zeros(2, np.float32)}, copy / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"1 arrays that the config does not account for: diffusion\.extra"):
        from_lerobot(copy)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_lerobot(tmp_path)


def test_the_normaliser_is_the_file_that_its_step_names(tmp_path):
    def change(processor):
        processor["steps"][3]["state_file"] = "any.safetensors"

    copy = altered(tmp_path, "policy_preprocessor.json", change)
    (copy / "policy_preprocessor_step_3_normalizer_processor.safetensors").rename(copy / "any.safetensors")
    expected, observation = expectation(copy)
    np.testing.assert_allclose(
        from_lerobot(copy).given(observation).context.condition, expected["condition"], atol=PARITY
    )


def test_older_checkpoints_hold_their_normalisers_among_the_weights(tmp_path):
    """As LeRobot wrote them before its processors: the same statistics under the names of that time give the same policy."""
    copy = shutil.copytree(DATA / "state", tmp_path / "copy")
    statistics = load_file(copy / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    for file in copy.glob("policy_p*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="normaliser's buffers"):
        from_lerobot(copy)
    buffers = {}
    for key, value in statistics.items():
        name, statistic = key.rsplit(".", 1)
        for owner in ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",):
            buffers[f"{owner}.buffer_{name.replace('.', '_')}.{statistic}"] = value
    save_file(load_file(copy / "model.safetensors") | buffers, copy / "model.safetensors")
    expected, observation = expectation(copy)
    policy, new = from_lerobot(copy).given(observation), from_lerobot(DATA / "state")
    np.testing.assert_allclose(policy.context.condition, expected["condition"], atol=PARITY)
    np.testing.assert_array_equal(policy.normalizer.scale, new.normalizer.scale)
    save_file(
        load_file(copy / "model.safetensors") | {"normalize_inputs.buffer_wind.min": np.zeros(1)},
        copy / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"buffer_wind\.min' belongs to no feature"):
        from_lerobot(copy)


def test_the_meaning_of_the_actions_can_be_given():
    """Of an arm with four joints and a gripper: the same numbers, under their names."""
    spec = JointPathSpec(arm_names=("a", "b", "c", "d"), joint_names=("gripper",), horizon=8, dt=0.1)
    _, observation = expectation(DATA / "state")
    plain, policy = (from_lerobot(DATA / "state", spec=spec).given(observation) for spec in (None, spec))
    z = jnp.linspace(-1, 1, 40)
    actions, path = plain.decode(z).actions, policy.decode(z)
    np.testing.assert_array_equal(path.arm, actions[:, :4])
    np.testing.assert_array_equal(path.joints, actions[:, 4:])
    np.testing.assert_allclose(policy.encode(path), z, atol=1e-5)
    np.testing.assert_allclose(plain.encode(plain.decode(z)), z, atol=1e-5)
    with pytest.raises(ValueError, match="8 x 5 numbers; JointPathSpec takes 10"):
        from_lerobot(DATA / "state", spec=replace(spec, horizon=2))
