"""Tensors out of torch archives without running anything that they contain.

``torch.load(weights_only=True)`` refuses files that hold any object beside tensors and containers, and
``torch.jit.load`` runs the code of a TorchScript archive. Old training checkpoints and OpenAI's CLIP files are of these
kinds. The reader here interprets their pickle stream with an unpickler that can only build containers and tensors;
every other class or function named in the stream becomes an inert object that ignores all that is done to it.
"""

import io
import math
import pickle
import pickletools
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prompt_pretrain.errors import InputError, reason_of

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Standard-library names that training states are known to hold. Any other one in a weight file is suspicious.
_HARMLESS_MODULES = frozenset({"collections", "argparse", "copyreg", "_codecs", "datetime", "pathlib"})
_HARMLESS_BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "object"}
    | {"range", "set", "slice", "str", "tuple"}
)

_MAX_REPEATED = 1 << 28  # bytes of all tensors of a file beyond what it stores: some models keep expanded constants


class InertObject:
    """Stands for any object that is neither a container nor a tensor: accepts every operation, keeps its state only."""

    __slots__ = ("state",)

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *args: object, **kwargs: object) -> "InertObject":
        return InertObject()

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass

    def add(self, value: object) -> None:
        pass


def is_torchscript_archive(path: str | PathLike) -> bool:
    """Whether ``path`` is a zip archive as ``torch.jit.save`` writes it (OpenAI publishes CLIP so)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def read_torch_archive(path: str | PathLike, *, allow_suspicious: bool = False) -> Any:
    """The object in a torch zip archive, with everything but containers, numbers, strings and tensors inert.

    Args:
        path: file written by ``torch.save`` (PyTorch >= 1.6) or ``torch.jit.save``.
        allow_suspicious: make names such as ``os.system`` inert too, instead of refusing the file. Nothing is ever
            executed in either case.
    Raises:
        InputError: not such an archive, a damaged one, or one that names suspicious functions.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Reader(archive, path, allow_suspicious).load()
        check_unfolded(content, path)
        return content
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} is no torch file or is cut short ({reason_of(error)}); download or copy it again"
        ) from error
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged zip file or pickle raises almost anything
        raise InputError(f"{path} is damaged ({reason_of(error)}); download or copy it again") from error


def check_unfolded(content: Any, path: str | PathLike) -> None:
    """Refuse what is far larger than the file it was read from.

    Pickles may name a list twice within a list, and that one twice again; tensors may repeat one number as often as
    their shape says. Both are small until they are shown, copied or computed with.

    Raises:
        InputError: there are more things in it than the file has bytes, or a tensor that has no numbers of its own.
    """
    left, repeated = 10_000 + Path(path).stat().st_size, 0.0
    waiting = [content]
    while waiting:
        value = waiting.pop()
        left -= 1
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, InertObject):
            waiting.append(value.state)
        elif isinstance(value, Tensor):
            repeated += _bytes_without_storage(value)
            if repeated > _MAX_REPEATED:
                raise InputError(
                    f"{path} holds a tensor of shape {tuple(value.shape)} that is sparse or repeats its numbers; get "
                    "the file again, or save plain tensors"
                )
        if left < len(waiting):
            raise InputError(f"{path} unfolds to far more than it holds; get the file again, best as .safetensors")


def _bytes_without_storage(tensor: Tensor) -> float:
    """By how many bytes it is larger than what holds its numbers; infinite where nothing does."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or tensor.is_nested:
        return math.inf
    return max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())


def read_torchscript_state(path: str | PathLike) -> dict[str, Tensor]:
    """State dict (dotted names) of the module in a TorchScript archive; none of the archive's code runs."""
    state = dict(_named_tensors(read_torch_archive(path), ""))
    if not state:
        raise InputError(f"{path} is a TorchScript archive without parameters; expected the CLIP file of OpenAI")
    return state


def _named_tensors(value: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    members = value.state if isinstance(value, InertObject) else None
    if not isinstance(members, dict):
        return
    for name, member in members.items():
        if isinstance(member, Tensor):
            yield f"{prefix}{name}", member
        else:
            yield from _named_tensors(member, f"{prefix}{name}.")


class _Reader(pickle.Unpickler):
    """Only objects from :meth:`find_class` can be called by a pickle stream: containers, tensors or inert ones."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, allow_suspicious: bool) -> None:
        found = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise InputError(f"{path} is a zip file but not one of torch; expected one data.pkl inside")
        self._archive = archive
        self._path = path
        self._allow_suspicious = allow_suspicious
        self._folder = found[0].split("/")[0]
        self._storages: dict[str, Tensor] = {}
        self._unread = path.stat().st_size
        data = archive.read(self._entry("data.pkl"))
        _check_memo(data)
        super().__init__(io.BytesIO(data))

    def _entry(self, name: str) -> zipfile.ZipInfo:
        info = self._archive.getinfo(f"{self._folder}/{name}")
        if info.compress_type != zipfile.ZIP_STORED:  # torch never compresses; a few bytes could unfold to terabytes
            raise InputError(f"{self._path} holds compressed entries, which torch never writes; get the file again")
        return info

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        # Bound methods: a stream cannot set attributes on them, as it could on functions.
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return self._parameter
        if not self._allow_suspicious and _is_suspicious(module, name):
            raise InputError(
                f"{self._path} wants to call {module[:100]}.{name[:100]}, which weights never need: the file may be "
                "malicious. Nothing of it was run; get the file from its authors again, best as .safetensors"
            )
        return InertObject

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("unknown kind of reference")
        _, dtype, key = pid[:3]
        if key not in self._storages:
            entry = self._entry(f"data/{key}")
            self._unread -= entry.file_size
            if self._unread < 0:  # entries that share their bytes: a small file could fill the memory
                raise InputError(f"{self._path} promises more numbers than it holds; get the file again")
            data = bytearray(self._archive.read(entry))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *ignored: object) -> Tensor:
        return storage.as_strided(tuple(size), tuple(stride), offset)  # raises when it would leave the storage

    def _parameter(self, data: Tensor, *ignored: object) -> Tensor:
        return data


def _check_memo(data: bytes) -> None:
    """Refuse a stream that numbers an object higher than it has bytes.

    The unpickler takes memory for all numbers below, up to 64 GB for the six bytes of one instruction.
    """
    for opcode, number, position in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(number or 0) > len(data):
            raise pickle.UnpicklingError(f"object number {number} at byte {position} of {len(data)}")


def _is_suspicious(module: str, name: str) -> bool:
    # Protocol 2, which torch writes, spells Python 3's modules as in Python 2: "commands" for subprocess.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    if module == "builtins":
        return name not in _HARMLESS_BUILTINS
    package = module.split(".")[0]
    return package in sys.stdlib_module_names and package not in _HARMLESS_MODULES
