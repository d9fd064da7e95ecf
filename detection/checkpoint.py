"""Loading checkpoints of detectors: published ones, ours, and those trained with another vocabulary."""

import logging
import pickle
import re
from collections.abc import Iterable
from typing import Any

from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from prompt_pretrain.errors import InputError

__all__ = ["DeticCheckpointer", "read_checkpoint"]

logger = logging.getLogger(__name__)

# Frozen class embeddings and image counts of the classes: the config's stay where a checkpoint has other classes.
_OF_CLASSES = re.compile(r"(?:^|\.)(?:zs_weight|freq_weight)$")
# What a checkpoint may lack or have in addition without consequence.
_HARMLESS = re.compile(
    r"(?:^|\.)(?:"
    r"zs_weight|freq_weight"  # from the config
    r"|pixel_mean|pixel_std|relative_position_index|attn_mask|num_batches_tracked|cell_anchors\.\d+"  # computed
    r"|bottom_up\.base\.fc\.(?:weight|bias)"  # never used in the forward pass
    r")$"
    # Fetched when captions are first encoded, and needed in training only.
    r"|^text_encoder\."
)
_SAFETENSORS = ".safetensors"
_SHOWN = 4


class DeticCheckpointer(DetectionCheckpointer):
    """`DetectionCheckpointer` that also reads safetensors and knows which differences do no harm.

    ``zs_weight`` and ``freq_weight`` of another number of classes are skipped: those of the config stay. Entries that
    are computed or never used may be missing or surplus without a word (`_HARMLESS`); any other difference is a warning
    or, with ``require_all``, an error.
    """

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
        if filename.endswith(_SAFETENSORS):
            return _read_safetensors(filename)
        return super()._load_file(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        found = super()._load_model(checkpoint)
        for name, stored, own in found.incorrect_shapes:
            if _OF_CLASSES.search(name):
                logger.warning(
                    "%s: %d classes in the checkpoint, %d in the model, whose own stay",
                    name,
                    stored[-1] - name.endswith("zs_weight"),
                    own[-1] - name.endswith("zs_weight"),
                )
        mismatched = [each for each in found.incorrect_shapes if not _OF_CLASSES.search(each[0])]
        different = {name for name, *_ in found.incorrect_shapes}
        missing = [name for name in _harmful(found.missing_keys) if name not in different]
        if self.require_all:
            _check_complete(missing, mismatched)
        return _IncompatibleKeys(missing, _harmful(found.unexpected_keys), mismatched)


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint: ``model``, names to tensors or arrays, and whatever else the file holds.

    Raises:
        InputError: no such file, a damaged one, or one that holds more than data.
    """
    try:
        return DeticCheckpointer(nn.Module())._load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}; check the path") from error
    except (ValueError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_safetensors(path: str) -> dict[str, Any]:
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


def _harmful(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _HARMLESS.search(name)]


def _check_complete(missing: list[str], mismatched: list[tuple[str, Any, Any]]) -> None:
    problems = [f"{name} has shape {stored}, the model {own}" for name, stored, own in mismatched]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InputError(
            f"the checkpoint does not fit the model: {'; '.join(problems[:_SHOWN])}{more}; give the checkpoint of this "
            "config, or the config of this checkpoint"
        )
