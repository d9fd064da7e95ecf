"""Rules of loading that detection and segmentation share: more file formats, and no parameter left random unnoticed."""

import json
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import Tensor

from prompt_pretrain.errors import InputError, reason_of
from prompt_pretrain.safe_pickle import read_torch_archive

__all__ = [
    "CLASS_NAMES",
    "SEEN_CLASSES",
    "StrictLoading",
    "names_in",
    "read_safetensors",
    "weights_alone",
    "weights_of",
]
logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
# Entries of a checkpoint beside "model": lists of names, which make its classes known without its training data.
CLASS_NAMES, SEEN_CLASSES = "class_names", "seen_class_names"
_SHOWN = 4
_EXAMPLES = 2
# Fewer of the model's entries than this share say that the file is of another model, unless most of the file is used,
# as of a backbone.
_ALMOST_NONE, _MOST_OF_FILE = 0.05, 0.5


class StrictLoading(Checkpointer):
    """A base to put before a ``DetectionCheckpointer``: also reads safetensors, and the weights of untrusted files.

    Entries that match ``harmless`` may be missing or surplus without a word; any other difference is a warning or, in
    `load_all`, an error. So is, always, a file that has (almost) nothing of the model.

    Attributes:
        notes: what `save` writes beside the model, such as :data:`CLASS_NAMES`; plain data.
    """

    harmless: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")  # nothing
    require_all = False
    notes: Mapping[str, Any] = MappingProxyType({})
    _path = "the checkpoint"

    def save(self, name: str, **kwargs: Any) -> None:
        """As the base's, with the notes."""
        super().save(name, **{**self.notes, **kwargs})

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As the base's.

        Raises:
            InputError: the file has (almost) no parameter of the model.
        """
        self._path = path
        return super().load(path, checkpointables)

    def load_all(self, path: str) -> dict[str, Any]:
        """`load` for evaluation: an error where a parameter of the model gets no value.

        Raises:
            InputError: names the first of them.
        """
        self.require_all = True
        try:
            return self.load(path, checkpointables=[])
        finally:
            self.require_all = False

    def _load_file(self, filename: str) -> Any:
        if filename.endswith(SAFETENSORS):
            return read_safetensors(filename)
        try:
            content = super()._load_file(filename)
        except pickle.UnpicklingError:
            if filename.endswith(".pkl"):
                raise
            return weights_alone(filename)
        weights = content["model"]
        if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
            raise ValueError(f"{filename}: its 'model' is no dict from names to weights")
        return content

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        stored = list(checkpoint["model"])
        found = super()._load_model(checkpoint)
        mismatched = self._mismatched(found)
        different = {name for name, *_ in found.incorrect_shapes}
        missing = [name for name in self._harmful(found.missing_keys) if name not in different]
        self._check_kind(self._harmful(stored), missing)
        if self.require_all:
            _check_complete(self._path, missing, mismatched)
        return _IncompatibleKeys(missing, self._harmful(found.unexpected_keys), mismatched)

    def _check_kind(self, stored: list[str], missing: list[str]) -> None:
        """Refuse the checkpoint of another model, with which a training would silently start from random numbers."""
        own = self._harmful(self.model.state_dict())
        used = len(own) - len(missing)
        if missing and used <= _ALMOST_NONE * len(own) and used < _MOST_OF_FILE * len(stored):
            raise InputError(
                f"{self._path} is the checkpoint of another model: it has {used} of the {len(own)} entries that this "
                f"one needs; the file holds {_examples(stored)}, the model {_examples(missing)}; give the weights of "
                "this kind of model or of its backbone, or the config that the file was trained with"
            )

    def _mismatched(self, found: _IncompatibleKeys) -> list[tuple[str, Any, Any]]:
        """Entries of other shapes in model and checkpoint that matter."""
        return found.incorrect_shapes

    def _harmful(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if not self.harmless.search(name)]


def read_safetensors(path: str) -> dict[str, Any]:
    """``{"model": names to tensors}``, and what the metadata say of how to load them.

    Raises:
        ValueError: no such file format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is cut off or no safetensors file ({reason_of(error)})") from error
    if metadata.get("matching_heuristics") == "true":  # as `tools/convert_checkpoint.py` writes it
        content |= {"matching_heuristics": True, "__author__": metadata.get("author", "")}
    for key in (CLASS_NAMES, SEEN_CLASSES):
        if key in metadata:
            try:
                content[key] = json.loads(metadata[key])
            except ValueError as error:
                raise ValueError(f"{path}: {key} of its metadata is no json list ({error})") from error
    return content


def weights_alone(path: str) -> dict[str, Any]:
    """The weights of a file that holds other objects too, such as configs or NumPy scalars; none is built or run."""
    weights = weights_of(read_torch_archive(path))
    logger.warning("%s holds more than data: its weights alone are read", path)
    return {"model": {name: value for name, value in weights.items() if isinstance(value, Tensor)}}


def weights_of(content: Any) -> dict[str, Any]:
    """Names to weights in the content of a file, whether bare or under ``model`` or ``state_dict``.

    Raises:
        ValueError: there are none.
    """
    while isinstance(content, dict):
        inner = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not any(isinstance(value, Tensor | np.ndarray) for value in content.values()):
        raise ValueError("it holds no weights, neither directly nor under 'model' or 'state_dict'")
    return content


def names_in(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Class names that a checkpoint holds under ``key``; none where it does not say."""
    names = content.get(key)
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _examples(names: list[str]) -> str:
    """Some names with different beginnings, for people."""
    beginnings = {name.split(".")[0]: name for name in reversed(names)}
    shown = [name for name in names if name in set(beginnings.values())][:_EXAMPLES]
    more = ", …" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more}" if shown else "nothing"


def _check_complete(path: str, missing: list[str], mismatched: list[tuple[str, Any, Any]]) -> None:
    problems = [f"{name} has shape {stored}, the model {own}" for name, stored, own in mismatched]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"{path} does not fit the model: {'; '.join(problems[:_SHOWN])}{more}; give the checkpoint of this "
            "config, or the config of this checkpoint"
        )
