"""Reading pickles of arrays, tensors and containers without running code from them."""

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

_PLAIN_TYPES = (bool, complex, dict, float, frozenset, int, list, set, slice, tuple)
_LONGEST_RANGE = 1 << 20


def load_pickle(path: str) -> Any:
    """The content of a pickle that holds nothing but numbers, strings, containers, NumPy arrays and torch tensors.

    Strings of Python 2 are read as latin-1.

    Raises:
        pickle.UnpicklingError: anything else in it, or it is cut off or no pickle.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"{path}: {error}") from None
        except OSError:
            raise
        except Exception as error:  # whatever the restoring of tensors and arrays stumbles over, assertions too
            raise pickle.UnpicklingError(f"{path} is cut off or no pickle ({_summary(error)})") from error


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


class _Dtype:
    """A NumPy type of numbers or text. NumPy's own would take fields and pointers from the file."""

    def __init__(self, description: Any) -> None:
        self.dtype = np.dtype(description) if isinstance(description, str) else np.dtype(object)
        if self.dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"refuses an array of {description!r}: only numbers and text are read")

    def restore(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that checks the state it is restored from, which NumPy leaves to the reader."""

    def restore(self, state: Any) -> None:
        _, shape, description, is_fortran, raw = state
        content = _array_from_bytes(raw, description, shape, "F" if is_fortran else "C")
        super().__setstate__((1, content.shape, content.dtype, bool(is_fortran), bytes(content.tobytes("A"))))


def _array_from_bytes(raw: Any, description: Any, shape: Any, order: str = "C") -> np.ndarray:
    if isinstance(raw, str):  # of Python 2
        raw = raw.encode("latin1")
    if not isinstance(description, _Dtype) or any(size < 0 for size in shape):
        raise pickle.UnpicklingError("refuses an array of an unusual type or shape")
    return np.frombuffer(bytes(raw), dtype=description.dtype).reshape(shape, order="F" if order == "F" else "C")


def _make_dtype(description: Any, align: Any = False, copy: Any = False) -> _Dtype:
    return _Dtype(description)


def _make_empty_array(array_type: Any, shape: Any, description: Any) -> _Array:
    return np.zeros(0, np.uint8).view(_Array)  # filled by _Array.restore


def _make_scalar(description: Any, raw: Any) -> np.generic:
    return _array_from_bytes(raw, description, (1,))[0]


def _make_array(raw: Any, description: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    return _array_from_bytes(raw, description, shape, order).copy()


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding.lower() not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"refuses to encode as {encoding}")
    return text.encode("latin1")


def _make_bytes(*arguments: Any) -> bytes:
    """Not of a number, as ``bytes`` would: so many zeros, though the file is small."""
    if arguments and not isinstance(arguments[0], bytes | bytearray | str | list):
        raise pickle.UnpicklingError(f"refuses bytes of a {type(arguments[0]).__name__}")
    return bytes(*arguments)


def _make_bytearray(*arguments: Any) -> bytearray:
    return bytearray(_make_bytes(*arguments))


def _make_range(*arguments: Any) -> range:
    """Not so long that a list of it would fill the memory."""
    found = range(*arguments)
    if max(abs(found.start), abs(found.stop)) > 1 << 62 or len(found) > _LONGEST_RANGE:
        raise pickle.UnpicklingError(f"refuses a range of more than {_LONGEST_RANGE:,} numbers")
    return found


def _make_text(*arguments: Any) -> str:
    """Not of lists that hold each other many times, whose text has no end."""
    if arguments and not isinstance(arguments[0], str | bytes | int | float):
        raise pickle.UnpicklingError(f"refuses the text of a {type(arguments[0]).__name__}")
    return str(*arguments)


def _load_storage(data: bytes) -> Any:
    """The storage of a tensor that was pickled without torch.save."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    **{("builtins", plain.__name__): plain for plain in _PLAIN_TYPES},
    ("builtins", "bytearray"): _make_bytearray,
    ("builtins", "bytes"): _make_bytes,
    ("builtins", "range"): _make_range,
    ("builtins", "str"): _make_text,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "dtype"): _make_dtype,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument; called, it would read any memory
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
for _name, _old_name in (("int", "long"), ("range", "xrange"), ("str", "unicode")):  # in Python 2
    _ALLOWED["builtins", _old_name] = _ALLOWED["builtins", _name]
for _core in ("numpy.core", "numpy._core"):  # renamed with NumPy 2; files keep the name of their time
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _make_empty_array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _make_scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _make_array


class _ArrayUnpickler(pickle._Unpickler):  # the one in Python, whose steps can be replaced
    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # its name in Python 2
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"refuses to load {module[:100]}.{name[:100]}: only arrays, tensors and plain containers are read, "
                f"since anything else could run code; if you trust the file, save its arrays alone with another program"
            )
        return _ALLOWED[module, name]

    def load_build(self) -> None:
        """Restore the state of an object; pickle's own would set attributes of anything, functions included."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            target.restore(state)
        elif type(target) is not OrderedDict:  # one of PyTorch carries versions of modules, which may go
            raise pickle.UnpicklingError(f"refuses to set the state of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build
