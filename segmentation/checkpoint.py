"""Loading checkpoints of segmenters: published ones, ours, and those trained with another prompt."""

import re
from collections.abc import Iterable
from typing import Any

from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from prompt_pretrain.strict_loading import StrictLoading

__all__ = ["SegmentationCheckpointer", "weights_to_load"]

_PROMPT = "prompt_learner."
# What a checkpoint may lack or have in addition without consequence.
_HARMLESS = re.compile(
    r"(?:^|\.)(?:"
    r"clip_model\..*"  # from CLIP's own file
    r"|(?:start|dot|end|pad)_signal"  # token embeddings, taken from CLIP
    r"|pixel_mean|pixel_std|empty_weight|relative_position_index|num_batches_tracked"  # computed
    r")$"
)


class SegmentationCheckpointer(StrictLoading, DetectionCheckpointer):
    """`DetectionCheckpointer` that also reads safetensors and knows which differences do no harm.

    Entries that are computed or come with CLIP may be missing or surplus without a word; any other difference is a
    warning or, in `load_all`, an error.
    """

    harmless = _HARMLESS

    def __init__(self, model: nn.Module, save_dir: str = "", *, cfg: CfgNode | None = None, **kwargs: Any) -> None:
        """As `DetectionCheckpointer`.

        Args:
            cfg: says where the prompt comes from. That of ``MODEL.CLASS_EMBEDDINGS`` stays whatever the checkpoint
                holds; that of ``PROMPT_CHECKPOINT`` stays where the checkpoint has none, as published.
        """
        super().__init__(model, save_dir, **kwargs)
        node = None if cfg is None else cfg.MODEL.CLASS_EMBEDDINGS
        self._keep_prompt = node is not None and bool(node.PROMPT or node.PATH)
        self._has_prompt = self._keep_prompt or (cfg is not None and bool(cfg.MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT))

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        if self._keep_prompt:
            checkpoint["model"] = {name: value for name, value in checkpoint["model"].items() if _PROMPT not in name}
        return super()._load_model(checkpoint)

    def _mismatched(self, found: _IncompatibleKeys) -> list[tuple[str, Any, Any]]:
        # Weights of the loss, one per class of the training: a config of another number of classes has its own.
        return [each for each in super()._mismatched(found) if not each[0].endswith("empty_weight")]

    def _harmful(self, names: Iterable[str]) -> list[str]:
        return [name for name in super()._harmful(names) if not (self._has_prompt and _PROMPT in name)]


def weights_to_load(cfg: CfgNode, model: nn.Module) -> str:
    """MODEL.WEIGHTS; "" for those of a backbone, which a published config names for a model that has none."""
    weights = cfg.MODEL.WEIGHTS
    has_backbone = hasattr(getattr(model, "module", model), "backbone")
    return "" if "ImageNetPretrained" in weights and not has_backbone else weights
