"""ROI heads whose detection scores include those of the proposals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from centernet.modeling.roi_heads.custom_fast_rcnn import (
    CustomFastRCNNOutputLayers,
    multiply_proposal_scores,
    without_fed_loss,
)
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

__all__ = ["CustomCascadeROIHeads", "CustomROIHeads"]


@ROI_HEADS_REGISTRY.register()
class CustomROIHeads(StandardROIHeads):
    """`StandardROIHeads` with `CustomFastRCNNOutputLayers`."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(without_fed_loss(cfg), input_shape)
        predictor = CustomFastRCNNOutputLayers(cfg, arguments["box_head"].output_shape)
        return arguments | {"box_predictor": predictor}


@ROI_HEADS_REGISTRY.register()
class CustomCascadeROIHeads(CascadeROIHeads):
    """`CascadeROIHeads` with `CustomFastRCNNOutputLayers` in each stage."""

    @configurable
    def __init__(self, *, mult_proposal_score: bool = False, **kwargs: Any) -> None:
        """
        Args:
            mult_proposal_score: a detection's score is sqrt(mean probability of the class × score of the proposal).
            kwargs: arguments of `CascadeROIHeads`.
        """
        super().__init__(**kwargs)
        self.mult_proposal_score = mult_proposal_score

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        mult_proposal_score = cfg.MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE
        return super().from_config(cfg, input_shape) | {"mult_proposal_score": mult_proposal_score}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(without_fed_loss(cfg), input_shape)
        stage_weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        arguments["box_predictors"] = [
            CustomFastRCNNOutputLayers(cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights))
            for head, weights in zip(arguments["box_heads"], stage_weights, strict=True)
        ]
        return arguments

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses of all stages in training, otherwise detections: mean scores, boxes of the last stage."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [each.image_size for each in proposals]
        stage_probs = []
        boxes: Sequence[Tensor] = ()
        refined = proposals
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                refined = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(maps, refined, stage)
            boxes = predictor.predict_boxes(predictions, refined)
            stage_probs.append(predictor.predict_probs(predictions, refined))
        probs = [torch.stack(image_probs).mean(dim=0) for image_probs in zip(*stage_probs, strict=True)]
        if self.mult_proposal_score:
            probs = multiply_proposal_scores(probs, proposals)
        last = self.box_predictor[-1]
        detections, _ = fast_rcnn_inference(
            boxes, probs, image_sizes, last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image
        )
        return detections
