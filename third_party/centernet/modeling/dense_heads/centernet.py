"""CenterNet on a feature pyramid, as proposal generator or one-stage detector (CenterNet2, arXiv 2103.07461)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from centernet.modeling.dense_heads.centernet_head import CenterNetHead
from centernet.modeling.dense_heads.decoding import Decoder
from centernet.modeling.dense_heads.locations import flatten_levels, level_sizes
from centernet.modeling.dense_heads.targets import TargetAssigner, Targets
from centernet.modeling.layers.heatmap_focal_loss import binary_heatmap_focal_loss, heatmap_focal_loss
from centernet.modeling.layers.iou_loss import IOULoss
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from detectron2.utils.comm import get_world_size

__all__ = ["CenterNet"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class CenterNet(nn.Module):
    """A dense head, its losses and the decoding of its predictions.

    The scores of proposals are probabilities, although their field is called ``objectness_logits``.
    """

    @configurable
    def __init__(
        self,
        num_classes: int = 80,
        in_features: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        score_thresh: float = 0.05,
        hm_min_overlap: float = 0.8,
        loc_loss_type: str = "giou",
        min_radius: float = 4,
        hm_focal_alpha: float = 0.25,
        hm_focal_beta: float = 4,
        loss_gamma: float = 2.0,
        reg_weight: float = 2.0,
        not_norm_reg: bool = True,
        with_agn_hm: bool = False,
        only_proposal: bool = False,
        as_proposal: bool = False,
        not_nms: bool = False,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
        sigmoid_clamp: float = 1e-4,
        ignore_high_fp: float = -1.0,
        center_nms: bool = False,
        sizes_of_interest: Sequence[Sequence[float]] = ((0, 80), (64, 160), (128, 320), (256, 640), (512, 10000000)),
        more_pos: bool = False,
        more_pos_thresh: float = 0.2,
        more_pos_topk: int = 9,
        pre_nms_topk_train: int = 1000,
        pre_nms_topk_test: int = 1000,
        post_nms_topk_train: int = 100,
        post_nms_topk_test: int = 100,
        nms_thresh_train: float = 0.6,
        nms_thresh_test: float = 0.6,
        no_reduce: bool = False,
        not_clamp_box: bool = False,
        centernet_head: nn.Module | None = None,
    ) -> None:
        """The arguments are the keys of ``MODEL.CENTERNET`` (``centernet.config``), where they are explained.

        Args:
            centernet_head: called with the feature maps; see `CenterNetHead.forward`.
        """
        super().__init__()
        if not len(in_features) == len(strides) == len(sizes_of_interest):
            raise ValueError(
                f"CenterNet got {len(in_features)} features, {len(strides)} strides and {len(sizes_of_interest)} sizes "
                f"of interest; expected one of each per level (MODEL.CENTERNET.IN_FEATURES, FPN_STRIDES, SOI)"
            )
        self.num_classes = num_classes
        self.in_features = tuple(in_features)
        self.strides = tuple(strides)
        self.hm_focal = {"alpha": hm_focal_alpha, "beta": hm_focal_beta, "gamma": loss_gamma}
        self.hm_focal |= {"sigmoid_clamp": sigmoid_clamp, "ignore_high_fp": ignore_high_fp}
        self.reg_weight = reg_weight
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.not_norm_reg = not_norm_reg
        self.with_agn_hm = with_agn_hm
        self.only_proposal = only_proposal
        self.as_proposal = as_proposal
        self.no_reduce = no_reduce
        self.iou_loss = IOULoss(loc_loss_type)
        self.centernet_head = centernet_head
        self.assigner = TargetAssigner(
            strides=self.strides,
            sizes_of_interest=sizes_of_interest,
            delta=(1 - hm_min_overlap) / (1 + hm_min_overlap),
            min_radius=min_radius,
            num_classes=1 if only_proposal else num_classes,
            clamp_centers=not_clamp_box,
            more_positives=(self._box_losses, more_pos_thresh, more_pos_topk) if more_pos else None,
        )
        shared = {"strides": self.strides, "score_thresh": score_thresh, "take_root": with_agn_hm}
        shared["center_nms"] = center_nms
        # Means of `count_targets` over more than this batch and its processes, for training in parts; or None.
        self.mean_counts: Tensor | None = None
        self.train_decoder = Decoder(
            pre_nms_topk=pre_nms_topk_train,
            post_nms_topk=post_nms_topk_train,
            nms_thresh=0.0 if not_nms else nms_thresh_train,
            **shared,
        )
        self.test_decoder = Decoder(
            pre_nms_topk=pre_nms_topk_test,
            post_nms_topk=post_nms_topk_test,
            nms_thresh=0.0 if not_nms else nms_thresh_test,
            **shared,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        node = cfg.MODEL.CENTERNET
        missing = [name for name in node.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.CENTERNET.IN_FEATURES names {', '.join(missing)}, but the backbone returns "
                f"{', '.join(input_shape)}"
            )
        return {
            "num_classes": node.NUM_CLASSES,
            "in_features": node.IN_FEATURES,
            "strides": node.FPN_STRIDES,
            "score_thresh": node.INFERENCE_TH,
            "hm_min_overlap": node.HM_MIN_OVERLAP,
            "loc_loss_type": node.LOC_LOSS_TYPE,
            "min_radius": node.MIN_RADIUS,
            "hm_focal_alpha": node.HM_FOCAL_ALPHA,
            "hm_focal_beta": node.HM_FOCAL_BETA,
            "loss_gamma": node.LOSS_GAMMA,
            "reg_weight": node.REG_WEIGHT,
            "not_norm_reg": node.NOT_NORM_REG,
            "with_agn_hm": node.WITH_AGN_HM,
            "only_proposal": node.ONLY_PROPOSAL,
            "as_proposal": node.AS_PROPOSAL,
            "not_nms": node.NOT_NMS,
            "pos_weight": node.POS_WEIGHT,
            "neg_weight": node.NEG_WEIGHT,
            "sigmoid_clamp": node.SIGMOID_CLAMP,
            "ignore_high_fp": node.IGNORE_HIGH_FP,
            "center_nms": node.CENTER_NMS,
            "sizes_of_interest": node.SOI,
            "more_pos": node.MORE_POS,
            "more_pos_thresh": node.MORE_POS_THRESH,
            "more_pos_topk": node.MORE_POS_TOPK,
            "pre_nms_topk_train": node.PRE_NMS_TOPK_TRAIN,
            "pre_nms_topk_test": node.PRE_NMS_TOPK_TEST,
            "post_nms_topk_train": node.POST_NMS_TOPK_TRAIN,
            "post_nms_topk_test": node.POST_NMS_TOPK_TEST,
            "nms_thresh_train": node.NMS_TH_TRAIN,
            "nms_thresh_test": node.NMS_TH_TEST,
            "no_reduce": node.NO_REDUCE,
            "not_clamp_box": cfg.INPUT.NOT_CLAMP_BOX,
            "centernet_head": CenterNetHead(cfg, [input_shape[name] for name in node.IN_FEATURES]),
        }

    def forward(
        self,
        images: ImageList,
        features_dict: dict[str, Tensor],
        gt_instances: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances] | None, dict[str, Tensor]]:
        """Proposals and losses in training, instances and no losses otherwise.

        Proposals, made with ONLY_PROPOSAL or AS_PROPOSAL only, have ``proposal_boxes`` and ``objectness_logits``, and
        in evaluation mode ``scores`` (the same numbers) and ``pred_classes`` too; other instances have ``pred_boxes``,
        ``scores`` and ``pred_classes``. Boxes are not clipped to the image.

        Args:
            gt_instances: per image ``gt_boxes`` and ``gt_classes``; needed in training.
        """
        class_logits, distances, object_logits = self.centernet_head([features_dict[name] for name in self.in_features])
        losses = {}
        if self.mean_counts is not None and level_sizes(distances) != self._sizes_of(images.tensor.shape[-2:]):
            raise ValueError(
                f"training in parts needs feature maps of one cell per stride, but those of an image of "
                f"{tuple(images.tensor.shape[-2:])} pixels have {level_sizes(distances)} cells with the strides "
                f"{tuple(self.strides)}; use one part"
            )
        if self.training:
            assert gt_instances is not None, "CenterNet needs ground truth in training: 'instances' in each input"
            losses = self.compute_losses(gt_instances, class_logits, distances, object_logits)
            if not (self.only_proposal or self.as_proposal):
                return None, losses
        return self.predict(images.image_sizes, class_logits, distances, object_logits), losses

    def compute_losses(
        self,
        gt_instances: Sequence[Instances],
        class_logits: Sequence[Tensor | None],
        distances: Sequence[Tensor],
        object_logits: Sequence[Tensor | None],
    ) -> dict[str, Tensor]:
        """Losses of the outputs of the head."""
        flat_distances = flatten_levels(distances)
        targets = self.assigner(gt_instances, level_sizes(distances), flat_distances.detach())
        return self.losses(
            targets,
            flat_distances,
            None if self.only_proposal else flatten_levels(class_logits),
            flatten_levels(object_logits).flatten() if self.with_agn_hm else None,
        )

    def losses(
        self, targets: Targets, distances: Tensor, class_logits: Tensor | None, object_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses by name of level-major predictions.

        Args:
            distances: (M, 4) in strides.
            class_logits: (M, C), unless ONLY_PROPOSAL.
            object_logits: (M,), if WITH_AGN_HM.
        Raises:
            FloatingPointError: distances that are not finite.
        """
        if not torch.isfinite(distances).all():
            raise FloatingPointError("CenterNet predicts box distances that are Inf or NaN. Training has diverged.")
        any_class = targets.heatmap.amax(dim=1)  # (M,)
        valid = (targets.distances.amax(dim=1) >= 0).nonzero().flatten()
        weights = torch.ones_like(any_class[valid]) if self.not_norm_reg else any_class[valid]
        if self.mean_counts is None:
            counts = torch.stack((weights.new_tensor(float(len(targets.pos_inds))), weights.sum()))
            counts = self._mean_over_processes(counts)
        else:
            counts = self.mean_counts
        num_positives, sum_weights = counts.clamp(min=1.0)

        losses = {}
        if not self.only_proposal:
            positive, negative = heatmap_focal_loss(
                class_logits, targets.heatmap, targets.pos_inds, targets.labels, **self.hm_focal
            )
            losses["loss_centernet_pos"] = self.pos_weight * positive / num_positives
            losses["loss_centernet_neg"] = self.neg_weight * negative / num_positives
        box_loss = self.iou_loss(distances[valid], targets.distances[valid], weights)
        losses["loss_centernet_loc"] = self.reg_weight * box_loss / sum_weights
        if self.with_agn_hm:
            positive, negative = binary_heatmap_focal_loss(object_logits, any_class, targets.pos_inds, **self.hm_focal)
            losses["loss_centernet_agn_pos"] = self.pos_weight * positive / num_positives
            losses["loss_centernet_agn_neg"] = self.neg_weight * negative / num_positives
        return losses

    def count_targets(self, gt_instances: Sequence[Instances], image_size: tuple[int, int]) -> Tensor:
        """(2,) number of positives and sum of the weights of locations, by whose means the losses are divided.

        Args:
            image_size: height and width of the padded batch.
        Raises:
            ValueError: positives depend on predictions (MORE_POS).
        """
        if self.assigner.more_positives is not None:
            raise ValueError("MODEL.CENTERNET.MORE_POS chooses positives by predictions: they cannot be counted before")
        targets = self.assigner(gt_instances, self._sizes_of(image_size))
        any_class = targets.heatmap.amax(dim=1)
        valid = targets.distances.amax(dim=1) >= 0
        weight = valid.sum() if self.not_norm_reg else any_class[valid].sum()
        return torch.stack((any_class.new_tensor(float(len(targets.pos_inds))), weight.to(any_class)))

    def _sizes_of(self, image_size: Sequence[int]) -> list[tuple[int, int]]:
        height, width = image_size
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def predict(
        self,
        image_sizes: Sequence[tuple[int, int]],
        class_logits: Sequence[Tensor | None],
        distances: Sequence[Tensor],
        object_logits: Sequence[Tensor | None],
    ) -> list[Instances]:
        """Proposals or detections of the outputs of the head."""
        object_maps = [logits.detach().float().sigmoid() for logits in object_logits] if self.with_agn_hm else None
        if self.only_proposal:
            heatmaps, object_maps = object_maps, None
        else:
            heatmaps = [logits.detach().float().sigmoid() for logits in class_logits]
        decoder = self.train_decoder if self.training else self.test_decoder
        results = decoder(heatmaps, [each.detach() for each in distances], image_sizes, object_maps)
        if self.only_proposal or self.as_proposal:
            for instances in results:
                self._make_proposals(instances)
        return results

    def _make_proposals(self, instances: Instances) -> None:
        """Rename the fields in place; training leaves no others, which ground truth would have to have too."""
        instances.proposal_boxes = instances.pred_boxes
        instances.objectness_logits = instances.scores
        for name in ("pred_boxes", "scores", "pred_classes") if self.training else ("pred_boxes",):
            instances.remove(name)

    def _box_losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self.iou_loss(predicted, target, reduction="none")

    def _mean_over_processes(self, values: Tensor) -> Tensor:
        if self.no_reduce or get_world_size() == 1:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values / get_world_size()
