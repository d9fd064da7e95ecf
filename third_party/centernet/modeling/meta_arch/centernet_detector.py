"""One-stage detector: backbone and dense head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    build_backbone,
    build_proposal_generator,
    detector_postprocess,
)
from detectron2.structures import ImageList, Instances

__all__ = ["CenterNetDetector"]


@META_ARCH_REGISTRY.register()
class CenterNetDetector(nn.Module):
    """`CenterNet` with classes as a detector.

    Args:
        proposal_generator: see `CenterNet.forward`.
        pixel_mean, pixel_std: one number for each image channel. They are part of the state dict.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1))
        self.backbone = backbone
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if cfg.MODEL.CENTERNET.ONLY_PROPOSAL or cfg.MODEL.CENTERNET.AS_PROPOSAL:
            raise ValueError(
                "CenterNetDetector returns detections, not proposals: set MODEL.CENTERNET.ONLY_PROPOSAL and "
                "AS_PROPOSAL to False, or MODEL.META_ARCHITECTURE to GeneralizedRCNN"
            )
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, otherwise `inference` in the size of each input's ``height`` and ``width``.

        Args:
            batched_inputs: one dict per image: ``image`` (C, H, W); ``instances`` with the ground truth, in training;
                ``height`` and ``width`` of the result, by default those of the image.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = [entry["instances"].to(self.device) for entry in batched_inputs]
        _, losses = self.proposal_generator(images, self.backbone(images.tensor), gt_instances)
        return losses

    def inference(
        self, batched_inputs: Sequence[dict[str, Any]], do_postprocess: bool = True
    ) -> list[dict[str, Instances]] | list[Instances]:
        """One dict ``{"instances": …}`` for each image; the bare instances, in the coordinates of the network's
        input, without post-processing."""
        assert not self.training, "inference() is for models in evaluation mode: call model.eval() first"
        images = self.preprocess_image(batched_inputs)
        detections, _ = self.proposal_generator(images, self.backbone(images.tensor), None)
        if not do_postprocess:
            return detections
        results = []
        for entry, found, (height, width) in zip(batched_inputs, detections, images.image_sizes, strict=True):
            height, width = entry.get("height", height), entry.get("width", width)
            results.append({"instances": detector_postprocess(found, height, width)})
        return results

    def preprocess_image(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """The images, normalised and padded to one batch."""
        images = [(entry["image"].to(self.device) - self.pixel_mean) / self.pixel_std for entry in batched_inputs]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)
