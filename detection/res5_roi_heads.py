"""ROI heads of Detic's R50-C4 models (open-vocabulary COCO), which share the ``res5`` stage of ResNet."""

from typing import Any

from torch import Tensor

from detection.box_predictor import NO_CLASSIFIER, DeticFastRCNNOutputLayers
from detection.image_losses import ClassifierInfo
from detection.weak_proposals import top_proposals
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, select_foreground_proposals
from detectron2.structures import ImageList, Instances

__all__ = ["CustomRes5ROIHeads"]

_WHOLE_IMAGE = 1.0  # from this size on the image box is exactly the image


@ROI_HEADS_REGISTRY.register()
class CustomRes5ROIHeads(Res5ROIHeads):
    """`Res5ROIHeads` that also learns from images with labels or captions."""

    @configurable
    def __init__(
        self,
        *,
        with_image_labels: bool = False,
        add_image_box: bool = False,
        image_box_size: float = 1.0,
        ws_num_props: int = 512,
        mask_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            with_image_labels: batches of image-labelled images occur, so all have an ``image_loss``.
            add_image_box, image_box_size, ws_num_props: regions of those: see `top_proposals`.
            mask_weight: of the mask loss.
            kwargs: of `Res5ROIHeads`.
        """
        super().__init__(**kwargs)
        self.with_image_labels = with_image_labels
        self.add_image_box = add_image_box
        self.image_box_size = image_box_size
        self.ws_num_props = ws_num_props
        self.mask_weight = mask_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # The parent builds a predictor of its own, whose federated loss would ask the training set for class counts.
        plain = cfg.clone()
        plain.defrost()
        plain.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
        result = super().from_config(plain, input_shape)
        head = cfg.MODEL.ROI_BOX_HEAD
        channels = result["res5"][-1].out_channels
        return result | {
            "box_predictor": DeticFastRCNNOutputLayers(cfg, ShapeSpec(channels=channels, height=1, width=1)),
            "with_image_labels": cfg.WITH_IMAGE_LABELS,
            "add_image_box": head.ADD_IMAGE_BOX,
            "image_box_size": head.IMAGE_BOX_SIZE,
            "ws_num_props": head.WS_NUM_PROPS,
            "mask_weight": cfg.MODEL.ROI_HEADS.MASK_WEIGHT,
        }

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
            ann_type: ``box``; any other is ``image``, ``caption`` or ``captiontag``.
            classifier_info: see `ClassifierInfo`.
        """
        maps = [features[name] for name in self.in_features]
        if not self.training:
            region_features = self._shared_roi_transform(maps, [each.proposal_boxes for each in proposals])
            detections, _ = self.box_predictor.inference_from_features(region_features.mean(dim=(2, 3)), proposals)
            return self.forward_with_given_boxes(features, detections), {}
        assert targets is not None, f"{type(self).__name__} needs ground truth in training: 'instances' in each input"
        if ann_type == "box":
            proposals = self.label_and_sample_proposals(proposals, targets)
        else:
            proposals = self.get_top_proposals(proposals)
        region_features = self._shared_roi_transform(maps, [each.proposal_boxes for each in proposals])
        predictions = self.box_predictor(region_features.mean(dim=(2, 3)), classifier_info=classifier_info)
        if ann_type != "box":
            labels = [each._pos_category_ids for each in targets]
            losses = self.box_predictor.image_label_losses(predictions, proposals, labels, classifier_info, ann_type)
        else:
            losses = self.box_predictor.losses(predictions[:2], proposals)
            if self.with_image_labels:
                losses["image_loss"] = predictions[0].new_zeros(())
        if self.mask_on:
            losses |= self._mask_losses(region_features, proposals, targets, ann_type)
        return proposals, losses

    def get_top_proposals(self, proposals: list[Instances]) -> list[Instances]:
        """Regions of image-labelled images."""
        size = self.image_box_size if self.add_image_box else None
        return top_proposals(proposals, self.ws_num_props, size, whole_at_least=_WHOLE_IMAGE)

    def _mask_losses(
        self, region_features: Tensor, proposals: list[Instances], targets: list[Instances], ann_type: str
    ) -> dict[str, Tensor]:
        if ann_type != "box" or not targets or not targets[0].has("gt_masks"):
            return {"loss_mask": region_features.new_zeros(())}  # all kinds of batches have the same losses
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        losses = self.mask_head(region_features[cat(masks)], foreground)
        return {name: loss * self.mask_weight for name, loss in losses.items()}
