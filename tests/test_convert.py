"""The reader of PyTorch archives: tensors come out, nothing is run, whatever the pickle asks for."""

import io
import json
import os
import pickle
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from diffopt.policies.published.archive import UnsafePickleError, read_archive
from diffopt.policies.published.convert import convert
from diffopt.policies.published.weights import diffusion_policy_key, fill
from diffopt.policies.unet import ConditionalUnet1D


class Named:
    """Pickles as a call of `module.name`, the way a class or a function of that module would."""

    def __init__(self, module, name, *arguments):
        self.path, self.arguments = (module, name), arguments


class Pickler(pickle._Pickler):
    """Writes `Named` as GLOBAL and REDUCE, and (storage) tuples as persistent ids: what torch.save does, without torch."""

    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            self.write(pickle.GLOBAL + "\n".join([*value.path, ""]).encode())
            if value.arguments != (None,):
                super().save(value.arguments)
                self.write(pickle.REDUCE)
            return
        super().save(value, save_persistent_id)


def archive(path, payload, storages=()):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(payload)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", buffer.getvalue())
        for key, array in enumerate(storages):
            file.writestr(f"archive/data/{key}", array.tobytes())
    return path


def tensor(key, kind, count, size, stride, offset=0):
    storage = ("storage", Named("torch", kind, None), str(key), "cpu", count)
    return Named(
        "torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, False, Named("collections", "OrderedDict")
    )


NUMBERS = np.arange(12, dtype=np.float32)


def test_tensors_are_views_of_their_storages(tmp_path):
    payload = {
        "plain": tensor(0, "FloatStorage", 12, (3, 4), (4, 1)),
        "transposed": tensor(0, "FloatStorage", 12, (4, 2), (1, 4), 4),
        "scalar": tensor(1, "LongStorage", 1, (), ()),
        "half": tensor(2, "BFloat16Storage", 2, (2,), (1,)),
        "empty": tensor(0, "FloatStorage", 12, (0, 3), (3, 1)),
    }
    half = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    read = read_archive(archive(tmp_path / "a.ckpt", payload, (NUMBERS, np.array([7]), half)))
    np.testing.assert_array_equal(read["plain"], NUMBERS.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], NUMBERS.reshape(3, 4)[1:].T)
    assert read["scalar"] == 7 and read["scalar"].shape == ()
    np.testing.assert_array_equal(read["half"].astype(np.float32), [1.5, -2.0])
    assert read["empty"].shape == (0, 3)


@pytest.mark.parametrize(("size", "stride", "offset"), [((3, 4), (4, 1), 1), ((2,), (-1,), 5), ((2**40,), (1,), 0)])
def test_a_tensor_cannot_reach_outside_its_storage(size, stride, offset, tmp_path):
    path = archive(tmp_path / "a.ckpt", tensor(0, "FloatStorage", 12, size, stride, offset), (NUMBERS,))
    with pytest.raises(ValueError, match=r"reaches element|makes no sense"):
        read_archive(path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("dill._dill", "_create_function"),
        ("torch", "load"),
    ],
)
def test_other_names_are_refused_and_not_run(module, name, tmp_path):
    marker = tmp_path / "run"
    path = archive(tmp_path / "a.ckpt", {"state_dicts": {"model": Named(module, name, f"touch {marker}")}})
    with pytest.raises(UnsafePickleError, match=rf"names {module}\.{name}.*was not run"):
        convert(path, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_a_reduce_method_is_not_run(tmp_path):
    """The usual attack, written by the usual pickler."""

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Attack()))
    with pytest.raises(UnsafePickleError, match="system"):
        read_archive(tmp_path / "a.ckpt")
    assert not (tmp_path / "run").exists()


def test_what_may_be_named_cannot_be_changed(tmp_path):
    """BUILD with a state on the function that rebuilds tensors, and on a storage type."""
    for name in (("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage")):
        program = pickle.GLOBAL + "\n".join([*name, ""]).encode() + pickle.EMPTY_DICT + pickle.BUILD + pickle.STOP
        with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as file:
            file.writestr("archive/data.pkl", program)
        with pytest.raises(UnsafePickleError, match="tries to change"):
            read_archive(tmp_path / "a.ckpt")


def test_conversion_prefers_the_averaged_weights(tmp_path):
    weights = {
        name: {"net.weight": tensor(i, "FloatStorage", 12, (12,), (1,))}
        for i, name in enumerate(("model", "ema_model"))
    }
    config = {"horizon": 16, "shape": [2, 3], "policy": {"obs_dim": "${shape}", "clip": True, "name": None}}
    payload = {"cfg": OmegaConf.create(config), "state_dicts": weights, "pickles": {"epoch": pickle.dumps(os.getcwd)}}
    storages = (NUMBERS, NUMBERS + 100)
    card = convert(archive(tmp_path / "a.ckpt", payload, storages), tmp_path / "out")
    assert card == json.loads((tmp_path / "out" / "config.json").read_text())
    assert (card["weights"], card["config"]) == ("ema_model", config)
    np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["net.weight"], NUMBERS + 100)
    del weights["ema_model"]
    assert convert(archive(tmp_path / "a.ckpt", payload, storages), tmp_path / "out")["weights"] == "model"
    with pytest.raises(ValueError, match="no state_dicts with ema_model or model; it has: optimizer"):
        convert(archive(tmp_path / "a.ckpt", {"state_dicts": {"optimizer": {}}}), tmp_path / "out")
    with pytest.raises(ValueError, match="1 entries of model are no tensors: net"):
        convert(archive(tmp_path / "a.ckpt", {"state_dicts": {"model": {"net": 3}}}), tmp_path / "out")


def test_weights_of_the_original_project_find_their_places():
    """Names as its modules give them: two blocks in `blocks`, convolutions between the levels in `conv`."""
    network = nnx.eval_shape(
        lambda: ConditionalUnet1D(dim=2, condition=3, widths=(8, 16), groups=4, embedding=8, rngs=nnx.Rngs(0))
    )
    known = {
        "down_modules.1.0.blocks.0.block.0.weight": (16, 8, 5),
        "down_modules.1.0.blocks.1.block.1.bias": (16,),
        "down_modules.1.0.residual_conv.weight": (16, 8, 1),
        "down_modules.0.2.conv.weight": (8, 8, 3),
        "up_modules.0.0.blocks.0.block.0.weight": (8, 32, 5),
        "up_modules.0.2.conv.weight": (8, 8, 4),
        "mid_modules.1.cond_encoder.1.weight": (32, 11),
        "diffusion_step_encoder.3.weight": (8, 32),
        "final_conv.0.block.0.weight": (8, 8, 5),
        "final_conv.1.weight": (2, 8, 1),
    }
    leaves = jax.tree_util.tree_flatten_with_path(nnx.split(network)[1])[0]
    paths = [jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path, _ in leaves]
    shapes = dict(zip(map(diffusion_policy_key, paths), (leaf.shape for _, leaf in leaves), strict=True))
    for key, shape in known.items():
        assert sorted(shapes.pop(key)) == sorted(side for i, side in enumerate(shape) if not (i == 2 and side == 1))
    arrays = {f"model.{key}": np.zeros(shape, np.float32) for key, shape in known.items()}
    with pytest.raises(ValueError, match=f"a.ckpt lacks {len(shapes)} arrays: model"):
        fill(network, arrays, "model.", diffusion_policy_key, "a.ckpt")


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="no zip archive"):
        read_archive(tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as file:
        file.writestr("readme", "")
    with pytest.raises(ValueError, match=r"0 files named data\.pkl"):
        read_archive(tmp_path / "b.ckpt")
