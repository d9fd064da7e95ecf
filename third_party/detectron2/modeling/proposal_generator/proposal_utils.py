"""Choosing proposals from dense predictions, and adding ground truth to them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detectron2.layers.nms import batched_nms
from detectron2.layers.wrappers import cat
from detectron2.structures.boxes import Boxes
from detectron2.structures.instances import Instances

# An appended ground-truth box is as certain as a probability of 1 - 1e-10.
_GT_LOGIT = math.log((1.0 - 1e-10) / 1e-10)


def find_top_rpn_proposals(
    proposals: Sequence[Tensor],
    pred_objectness_logits: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best boxes of each image after non-maximum suppression within each level.

    Args:
        proposals: per level (N, R_l, 4) boxes of N images.
        pred_objectness_logits: per level (N, R_l).
        image_sizes: (height, width) of each image, which boxes are clipped to.
        pre_nms_topk: how many boxes of each level and image take part.
        post_nms_topk: how many boxes of each image stay.
        min_box_size: boxes with a side of at most this many pixels are dropped.
        training: whether numbers that are not finite are an error; otherwise such boxes are dropped.
    Returns:
        Per image ``proposal_boxes`` and ``objectness_logits``, by falling logit.
    Raises:
        FloatingPointError: in training, for boxes or logits that are not finite.
    """
    boxes, logits, levels = _top_of_levels(proposals, pred_objectness_logits, pre_nms_topk)
    return [
        _suppress(image_boxes, image_logits, levels, size, nms_thresh, post_nms_topk, min_box_size, training)
        for image_boxes, image_logits, size in zip(boxes, logits, image_sizes, strict=True)
    ]


def _top_of_levels(proposals: Sequence[Tensor], logits: Sequence[Tensor], topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, R, 4) boxes and (N, R) logits of the ``topk`` best of each level, and (R,) the level of each."""
    top_boxes, top_logits, levels = [], [], []
    for level, (level_boxes, level_logits) in enumerate(zip(proposals, logits, strict=True)):
        best, chosen = level_logits.topk(min(topk, level_logits.shape[1]), dim=1)
        top_boxes.append(level_boxes.gather(1, chosen[:, :, None].expand(-1, -1, 4)))
        top_logits.append(best)
        levels.append(torch.full_like(chosen[0], level))
    return cat(top_boxes, dim=1), cat(top_logits, dim=1), cat(levels)


def _suppress(
    corners: Tensor,
    logits: Tensor,
    levels: Tensor,
    image_size: tuple[int, int],
    nms_thresh: float,
    topk: int,
    min_box_size: float,
    training: bool,
) -> Instances:
    """Proposals of one image from the candidates of all its levels."""
    finite = torch.isfinite(corners).all(dim=1) & torch.isfinite(logits)
    if not finite.all():
        if training:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        corners, logits, levels = corners[finite], logits[finite], levels[finite]
    boxes = Boxes(corners)
    boxes.clip(image_size)
    large = boxes.nonempty(threshold=min_box_size)
    boxes, logits, levels = boxes[large], logits[large], levels[large]
    # float32: NMS on the CPU wants boxes and scores of one type.
    keep = batched_nms(boxes.tensor, logits.float(), levels, nms_thresh)[:topk]
    return Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=logits[keep])


def add_ground_truth_to_proposals(
    gt: Sequence[Instances] | Sequence[Boxes], proposals: Sequence[Instances]
) -> list[Instances]:
    """`add_ground_truth_to_proposals_single_image` of each image."""
    assert len(gt) == len(proposals), f"ground truth of {len(gt)} images, proposals of {len(proposals)}"
    return [add_ground_truth_to_proposals_single_image(*pair) for pair in zip(gt, proposals, strict=True)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """The proposals, then the ground-truth boxes as further, almost certain proposals.

    Args:
        gt: boxes, or instances with ``gt_boxes`` and whatever fields ``proposals`` has besides its boxes and logits.
        proposals: ``proposal_boxes``, ``objectness_logits``, maybe more; its fields are those of the outcome.
    """
    fields = {"gt_boxes": gt} if isinstance(gt, Boxes) else gt.get_fields()
    boxes = fields["gt_boxes"]
    logits = proposals.objectness_logits.new_full((len(boxes),), _GT_LOGIT)
    added = Instances(proposals.image_size, **fields | {"proposal_boxes": boxes, "objectness_logits": logits})
    for name in proposals.get_fields():
        assert added.has(name), (
            f"proposals have a field '{name}' that the ground truth lacks: set it there too, or remove it from the "
            f"proposals, before ground truth is appended"
        )
    return Instances.cat([proposals, added])
