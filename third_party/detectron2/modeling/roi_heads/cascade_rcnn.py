"""Several box heads in a row, each refining the boxes of the one before (Cascade R-CNN, arXiv 1712.00726)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.box_head import build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, Predictions, fast_rcnn_inference
from detectron2.modeling.roi_heads.roi_heads import StandardROIHeads, pooler_from_config
from detectron2.modeling.roi_heads.sampled_heads import ROI_HEADS_REGISTRY, put_sample_counts
from detectron2.structures.boxes import Boxes, pairwise_iou
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage


class _ScaleGradient(torch.autograd.Function):
    """The input as it is; its gradient times ``scale``."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.scale, None


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """`StandardROIHeads` with one box head, predictor and matcher for each stage."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        proposal_matchers: Sequence[Matcher],
        **kwargs: Any,
    ) -> None:
        """
        Args:
            box_heads, box_predictors, proposal_matchers: one per stage. The first matcher is for the sampling of
                proposals, the others for the boxes of the stage before, which are not sampled again.
            kwargs: arguments of `StandardROIHeads`, but no ``proposal_matcher``.
        """
        assert "proposal_matcher" not in kwargs, "CascadeROIHeads takes proposal_matchers, not proposal_matcher"
        if not len(box_heads) == len(box_predictors) == len(proposal_matchers):
            raise ValueError(
                f"CascadeROIHeads got {len(box_heads)} heads, {len(box_predictors)} predictors and "
                f"{len(proposal_matchers)} matchers; expected one of each per stage"
            )
        super().__init__(
            box_in_features=box_in_features,
            box_pooler=box_pooler,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            proposal_matcher=proposal_matchers[0],
            **kwargs,
        )
        self.num_cascade_stages = len(box_heads)
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        result = super().from_config(cfg, input_shape)
        result.pop("proposal_matcher")
        return result

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head, cascade = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_CASCADE_HEAD
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        first = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
        if not head.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                "CascadeROIHeads refines one box for all classes: set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True"
            )
        if len(cascade.BBOX_REG_WEIGHTS) != len(cascade.IOUS):
            raise ValueError(
                f"MODEL.ROI_BOX_CASCADE_HEAD has {len(cascade.IOUS)} IOUS and {len(cascade.BBOX_REG_WEIGHTS)} "
                f"BBOX_REG_WEIGHTS; expected one of each per stage"
            )
        if cascade.IOUS[0] != first:
            raise ValueError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS starts with {cascade.IOUS[0]}, but proposals are sampled by "
                f"MODEL.ROI_HEADS.IOU_THRESHOLDS {first}; make them equal"
            )
        pooler, pooled_shape = pooler_from_config(head, in_features, input_shape)
        box_heads, box_predictors, proposal_matchers = [], [], []
        for iou, weights in zip(cascade.IOUS, cascade.BBOX_REG_WEIGHTS, strict=True):
            box_head = build_box_head(cfg, pooled_shape)
            transform = Box2BoxTransform(weights=weights)
            box_heads.append(box_head)
            box_predictors.append(FastRCNNOutputLayers(cfg, box_head.output_shape, box2box_transform=transform))
            proposal_matchers.append(Matcher([iou], [0, 1], allow_low_quality_matches=False))
        return {
            "box_in_features": in_features,
            "box_pooler": pooler,
            "box_heads": box_heads,
            "box_predictors": box_predictors,
            "proposal_matchers": proposal_matchers,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        if not self.training:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        assert targets is not None, f"{type(self).__name__} needs ground truth in training: 'instances' in each input"
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets)
        # Masks learn from the sampled proposals, not from refined boxes, which are other ones at every iteration.
        return proposals, losses | self._forward_mask(features, proposals)

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances] | None = None
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses of all stages in training, otherwise detections: mean scores, boxes of the last stage."""
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [each.image_size for each in proposals]
        stages: list[tuple[Predictions, list[Instances]]] = []
        refined: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(refined, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage)
            refined = predictor.predict_boxes(predictions, proposals)
            stages.append((predictions, proposals))
        if self.training:
            return self._stage_losses(stages)
        probs = [
            predictor.predict_probs(*outcome) for predictor, outcome in zip(self.box_predictor, stages, strict=True)
        ]
        mean_probs = [torch.stack(image_probs).mean(dim=0) for image_probs in zip(*probs, strict=True)]
        last = self.box_predictor[-1]
        detections, _ = fast_rcnn_inference(
            refined,
            mean_probs,
            image_sizes,
            last.test_score_thresh,
            last.test_nms_thresh,
            last.test_topk_per_image,
        )
        return detections

    def _stage_losses(self, stages: Sequence[tuple[Predictions, list[Instances]]]) -> dict[str, Tensor]:
        """Losses of each stage, their names ending in ``_stage<k>``."""
        losses = {}
        storage = get_event_storage()
        for stage, (predictor, outcome) in enumerate(zip(self.box_predictor, stages, strict=True)):
            with storage.name_scope(f"stage{stage}"):
                stage_losses = predictor.losses(*outcome)
            losses |= {f"{name}_stage{stage}": loss for name, loss in stage_losses.items()}
        return losses

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """The same proposals with ``gt_classes`` and ``gt_boxes`` of the object that each overlaps most.

        A proposal below the stage's IoU is background, class K; in an image without ground truth boxes are zeros.
        """
        num_foreground, num_all = 0, 0
        for each, image_targets in zip(proposals, targets, strict=True):
            quality = pairwise_iou(image_targets.gt_boxes, each.proposal_boxes)
            matches, labels = self.proposal_matchers[stage](quality)
            if len(image_targets) > 0:
                gt_classes = image_targets.gt_classes[matches]
                gt_classes[labels == 0] = self.num_classes
                gt_boxes = image_targets.gt_boxes[matches]
            else:
                gt_classes = torch.full_like(matches, self.num_classes)
                gt_boxes = Boxes(torch.zeros_like(each.proposal_boxes.tensor))
            each.gt_classes = gt_classes
            each.gt_boxes = gt_boxes
            num_foreground += int((labels == 1).sum())
            num_all += len(labels)
        put_sample_counts(num_foreground, num_all, len(proposals), prefix=f"stage{stage}/")
        return proposals

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int) -> Predictions:
        """What the stage's predictor says of the proposals of all images."""
        pooled = self.box_pooler(features, [each.proposal_boxes for each in proposals])
        if self.training:
            # All stages train the features they share: together as much as one head would.
            pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _create_proposals_from_boxes(
        self, boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Proposals of the next stage from the boxes (R_i, 4) of this one, without gradient, clipped to the image.

        Empty ones are dropped in training; otherwise kept, as the scores of all stages are averaged row by row.
        """
        proposals = []
        for image_boxes, image_size in zip(boxes, image_sizes, strict=True):
            clipped = Boxes(image_boxes.detach())
            clipped.clip(image_size)
            if self.training:
                clipped = clipped[clipped.nonempty()]
            proposals.append(Instances(image_size, proposal_boxes=clipped))
        return proposals
