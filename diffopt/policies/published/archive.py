"""PyTorch's checkpoint files without PyTorch, and without running what is pickled in them.

A checkpoint is a zip archive: data.pkl, a pickle of the structure, and data/<key>, the bytes of each storage. A pickle is a program,
and can call any function that it names. Here a name can only stand for

- what rebuilds tensors, in an implementation of our own that checks sizes and makes NumPy arrays,
- ordered and default dictionaries, and bytes,
- an inert `Record` in place of the configuration classes of omegaconf and the type names of typing and dill, which keeps its arguments.

Nothing is ever imported by name; any other name is refused. Pickles within the pickle stay bytes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_INERT = {
    "typing": {"Any"},
    "dill._dill": {"_load_type"},
    "dill.dill": {"_load_type"},
    "builtins": {"dict", "list", "tuple", "set", "str", "int", "float", "bool", "bytes"},
    "__builtin__": {"dict", "list", "tuple", "set", "str", "unicode", "int", "long", "float", "bool"},
}


class UnsafePickleError(ValueError):
    """A pickle names something that is not needed to read tensors."""


class Record:
    """Stands for an object whose class is not run: what it was made from, and its state."""

    name = ""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __new__(cls, *arguments: Any):
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Function:
    """A callable that a pickle cannot change."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __init__(self, call):
        object.__setattr__(self, "call", call)

    def __call__(self, *arguments):
        return self.call(*arguments)

    def __setattr__(self, name, value):
        raise UnsafePickleError(f"the pickle tries to set {name!r} on a function")

    def __setstate__(self, state):
        raise UnsafePickleError("the pickle tries to change a function")


class _Storage:
    """A dtype, under the name of PyTorch's storage class."""

    __slots__ = ("dtype",)
    dtype: np.dtype

    def __init__(self, dtype):
        object.__setattr__(self, "dtype", np.dtype(dtype))

    def __setattr__(self, name, value):
        raise UnsafePickleError(f"the pickle tries to set {name!r} on a type")

    def __setstate__(self, state):
        raise UnsafePickleError("the pickle tries to change a type")


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """The array of a view into a storage; a ValueError if it reaches outside it."""
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, np.ndarray)
        or not all(isinstance(i, int) and i >= 0 for i in numbers)
        or len(size) != len(stride)
    ):
        raise ValueError(f"a tensor of size {size}, stride {stride} and offset {offset} makes no sense")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.shape[0]:
        raise ValueError(f"a tensor of size {size} reaches element {last} of a storage of {storage.shape[0]}")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()


def _bytes(text: str, encoding: str) -> bytes:
    """How old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r} text")
    return text.encode("latin1")


def _default(*_: Any) -> defaultdict:
    return defaultdict()


_CALLS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): lambda size=(): tuple(size),
    ("collections", "defaultdict"): _default,
    ("_codecs", "encode"): _bytes,
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root, self._read = archive, root, {}
        order = f"{root}byteorder"
        self._order = archive.read(order).decode() if order in archive.namelist() else "little"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in _CALLS:
            return _Function(_CALLS[module, name])
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        if module.split(".")[0] == "omegaconf" or name in _INERT.get(module, ()):
            return type("Record", (Record,), {"name": f"{module}.{name}"})
        raise UnsafePickleError(
            f"the checkpoint's pickle names {module}.{name}, which is not needed to read tensors; it was not run, and nothing was read"
        )

    def persistent_load(self, identity: Any) -> np.ndarray:
        if not (
            isinstance(identity, tuple)
            and len(identity) >= 5
            and identity[0] == "storage"
            and isinstance(identity[1], _Storage)
        ):
            raise UnsafePickleError(
                f"the checkpoint refers to {str(identity)[:80]!r}, which is no storage of a known type"
            )
        _, storage, key, _, count = identity[:5]
        if key not in self._read:
            dtype = storage.dtype.newbyteorder(">") if self._order == "big" else storage.dtype
            self._read[key] = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype).astype(storage.dtype)
        if self._read[key].shape[0] < count:
            raise ValueError(f"storage {key} holds {self._read[key].shape[0]} of {count} elements")
        return self._read[key]


def read_archive(path: str | Path) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, tensors as arrays, and `Record`s.

    Raises:
      UnsafePickleError: if the pickle names anything else.
      ValueError: if the file is not an archive of this kind.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip archive; checkpoints of PyTorch before 1.6 are not supported")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(roots) != 1:
            raise ValueError(f"{path} holds {len(roots)} files named data.pkl; a checkpoint has one")
        try:
            return _Reader(archive, roots[0]).load()
        except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise ValueError(f"{path}: the pickle or its storages cannot be read: {error}") from error


def plain(node: Any) -> Any:
    """A configuration of `Record`s of omegaconf as dictionaries, lists and scalars, for json; interpolations stay as they are written."""
    if isinstance(node, Record):
        state = node.state if isinstance(node.state, dict) else {}
        if "_content" in state:
            return plain(state["_content"])
        return plain(state["_val"]) if "_val" in state else None
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node if isinstance(node, (str, int, float, bool)) or node is None else str(node)
