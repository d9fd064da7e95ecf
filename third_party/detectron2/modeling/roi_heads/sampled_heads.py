"""What all heads on regions share: which regions they train on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import cat
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures.boxes import pairwise_iou
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
Heads on regions, `ROIHeads`, made as ``cls(cfg, input_shape)`` with the `ShapeSpec` of each feature map by name.
"""


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The module that ``MODEL.ROI_HEADS.NAME`` names.

    Raises:
        KeyError: no heads of that name are registered.
    """
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(proposals: Sequence[Instances], bg_label: int) -> tuple[list[Instances], list[Tensor]]:
    """The proposals whose ``gt_classes`` is neither ``bg_label`` nor -1, and per image a mask of which they are."""
    assert isinstance(proposals, (list, tuple)), f"expected a list of Instances, got {type(proposals).__name__}"
    masks = [(each.gt_classes != -1) & (each.gt_classes != bg_label) for each in proposals]
    return [each[mask] for each, mask in zip(proposals, masks, strict=True)], masks


class ROIHeads(nn.Module):
    """Base of heads on regions: matches proposals with ground truth and samples those to train on.

    Subclasses define ``forward(images, features, proposals, targets=None)``.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        """
        Args:
            num_classes: K, without background.
            batch_size_per_image: proposals of each image to train on.
            positive_fraction: largest share of foreground among them.
            proposal_matcher: labels proposals by their IoU with ground truth.
            proposal_append_gt: take the ground-truth boxes as proposals, too.
        """
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        settings = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": settings.NUM_CLASSES,
            "batch_size_per_image": settings.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": settings.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(settings.IOU_THRESHOLDS, settings.IOU_LABELS, allow_low_quality_matches=False),
            "proposal_append_gt": settings.PROPOSAL_APPEND_GT,
        }

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Proposals to train on: of each image foreground first, then background.

        Args:
            proposals: ``proposal_boxes``, ``objectness_logits`` of each image.
            targets: ``gt_boxes``, ``gt_classes``, maybe further fields, of each image.
        Returns:
            The fields of the proposals, ``gt_classes`` (K for background) and, in images with ground truth, those
            other fields of it whose names start with ``gt_``, of the object that a proposal overlaps most.
        Raises:
            ValueError: ground truth of a class beyond ``num_classes``.
        """
        self._check_classes(targets)
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled_proposals, num_foreground, num_all = [], 0, 0
        for image_proposals, image_targets in zip(proposals, targets, strict=True):
            quality = pairwise_iou(image_targets.gt_boxes, image_proposals.proposal_boxes)
            matches, labels = self.proposal_matcher(quality)
            chosen, gt_classes = self._sample_proposals(matches, labels, image_targets.gt_classes)
            sampled = image_proposals[chosen]
            sampled.gt_classes = gt_classes
            if len(image_targets) > 0:
                for name, value in image_targets.get_fields().items():
                    if name.startswith("gt_") and not sampled.has(name):
                        sampled.set(name, value[matches[chosen]])
            num_foreground += int((gt_classes != self.num_classes).sum())
            num_all += len(gt_classes)
            sampled_proposals.append(sampled)
        put_sample_counts(num_foreground, num_all, len(proposals))
        return sampled_proposals

    def _check_classes(self, targets: list[Instances]) -> None:
        """A class of the data set beyond the model's would silently be taken for background."""
        classes = cat([each.gt_classes for each in targets]) if targets else torch.zeros(0)
        if classes.numel() and (highest := int(classes.max())) >= self.num_classes:
            raise ValueError(
                f"ground truth of class {highest}, but the model has {self.num_classes} classes, 0 to "
                f"{self.num_classes - 1}: set MODEL.ROI_HEADS.NUM_CLASSES to the number of classes of the data set"
            )

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Indices of sampled proposals of one image, foreground first, and their classes.

        Args:
            matched_idxs: (R,) the object that each proposal overlaps most.
            matched_labels: (R,) 1 foreground, 0 background, -1 ignored.
            gt_classes: (G,) class of each object, G may be 0.
        """
        if gt_classes.numel() > 0:
            classes = gt_classes[matched_idxs]
            classes[matched_labels == 0] = self.num_classes
            classes[matched_labels == -1] = -1
        else:
            classes = torch.full_like(matched_idxs, self.num_classes)
        chosen = torch.cat(
            subsample_labels(classes, self.batch_size_per_image, self.positive_fraction, self.num_classes)
        )
        return chosen, classes[chosen]

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """(proposals, losses) in training, otherwise (detections, {}); one `Instances` for each image.

        Args:
            images: may be left unused.
            features: feature maps by name.
            proposals: ``proposal_boxes`` of each image.
            targets: ground truth of each image, in training: ``gt_boxes``, ``gt_classes``, ``gt_masks`` for masks.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(images, features, proposals, targets)")


def put_sample_counts(num_foreground: int, num_all: int, num_images: int, prefix: str = "") -> None:
    """Put the mean numbers of foreground and background samples per image into the event storage."""
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}roi_head/num_fg_samples", num_foreground / num_images)
    storage.put_scalar(f"{prefix}roi_head/num_bg_samples", (num_all - num_foreground) / num_images)
