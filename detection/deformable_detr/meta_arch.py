"""`DeformableDetr`: Deformable DETR as a detectron2 meta-architecture, with image-level supervision (Detic)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from centernet.modeling.roi_heads.fed_loss import load_class_freq
from detection.deformable_detr.criterion import HungarianMatcher, SetCriterion, Target, corners, image_label_loss
from detection.deformable_detr.model import DeformableDETR, Prediction
from detection.deformable_detr.transformer import DeformableTransformer
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from prompt_pretrain.errors import InputError


@META_ARCH_REGISTRY.register()
class DeformableDetr(nn.Module):
    """Deformable DETR on a detectron2 backbone; its classifier is learned, not a text embedding.

    Args:
        with_image_labels: batches may be image-labelled; adds ``loss_image``.
        weak_weight: factor of ``loss_image``.
        num_results: detections per image, the best (box, class) pairs.
    """

    pixel_mean: Tensor  # (C, 1, 1)
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        detr: DeformableDETR,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        with_image_labels: bool = False,
        weak_weight: float = 0.1,
        num_results: int = 100,
    ) -> None:
        super().__init__()
        self.detr = detr
        self.criterion = criterion
        self.with_image_labels = with_image_labels
        self.weak_weight = weak_weight
        self.num_results = num_results
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        _check_config(cfg)
        settings = cfg.MODEL.DETR
        transformer = DeformableTransformer(
            d_model=settings.HIDDEN_DIM,
            nhead=settings.NHEADS,
            num_encoder_layers=settings.ENC_LAYERS,
            num_decoder_layers=settings.DEC_LAYERS,
            dim_feedforward=settings.DIM_FEEDFORWARD,
            dropout=settings.DROPOUT,
            num_feature_levels=settings.NUM_FEATURE_LEVELS,
            two_stage=settings.TWO_STAGE,
            num_queries=settings.NUM_OBJECT_QUERIES,
        )
        detr = DeformableDETR(
            backbone=build_backbone(cfg),
            transformer=transformer,
            num_classes=settings.NUM_CLASSES,
            num_queries=settings.NUM_OBJECT_QUERIES,
            num_feature_levels=settings.NUM_FEATURE_LEVELS,
            aux_loss=settings.DEEP_SUPERVISION,
            with_box_refine=settings.WITH_BOX_REFINE,
            two_stage=settings.TWO_STAGE,
        )
        matcher = HungarianMatcher(
            settings.CLS_WEIGHT, settings.L1_WEIGHT, settings.GIOU_WEIGHT, focal_alpha=settings.FOCAL_ALPHA
        )
        criterion = SetCriterion(
            num_classes=settings.NUM_CLASSES,
            matcher=matcher,
            weights={
                "loss_ce": settings.CLS_WEIGHT,
                "loss_bbox": settings.L1_WEIGHT,
                "loss_giou": settings.GIOU_WEIGHT,
            },
            focal_alpha=settings.FOCAL_ALPHA,
            fed_loss_weight=_class_weights(cfg) if settings.USE_FED_LOSS else None,
            fed_loss_num_cat=cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT,
        )
        return {
            "detr": detr,
            "criterion": criterion,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "with_image_labels": cfg.WITH_IMAGE_LABELS,
            "weak_weight": settings.WEAK_WEIGHT,
            "num_results": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, otherwise one dict ``{"instances": …}`` for each image.

        Args:
            batched_inputs: one dict per image. ``image`` (C, H, W) in INPUT.FORMAT; ``instances`` with ``gt_boxes`` and
                ``gt_classes``, in training; with image labels also ``ann_type``, the same for all, and
                ``pos_category_ids``; ``height`` and ``width`` of the result.
        """
        images = self.preprocess_image(batched_inputs)
        layers, first_stage = self.detr(images)
        if not self.training:
            return self._detections(layers[-1], batched_inputs, images.image_sizes)
        targets = [self._target(entry["instances"].to(self.device)) for entry in batched_inputs]
        losses = self.criterion(layers, first_stage, targets)
        if not self.with_image_labels:
            return losses
        kinds = {entry.get("ann_type", "box") for entry in batched_inputs}
        if len(kinds) > 1:
            raise InputError(f"a batch mixes annotation types {sorted(kinds)}; set DATALOADER.MULTI_DATASET_GROUPING")
        if kinds == {"box"}:
            return losses | {"loss_image": layers[-1].logits.sum() * 0.0}
        # All keys and all gradients stay, since processes with box and image batches are averaged together.
        losses = {name: loss * 0.0 for name, loss in losses.items()}
        labels = [entry["pos_category_ids"] for entry in batched_inputs]
        return losses | {"loss_image": self.weak_weight * image_label_loss(layers, labels)}

    def preprocess_image(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """The images, normalised and padded to the largest of the batch."""
        images = [(entry["image"].to(self.device) - self.pixel_mean) / self.pixel_std for entry in batched_inputs]
        return ImageList.from_tensors(images)

    def _target(self, instances: Instances) -> Target:
        height, width = instances.image_size
        boxes = instances.gt_boxes.tensor / instances.gt_boxes.tensor.new_tensor([width, height, width, height])
        return Target(instances.gt_classes, box_convert(boxes, "xyxy", "cxcywh"))

    def _detections(
        self, predicted: Prediction, batched_inputs: Sequence[dict[str, Any]], image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        """The best (box, class) pairs of each image, by the class's sigmoid."""
        num_classes = predicted.logits.shape[-1]
        flat = predicted.logits.flatten(1)
        best, index = flat.topk(min(self.num_results, flat.shape[1]), dim=1)
        rows = torch.div(index, num_classes, rounding_mode="floor")
        boxes = corners(predicted.boxes).gather(1, rows[..., None].expand(-1, -1, 4))
        results = []
        for i, (entry, (height, width)) in enumerate(zip(batched_inputs, image_sizes, strict=True)):
            found = Instances((height, width))
            found.pred_boxes = Boxes(boxes[i] * boxes.new_tensor([width, height, width, height]))
            found.scores = best[i].sigmoid()
            found.pred_classes = index[i] % num_classes
            size = entry.get("height", height), entry.get("width", width)
            results.append({"instances": detector_postprocess(found, *size)})
        return results


def _class_weights(cfg: CfgNode) -> Tensor:
    """(C,) sampling weights from MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH; classes beyond the file get 0."""
    head, num_classes = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.DETR.NUM_CLASSES
    weights = load_class_freq(head.CAT_FREQ_PATH, head.FED_LOSS_FREQ_WEIGHT)
    if len(weights) > num_classes:
        raise InputError(
            f"{head.CAT_FREQ_PATH} counts {len(weights)} categories but MODEL.DETR.NUM_CLASSES is {num_classes}; give "
            f"this data set's file in MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH or set NUM_CLASSES to {len(weights)}"
        )
    return torch.cat([weights, weights.new_zeros(num_classes - len(weights))])


def _check_config(cfg: CfgNode) -> None:
    settings = cfg.MODEL.DETR
    if cfg.MODEL.MASK_ON:
        raise InputError("MODEL.MASK_ON is True, but DeformableDetr predicts boxes only; set it to False")
    if settings.PRE_NORM:
        raise InputError("MODEL.DETR.PRE_NORM is True, but Deformable DETR normalises after blocks; set it to False")
    if settings.TWO_STAGE and not settings.WITH_BOX_REFINE:
        raise InputError("MODEL.DETR.TWO_STAGE needs MODEL.DETR.WITH_BOX_REFINE True: each stage has heads of its own")
