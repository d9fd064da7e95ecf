"""Classification and box regression of regions with a federated loss and scores that include the proposal's."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds, load_class_freq
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Instances

__all__ = ["CustomFastRCNNOutputLayers", "multiply_proposal_scores"]


class CustomFastRCNNOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers` with CenterNet2's federated loss instead of detectron2's, which counts classes elsewhere.

    With softmax the federated loss would change nothing, as the own class of a region always takes part; it is then
    left out.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        mult_proposal_score: bool = False,
        fed_loss_num_cat: int = 50,
        freq_weight: Tensor | None = None,
        prior_prob: float = 0.01,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mult_proposal_score: a detection's score is sqrt(probability of the class × score of the proposal).
            fed_loss_num_cat: how many classes enter the loss.
            freq_weight: (C,) weights by which the federated loss draws classes; None for all classes in the loss.
            prior_prob: probability that the classes start with, if independent (``use_sigmoid_ce``).
            kwargs: arguments of `FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        self.mult_proposal_score = mult_proposal_score
        self.fed_loss_num_cat = fed_loss_num_cat
        self.prior_prob = prior_prob
        if self.use_sigmoid_ce:
            nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        if freq_weight is not None and len(freq_weight) != self.num_classes:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH lists {len(freq_weight)} categories, but "
                f"MODEL.ROI_HEADS.NUM_CLASSES is {self.num_classes}; give the file of the training set"
            )
        self.register_buffer("freq_weight", freq_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        arguments = super().from_config(without_fed_loss(cfg), input_shape)
        freq_weight = load_class_freq(head.CAT_FREQ_PATH, head.FED_LOSS_FREQ_WEIGHT) if head.USE_FED_LOSS else None
        return arguments | {
            "mult_proposal_score": head.MULT_PROPOSAL_SCORE,
            "fed_loss_num_cat": head.FED_LOSS_NUM_CAT,
            "freq_weight": freq_weight,
            "prior_prob": head.PRIOR_PROB,
        }

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy, summed over classes and averaged over the R regions.

        Args:
            pred_class_logits: (R, C + 1), of which the last column, background, has no loss.
            gt_classes: (R,) in [0, C].
        """
        if gt_classes.numel() == 0:
            return pred_class_logits.sum() * 0.0
        if self.freq_weight is None:
            logits = pred_class_logits[:, :-1]
            target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(logits.dtype)
        else:
            chosen = get_fed_loss_inds(gt_classes, self.fed_loss_num_cat, self.num_classes, self.freq_weight)
            chosen = chosen[chosen < self.num_classes]
            logits = pred_class_logits[:, chosen]
            target = (gt_classes[:, None] == chosen).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(gt_classes)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image, and for each detection the row of its proposal."""
        probs = self.predict_probs(predictions, proposals)
        if self.mult_proposal_score:
            probs = multiply_proposal_scores(probs, proposals)
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            probs,
            [each.image_size for each in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )


def multiply_proposal_scores(probs: Sequence[Tensor], proposals: Sequence[Instances]) -> list[Tensor]:
    """Per image the geometric means (R, C + 1) of probabilities and the scores of their proposals.

    The score of a proposal is its field ``scores`` if it has one, otherwise ``objectness_logits``, which proposals of
    `CenterNet` use for a probability.
    """
    return [
        (image_probs * (each.scores if each.has("scores") else each.objectness_logits)[:, None]).sqrt()
        for image_probs, each in zip(probs, proposals, strict=True)
    ]


def without_fed_loss(cfg: CfgNode) -> CfgNode:
    """The config for classes of detectron2, whose own federated loss reads the same key but takes class counts from
    the metadata of the training set."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg
