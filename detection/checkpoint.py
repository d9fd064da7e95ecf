"""Loading checkpoints of detectors: published ones, ours, and those trained with another vocabulary."""

import logging
import pickle
import re
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from prompt_pretrain.errors import InputError
from prompt_pretrain.safe_pickle import check_unfolded
from prompt_pretrain.strict_loading import SAFETENSORS, StrictLoading, weights_alone, weights_of

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


class DeticCheckpointer(StrictLoading, DetectionCheckpointer):
    """`DetectionCheckpointer` that also reads safetensors and knows which differences do no harm.

    ``zs_weight`` and ``freq_weight`` of another number of classes are skipped: those of the config stay. Entries that
    are computed or never used may be missing or surplus without a word (`_HARMLESS`); any other difference is a warning
    or, in `load_all`, an error.

    Attributes:
        stored_classifier: ``zs_weight`` of the file that was loaded last, (D, C + 1); None where it has none.
    """

    stored_classifier: Tensor | None = None
    harmless = _HARMLESS

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

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        found = (value for name, value in checkpoint["model"].items() if name.endswith("cls_score.zs_weight"))
        stored = next((value for value in found if isinstance(value, torch.Tensor | np.ndarray)), None)
        self.stored_classifier = None if stored is None else torch.as_tensor(stored)
        if self.keep_class_embeddings:
            weights = checkpoint["model"]
            checkpoint["model"] = {name: value for name, value in weights.items() if not _OF_CLASSES.search(name)}
        return super()._load_model(checkpoint)

    def _mismatched(self, found: _IncompatibleKeys) -> list[tuple[str, Any, Any]]:
        for name, stored, own in found.incorrect_shapes:
            if _OF_CLASSES.search(name):
                logger.warning(
                    "%s: %d classes in the checkpoint, %d in the model, whose own stay",
                    name,
                    stored[-1] - name.endswith("zs_weight"),
                    own[-1] - name.endswith("zs_weight"),
                )
        return [each for each in found.incorrect_shapes if not _OF_CLASSES.search(each[0])]


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
        if path.endswith((SAFETENSORS, ".pkl")):
            return DeticCheckpointer(nn.Module())._load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception:  # damaged, of many kinds, or with objects beside the weights
            content = weights_alone(path)
        check_unfolded(content, path)
        return content if isinstance(content, dict) and "model" in content else {"model": content}
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}; check the path") from error
    except InputError:
        raise
    except (ValueError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error)
        raise InputError(reason if path in reason else f"{path} cannot be read: {reason}") from error
