"""Stage 1 of ZSSeg: learning a prompt on crops of ground-truth masks (section 3.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage
from prompt_pretrain.errors import InputError
from segmentation.adapter_setup import build_adapter
from segmentation.batch_vocabulary import BatchVocabulary
from segmentation.clip_adapter import ClipAdapter

__all__ = ["ProposalClipClassifier"]

_PICTURE_PERIOD = 100  # iterations between pictures in the event storage


@META_ARCH_REGISTRY.register()
class ProposalClipClassifier(nn.Module):
    """CLIP on masked crops; only the prompt learns.

    Outside of the mask stands CLIP's raw mean, in normalised values, as released (stage 2 puts zero there).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(self, *, clip_adapter: ClipAdapter, input_format: str = "RGB") -> None:
        """``input_format``: "RGB" or "BGR", of the images."""
        super().__init__()
        self.clip_adapter = clip_adapter
        self.input_format = input_format
        self.vocabulary = BatchVocabulary()
        for name, values in (("pixel_mean", clip_adapter.clip.mean), ("pixel_std", clip_adapter.clip.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"clip_adapter": build_adapter(cfg), "input_format": cfg.INPUT.FORMAT}

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """``{"loss_cls"}`` in training, otherwise per image ``{"classification": (1, K)}`` logits.

        Args:
            batched_inputs: per image ``image`` (3, H, W) in [0, 255], of one size, ``instances`` whose first entry of
                gt_masks (n, H, W) and, in training, of gt_classes counts, and ``meta`` with the ``dataset_name``.
        Raises:
            InputError: images of several sizes, or one without a mask.
        """
        class_names, _ = self.vocabulary.of(batched_inputs)
        images, masks = self._stack(batched_inputs)
        normalised = (images / 255 - self.pixel_mean) / self.pixel_std
        inputs = normalised * masks + (1 - masks) * self.pixel_mean
        logits = self.clip_adapter(inputs, class_names)
        if not self.training:
            return [{"classification": row[None]} for row in logits]
        labels = torch.stack([x["instances"].gt_classes[0] for x in batched_inputs]).to(self.device)
        self._report(images, logits, labels, class_names)
        return {"loss_cls": F.cross_entropy(logits, labels)}

    def _stack(self, batched_inputs: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        sizes = {tuple(x["image"].shape[-2:]) for x in batched_inputs}
        if len(sizes) != 1:
            raise InputError(
                f"crops of one batch have the sizes (height, width) {sorted(sizes)}; set INPUT.MIN_SIZE_TRAIN and "
                "INPUT.MIN_SIZE_TEST to fixed sizes, or batches of one"
            )
        for x in batched_inputs:
            if "instances" not in x or len(x["instances"]) == 0:
                raise InputError(f"{x.get('file_name', 'an input')} has no mask; evaluate with ORACLE True")
        images = torch.stack([x["image"].to(self.device).float() for x in batched_inputs])
        if self.input_format == "BGR":
            images = images.flip(1)
        masks = torch.stack([x["instances"].gt_masks[:1].to(self.device).float() for x in batched_inputs])
        return images, masks

    def _report(self, images: Tensor, logits: Tensor, labels: Tensor, class_names: list[str]) -> None:
        storage = get_event_storage()
        if storage.iter % _PICTURE_PERIOD:
            return
        predicted = logits.argmax(1)
        storage.put_scalar("train_acc", 100 * float((predicted == labels).float().mean()))
        truth, guess = (class_names[int(ids[0])] for ids in (labels, predicted))
        storage.put_image(f"label: {truth}, predicted: {guess}", images[0].clamp(0, 255).byte().cpu())
