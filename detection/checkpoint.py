"""Loading checkpoints of detectors: published ones, ours, and those trained with another vocabulary."""

import logging
import pickle
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import read_torch_archive

__all__ = ["DeticCheckpointer", "has_own_classes", "read_checkpoint", "weights_of"]

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
    or, in `load_all`, an error.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, keep_class_embeddings: bool = False, **kwargs: Any
    ) -> None:
        """
        Args:
            keep_class_embeddings: ``zs_weight`` and ``freq_weight`` of the model stay also where the checkpoint has as
                many classes: those may be others. See `has_own_classes`.
            kwargs: of `DetectionCheckpointer`.
        """
        super().__init__(model, save_dir, **kwargs)
        self.keep_class_embeddings = keep_class_embeddings
        self.require_all = False

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
        try:
            return super()._load_file(filename)
        except pickle.UnpicklingError:
            if filename.endswith(".pkl"):
                raise
        return _weights_alone(filename)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        if self.keep_class_embeddings:
            weights = checkpoint["model"]
            checkpoint["model"] = {name: value for name, value in weights.items() if not _OF_CLASSES.search(name)}
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


def has_own_classes(cfg: CfgNode) -> bool:
    """Whether ``MODEL.CLASS_EMBEDDINGS`` says what the classes are, so that a checkpoint must not.

    With the published keys alone, a checkpoint of as many classes brings its own embeddings, as published.
    """
    node = cfg.MODEL.CLASS_EMBEDDINGS
    return bool(node.PROMPT or node.VOCABULARY or node.PATH)


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a checkpoint: ``model``, names to tensors or arrays, and whatever else the file holds.

    Files are read without running code from them (``.pkl``: as the detectron2 in use reads them).

    Raises:
        InputError: no such file, a damaged one, or one that holds more than data.
    """
    try:
        if path.endswith((_SAFETENSORS, ".pkl")):
            return DeticCheckpointer(nn.Module())._load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            content = _weights_alone(path)
        return content if isinstance(content, dict) and "model" in content else {"model": content}
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}; check the path") from error
    except InputError:
        raise
    except (ValueError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error)
        raise InputError(reason if path in reason else f"{path} cannot be read: {reason}") from error


def _weights_alone(path: str) -> dict[str, Any]:
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
