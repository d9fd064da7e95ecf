"""Rules of loading that detection and segmentation share: more file formats, and no parameter left random unnoticed."""

import logging
import pickle
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import Tensor

from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import read_torch_archive

__all__ = ["StrictLoading", "read_safetensors", "weights_alone", "weights_of"]
logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
_SHOWN = 4


class StrictLoading(Checkpointer):
    """A base to put before a ``DetectionCheckpointer``: also reads safetensors, and the weights of untrusted files.

    Entries that match ``harmless`` may be missing or surplus without a word; any other difference is a warning or, in
    `load_all`, an error.
    """

    harmless: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")  # nothing
    require_all = False

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
            return super()._load_file(filename)
        except pickle.UnpicklingError:
            if filename.endswith(".pkl"):
                raise
        return weights_alone(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        found = super()._load_model(checkpoint)
        mismatched = self._mismatched(found)
        different = {name for name, *_ in found.incorrect_shapes}
        missing = [name for name in self._harmful(found.missing_keys) if name not in different]
        if self.require_all:
            _check_complete(missing, mismatched)
        return _IncompatibleKeys(missing, self._harmful(found.unexpected_keys), mismatched)

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
        raise ValueError(f"{path} is cut off or no safetensors file ({error})") from error
    if metadata.get("matching_heuristics") == "true":  # as `tools/convert_checkpoint.py` writes it
        content |= {"matching_heuristics": True, "__author__": metadata.get("author", "")}
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


def _check_complete(missing: list[str], mismatched: list[tuple[str, Any, Any]]) -> None:
    problems = [f"{name} has shape {stored}, the model {own}" for name, stored, own in mismatched]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"the checkpoint does not fit the model: {'; '.join(problems[:_SHOWN])}{more}; give the checkpoint of this "
            "config, or the config of this checkpoint"
        )
