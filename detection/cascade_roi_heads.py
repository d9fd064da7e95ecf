"""Detic's cascade of box heads with a mask head (arXiv 2201.02605, on CenterNet2's cascade, arXiv 2103.07461)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detection.box_predictor import NO_CLASSIFIER, DeticFastRCNNOutputLayers
from detection.image_losses import ClassifierInfo
from detection.inference_precision import run_layers
from detection.linear_scores import EqualWeights
from detection.shared_masks import masks_of_distinct_boxes
from detection.vocabulary_inference import LinearScores, detect
from detection.weak_proposals import top_proposals
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads, _ScaleGradient
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage

__all__ = ["DeticCascadeROIHeads"]

_MASKS_AT_ONCE = 16  # on the CPU: 3 MB of activations between two layers
_WITHOUT_LOSS = ("prop", "proptag")  # boxes without classes: they train the proposal network alone


@ROI_HEADS_REGISTRY.register()
class DeticCascadeROIHeads(CascadeROIHeads):
    """`CascadeROIHeads` that also learns from images with labels or captions, and scores huge vocabularies."""

    @configurable
    def __init__(
        self,
        *,
        mult_proposal_score: bool = False,
        with_image_labels: bool = False,
        add_image_box: bool = False,
        image_box_size: float = 1.0,
        ws_num_props: int = 512,
        add_feature_to_prop: bool = False,
        mask_weight: float = 1.0,
        one_class_per_proposal: bool = False,
        class_agnostic_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mult_proposal_score: a detection's score is the root of class score times proposal score.
            with_image_labels: batches of image-labelled images occur, so all have an ``image_loss``.
            add_image_box, image_box_size, ws_num_props: regions of those: see `top_proposals`.
            add_feature_to_prop: store each stage's region features on its proposals, as ``feat``.
            mask_weight: of the mask loss.
            one_class_per_proposal: of each region only the best class can be detected.
            class_agnostic_mask: the mask head knows no classes, so detections of one box share their mask.
            kwargs: of `CascadeROIHeads`.
        """
        super().__init__(**kwargs)
        self.mult_proposal_score = mult_proposal_score
        self.with_image_labels = with_image_labels
        self.add_image_box = add_image_box
        self.image_box_size = image_box_size
        self.ws_num_props = ws_num_props
        self.add_feature_to_prop = add_feature_to_prop
        self.mask_weight = mask_weight
        self.one_class_per_proposal = one_class_per_proposal
        self.class_agnostic_mask = class_agnostic_mask
        self.inference_dtype: torch.dtype | None = None  # of the box heads' layers and the mask head
        self._equal_weights = EqualWeights()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return super().from_config(cfg, input_shape) | {
            "mult_proposal_score": head.MULT_PROPOSAL_SCORE,
            "with_image_labels": cfg.WITH_IMAGE_LABELS,
            "add_image_box": head.ADD_IMAGE_BOX,
            "image_box_size": head.IMAGE_BOX_SIZE,
            "ws_num_props": head.WS_NUM_PROPS,
            "add_feature_to_prop": head.ADD_FEATURE_TO_PROP,
            "mask_weight": cfg.MODEL.ROI_HEADS.MASK_WEIGHT,
            "one_class_per_proposal": cfg.MODEL.ROI_HEADS.ONE_CLASS_PER_PROPOSAL,
            "class_agnostic_mask": cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # The parent builds predictors of its own, whose federated loss would ask the training set for class counts.
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
        plain.MODEL.ROI_HEADS.NUM_CLASSES = 1
        result = super()._init_box_head(plain, input_shape)
        result["box_predictors"] = [
            DeticFastRCNNOutputLayers(cfg, box_head.output_shape, box2box_transform=Box2BoxTransform(weights=weights))
            for box_head, weights in zip(
                result["box_heads"], cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, strict=True
            )
        ]
        return result

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        ann_type: str = "box",
        classifier_info: ClassifierInfo = NO_CLASSIFIER,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """(proposals, losses) in training, otherwise (detections, {}).

        Args:
            features: feature maps by name.
            proposals: ``proposal_boxes`` and ``objectness_logits`` of each image.
            targets: in training, of each image ``gt_boxes``, ``gt_classes`` and maybe ``gt_masks``; for batches of
                image labels ``_pos_category_ids``.
            ann_type: ``box``; ``image``, ``caption`` or ``captiontag``; ``prop`` or ``proptag``.
            classifier_info: see `ClassifierInfo`.
        """
        if not self.training:
            detections = self._forward_box(features, proposals, classifier_info=classifier_info)
            return self.forward_with_given_boxes(features, detections), {}
        assert targets is not None, f"{type(self).__name__} needs ground truth in training: 'instances' in each input"
        if ann_type in ("box", *_WITHOUT_LOSS):
            proposals = self.label_and_sample_proposals(proposals, targets)
        else:
            proposals = self.get_top_proposals(proposals)
        losses = self._forward_box(features, proposals, targets, ann_type, classifier_info)
        if ann_type == "box" and targets and targets[0].has("gt_masks"):
            mask_losses = self._forward_mask(features, proposals)
            losses |= {name: loss * self.mask_weight for name, loss in mask_losses.items()}
            if self.keypoint_on:
                losses |= self._forward_keypoint(features, proposals)
        elif self.mask_on:
            losses["loss_mask"] = self._no_loss(features)
        return proposals, losses

    def get_top_proposals(self, proposals: list[Instances]) -> list[Instances]:
        """Regions of image-labelled images."""
        return top_proposals(proposals, self.ws_num_props, self.image_box_size if self.add_image_box else None)

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        ann_type: str = "box",
        classifier_info: ClassifierInfo = NO_CLASSIFIER,
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses of all stages in training, otherwise detections: mean scores, boxes of the last stage."""
        if not self.training:
            return self._detect(features, proposals, classifier_info)
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [each.image_size for each in proposals]
        losses: dict[str, Tensor] = {}
        refined: Sequence[Tensor] = ()
        storage = get_event_storage()
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                objectness = [each.objectness_logits for each in proposals]
                proposals = self._create_proposals_from_boxes(refined, image_sizes, objectness)
                if ann_type == "box":
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(maps, proposals, stage, classifier_info)
            if stage + 1 < self.num_cascade_stages:
                refined = predictor.predict_boxes(predictions, proposals)
            with storage.name_scope(f"stage{stage}"):
                stage_losses = self._stage_losses(predictor, predictions, proposals, targets, ann_type, classifier_info)
            losses |= {f"{name}_stage{stage}": loss for name, loss in stage_losses.items()}
        return losses

    def _stage_losses(
        self,
        predictor: DeticFastRCNNOutputLayers,
        predictions: tuple[Tensor, ...],
        proposals: list[Instances],
        targets: list[Instances],
        ann_type: str,
        classifier_info: ClassifierInfo,
    ) -> dict[str, Tensor]:
        if ann_type in _WITHOUT_LOSS:
            return {}
        if ann_type != "box":
            labels = [each._pos_category_ids for each in targets]
            return predictor.image_label_losses(predictions, proposals, labels, classifier_info, ann_type)
        losses = predictor.losses(predictions, proposals, classifier_info=classifier_info)
        if self.with_image_labels:
            losses["image_loss"] = predictions[0].new_zeros(())
        return losses

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Instances], classifier_info: ClassifierInfo
    ) -> list[Instances]:
        maps = [features[name] for name in self.box_in_features]
        image_sizes = [each.image_size for each in proposals]
        last = self.box_predictor[-1]
        proposal_scores = None
        if self.mult_proposal_score:
            proposals = [_able_to_pass(each, last.test_score_thresh) for each in proposals]
            proposal_scores = [_scores(each) for each in proposals]
        stages: list[LinearScores] = []
        refined: Sequence[Tensor] = ()
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(refined, image_sizes)
            region_features = self._region_features(maps, proposals, stage)
            stages.append(predictor.linear_scores(region_features, classifier_info[0]))
            refined = predictor.predict_boxes_from_features(region_features, proposals)
        detections, _ = detect(
            self._equal_weights(stages),
            refined,
            image_sizes,
            proposal_scores=proposal_scores,
            score_thresh=last.test_score_thresh,
            nms_thresh=last.test_nms_thresh,
            topk_per_image=last.test_topk_per_image,
            sigmoid=last.use_sigmoid_ce,
            one_class_per_proposal=self.one_class_per_proposal,
            classes_per_chunk=last.classes_per_chunk,
        )
        return detections

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if self.training or not self.mask_on:
            return super()._forward_mask(features, instances)
        if self.class_agnostic_mask:
            return masks_of_distinct_boxes(self._predict_masks, features, instances)
        return self._predict_masks(features, instances)

    def _predict_masks(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Set ``pred_masks``; on the CPU some at a time, so that what passes between layers stays in its caches."""
        own_forward = type(self.mask_head).forward is not BaseMaskRCNNHead.forward
        if self.mask_pooler is None or own_forward or next(iter(features.values())).device.type != "cpu":
            return super()._forward_mask(features, instances)
        maps = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(maps, [each.pred_boxes for each in instances])
        logits = torch.cat(
            [run_layers(self.mask_head.layers, part, self.inference_dtype) for part in pooled.split(_MASKS_AT_ONCE)]
        )
        mask_rcnn_inference(logits, instances)
        return instances

    def _region_features(self, features: list[Tensor], proposals: list[Instances], stage: int) -> Tensor:
        """What the stage's predictor reads of the proposals of all images."""
        pooled = self.box_pooler(features, [each.proposal_boxes for each in proposals])
        if self.training:
            # All stages train the features they share: together as much as one head would.
            pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
        if self.training:
            return self.box_head[stage](pooled)
        return run_layers(self.box_head[stage], pooled, self.inference_dtype)

    def _run_stage(
        self,
        features: list[Tensor],
        proposals: list[Instances],
        stage: int,
        classifier_info: ClassifierInfo = NO_CLASSIFIER,
    ) -> tuple[Tensor, ...]:
        """What the stage's predictor says of the proposals of all images."""
        region_features = self._region_features(features, proposals, stage)
        if self.add_feature_to_prop:
            for each, part in zip(proposals, region_features.split([len(each) for each in proposals]), strict=True):
                each.feat = part
        return self.box_predictor[stage](region_features, classifier_info=classifier_info)

    def _create_proposals_from_boxes(
        self,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        objectness_logits: Sequence[Tensor] | None = None,
    ) -> list[Instances]:
        """Proposals of the next stage from the boxes (R_i, 4) of this one, without gradient, clipped to the image.

        Empty ones are dropped in training; otherwise kept, as the scores of all stages are averaged row by row.
        """
        proposals = []
        for i, (image_boxes, image_size) in enumerate(zip(boxes, image_sizes, strict=True)):
            clipped = Boxes(image_boxes.detach())
            clipped.clip(image_size)
            proposal = Instances(image_size, proposal_boxes=clipped)
            if objectness_logits is not None:
                proposal.objectness_logits = objectness_logits[i].detach()
            if self.training:
                proposal = proposal[clipped.nonempty()]
            proposals.append(proposal)
        return proposals

    def _no_loss(self, features: dict[str, Tensor]) -> Tensor:
        """A zero in place of a loss that the batch's kind has not: all processes log the same losses."""
        return next(iter(features.values())).new_zeros(())


def _scores(proposals: Instances) -> Tensor:
    return proposals.scores if proposals.has("scores") else proposals.objectness_logits


def _able_to_pass(proposals: Instances, score_thresh: float) -> Instances:
    """Those whose score would exceed the threshold if a class had probability 1: no other can become a detection."""
    able = _scores(proposals).sqrt() > score_thresh  # NaN is not
    return proposals[able]
