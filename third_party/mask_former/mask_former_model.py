"""The meta-architecture of MaskFormer (arXiv 2107.06278)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_sem_seg_head
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from mask_former.modeling.criterion import SetCriterion
from mask_former.modeling.matcher import HungarianMatcher
from mask_former.panoptic_inference import panoptic_inference

__all__ = ["MaskFormer"]


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Segments by predicting a set of masks with a class each."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        num_queries: int,
        panoptic_on: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        metadata: Any,
        size_divisibility: int,
        sem_seg_postprocess_before_inference: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Join the parts.

        Args:
            num_queries: Q.
            panoptic_on: also return panoptic segments.
            object_mask_threshold: smallest class score of a segment.
            overlap_threshold: smallest share of a segment that may be visible.
            metadata: of the training set; panoptic inference asks it for things and stuff.
            size_divisibility: of padded batches; negative for the backbone's own.
            sem_seg_postprocess_before_inference: resize masks to the output instead of the map that they add up to.
            pixel_mean: per channel, in the unit of the images.
            pixel_std: likewise.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.num_queries = num_queries
        self.panoptic_on = panoptic_on
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.metadata = metadata
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        sem_seg_head = build_sem_seg_head(cfg, backbone.output_shape())
        resize_first = node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or node.TEST.PANOPTIC_ON
        return {
            "backbone": backbone,
            "sem_seg_head": sem_seg_head,
            "criterion": build_criterion(cfg, sem_seg_head.num_classes),
            "num_queries": node.NUM_OBJECT_QUERIES,
            "panoptic_on": node.TEST.PANOPTIC_ON,
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "metadata": MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "sem_seg_postprocess_before_inference": resize_first,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Weighted losses in training, otherwise per image ``{"sem_seg": (K, height, width)}``.

        Args:
            batched_inputs: per image ``image`` (3, H, W), at test time optionally ``height`` and ``width`` of the
                output, in training ``instances`` with ``gt_classes`` (n,) and ``gt_masks`` (n, H, W).
        """
        images = self.preprocess(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor))
        if self.training:
            return self.losses(outputs, [x["instances"].to(self.device) for x in batched_inputs], images)
        masks = F.interpolate(
            outputs["pred_masks"], size=images.tensor.shape[-2:], mode="bilinear", align_corners=False
        )
        return [
            self.infer(logits, mask, size, record.get("height", size[0]), record.get("width", size[1]))
            for logits, mask, size, record in zip(
                outputs["pred_logits"], masks, images.image_sizes, batched_inputs, strict=True
            )
        ]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def losses(self, outputs: dict[str, Any], instances: list[Instances], images: ImageList) -> dict[str, Tensor]:
        """The losses that have a weight, weighted."""
        losses = self.criterion(outputs, self.prepare_targets(instances, images))
        weights = self.criterion.weight_dict
        return {name: loss * weights[name] for name, loss in losses.items() if name in weights}

    @staticmethod
    def prepare_targets(instances: list[Instances], images: ImageList) -> list[dict[str, Tensor]]:
        """Labels, and masks padded with zeros to the size of the batch."""
        height, width = images.tensor.shape[-2:]
        targets = []
        for found in instances:
            masks = found.gt_masks
            padding = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
            targets.append({"labels": found.gt_classes, "masks": F.pad(masks, padding)})
        return targets

    def infer(
        self, logits: Tensor, masks: Tensor, image_size: tuple[int, int], height: int, width: int
    ) -> dict[str, Any]:
        """Results of one image from logits (Q, K + 1) and mask logits (Q, H, W) at the padded size."""
        if self.sem_seg_postprocess_before_inference:
            masks = sem_seg_postprocess(masks, image_size, height, width)
            results: dict[str, Any] = {"sem_seg": self.semantic_inference(logits, masks)}
        else:
            semantic = self.semantic_inference(logits, masks)
            results = {"sem_seg": sem_seg_postprocess(semantic, image_size, height, width)}
        if self.panoptic_on:
            things = set(self.metadata.thing_dataset_id_to_contiguous_id.values())
            results["panoptic_seg"] = panoptic_inference(
                logits, masks, things, self.object_mask_threshold, self.overlap_threshold
            )
        return results

    def semantic_inference(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(K, H, W): class probabilities weighed by mask probabilities (section 3.4)."""
        return torch.einsum("qc,qhw->chw", logits.softmax(-1)[:, :-1], masks.sigmoid())


def build_criterion(cfg: CfgNode, num_classes: int) -> SetCriterion:
    """The criterion of ``MODEL.MASK_FORMER``."""
    node = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(cost_class=1, cost_mask=node.MASK_WEIGHT, cost_dice=node.DICE_WEIGHT)
    weights = {"loss_ce": 1.0, "loss_mask": node.MASK_WEIGHT, "loss_dice": node.DICE_WEIGHT}
    if node.DEEP_SUPERVISION:
        for level in range(node.DEC_LAYERS - 1):
            weights |= {f"{name}_{level}": weights[name] for name in ("loss_ce", "loss_mask", "loss_dice")}
    return SetCriterion(num_classes, matcher, weights, node.NO_OBJECT_WEIGHT, ("labels", "masks"))
