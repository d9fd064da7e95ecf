"""Region proposal network (Faster R-CNN, arXiv 1506.01497)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import Conv2d, cat
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.input_features import the_features
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures.boxes import Boxes, pairwise_iou
from detectron2.structures.image_list import ImageList
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from detectron2.utils.registry import Registry

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
Modules made as ``cls(cfg, input_shape)`` with a list of `ShapeSpec`. Called with a list of feature maps, they return a
list of objectness logits (N, A, H, W) and one of box deltas (N, 4 A, H, W), where A anchors start at each position.
"""


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The module that ``MODEL.RPN.HEAD_NAME`` names.

    Raises:
        KeyError: no head of that name is registered.
    """
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3×3 convolutions with ReLU, then one 1×1 convolution for logits and one for deltas; shared by all levels."""

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: Sequence[int] = (-1,)
    ) -> None:
        """
        Args:
            in_channels: of every feature map.
            num_anchors: A, at each position.
            box_dim: numbers predicted for each box.
            conv_dims: output channels of each 3×3 convolution; -1 for as many as its input has.
        """
        super().__init__()
        widths = [in_channels]
        for dim in conv_dims:
            if dim != -1 and dim <= 0:
                raise ValueError(f"MODEL.RPN.CONV_DIMS is {list(conv_dims)}; expected positive numbers, or -1")
            widths.append(widths[-1] if dim == -1 else dim)
        convs = [
            Conv2d(before, after, kernel_size=3, padding=1, activation=F.relu) for before, after in pairwise(widths)
        ]
        if len(convs) == 1:
            self.conv: nn.Module = convs[0]
        else:
            self.conv = nn.Sequential()
            for k, conv in enumerate(convs):
                self.conv.add_module(f"conv{k}", conv)
        self.objectness_logits = nn.Conv2d(widths[-1], num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(widths[-1], num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        channels = [shape.channels for shape in input_shape]
        if len(set(channels)) != 1:
            raise ValueError(f"MODEL.RPN.IN_FEATURES must name maps of equally many channels, these have {channels}")
        generator = build_anchor_generator(cfg, input_shape)
        num_anchors = generator.num_anchors
        if len(set(num_anchors)) != 1:
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR must give each level equally many anchors per position, it gives {num_anchors}"
            )
        return {
            "in_channels": channels[0],
            "num_anchors": num_anchors[0],
            "box_dim": generator.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level logits (N, A, H, W) and deltas (N, A · box_dim, H, W)."""
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Scores and refines anchors at every position; the best become proposals."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps, finest first.
            anchor_matcher: labels anchors by their IoU with ground truth.
            batch_size_per_image: anchors of each image in the loss, which is also divided by it.
            positive_fraction: largest share of foreground among them.
            pre_nms_topk, post_nms_topk: (in training, otherwise); proposals of each level before NMS, of each image
                after it.
            nms_thresh: IoU above which a worse proposal of the same level goes.
            min_box_size: proposals need longer sides, in pixels of the network's input.
            anchor_boundary_thresh: from 0 on, anchors that leave the image by at least as many pixels are not trained.
            loss_weight: of both losses, or by name (``loss_rpn_cls``, ``loss_rpn_loc``).
            box_reg_loss_type: ``smooth_l1``, ``giou``, ``diou`` or ``ciou``.
            smooth_l1_beta: where smooth L1 turns from a parabola into a line; 0 is L1.
        """
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}  # by self.training
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.anchor_boundary_thresh = anchor_boundary_thresh
        if isinstance(loss_weight, (int, float)):
            loss_weight = {"loss_rpn_cls": loss_weight, "loss_rpn_loc": loss_weight}
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        settings = cfg.MODEL.RPN
        shapes = the_features(input_shape, settings.IN_FEATURES, "MODEL.RPN.IN_FEATURES")
        return {
            "in_features": settings.IN_FEATURES,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(settings.IOU_THRESHOLDS, settings.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": Box2BoxTransform(weights=settings.BBOX_REG_WEIGHTS),
            "batch_size_per_image": settings.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": settings.POSITIVE_FRACTION,
            "pre_nms_topk": (settings.PRE_NMS_TOPK_TRAIN, settings.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (settings.POST_NMS_TOPK_TRAIN, settings.POST_NMS_TOPK_TEST),
            "nms_thresh": settings.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": settings.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": settings.LOSS_WEIGHT,
                "loss_rpn_loc": settings.BBOX_REG_LOSS_WEIGHT * settings.LOSS_WEIGHT,
            },
            "box_reg_loss_type": settings.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": settings.SMOOTH_L1_BETA,
        }

    def forward(
        self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """(proposals of each image, losses); no losses unless training.

        Args:
            gt_instances: ``gt_boxes`` of each image, in training.
        """
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        logit_maps, delta_maps = self.rpn_head(maps)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logit_maps]  # (N, H · W · A), in the order of anchors
        box_dim = self.anchor_generator.box_dim
        deltas = [
            x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # (N, H · W · A, box_dim)
            for x in delta_maps
        ]
        losses: dict[str, Tensor] = {}
        if self.training:
            assert gt_instances is not None, "RPN needs ground truth in training: 'instances' in each input"
            gt_labels, gt_boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Per image (R,) int8 labels and (R, 4) boxes to predict, of the R anchors of all levels.

        Labels: 1 foreground, 0 background, -1 not in the loss. Boxes are zeros in an image without ground truth.
        """
        joined = Boxes.cat(anchors)
        all_labels, all_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            quality = retry_if_cuda_oom(pairwise_iou)(gt_boxes, joined)
            matches, labels = retry_if_cuda_oom(self.anchor_matcher)(quality)
            matches, labels = matches.to(gt_boxes.device), labels.to(gt_boxes.device)
            if self.anchor_boundary_thresh >= 0:
                labels[~joined.inside_box(instances.image_size, self.anchor_boundary_thresh)] = -1
            all_labels.append(self._subsample_labels(labels))
            all_boxes.append(gt_boxes[matches].tensor if len(gt_boxes) else torch.zeros_like(joined.tensor))
        return all_labels, all_boxes

    def _subsample_labels(self, label: Tensor) -> Tensor:
        """``label``, changed in place so that all but the anchors of a random sample are -1."""
        positive, negative = subsample_labels(label, self.batch_size_per_image, self.positive_fraction, 0)
        label.fill_(-1)
        label[positive] = 1
        label[negative] = 0
        return label

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls`` and ``loss_rpn_loc``.

        Args:
            anchors: per level (R_l, 4).
            pred_objectness_logits: per level (N, R_l).
            gt_labels, gt_boxes: of `label_and_sample_anchors`.
            pred_anchor_deltas: per level (N, R_l, 4).
        """
        num_images = len(gt_labels)
        labels = torch.stack(gt_labels)  # (N, R)
        foreground, sampled = labels == 1, labels >= 0
        num_positive, num_negative = torch.stack((foreground.sum(), (labels == 0).sum())).tolist()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_positive / num_images)
        storage.put_scalar("rpn/num_neg_anchors", num_negative / num_images)

        loss_loc = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            foreground,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        loss_cls = F.binary_cross_entropy_with_logits(
            cat(pred_objectness_logits, dim=1)[sampled], labels[sampled].float(), reduction="sum"
        )
        # Not the number of anchors sampled: an image with few of them must not weigh more.
        normalizer = self.batch_size_per_image * num_images
        losses = {"loss_rpn_cls": loss_cls / normalizer, "loss_rpn_loc": loss_loc / normalizer}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """`find_top_rpn_proposals` of the decoded boxes. Without gradient: the second stage trains itself only."""
        return find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def _decode_proposals(self, anchors: list[Boxes], pred_anchor_deltas: list[Tensor]) -> list[Tensor]:
        """Per level (N, R_l, 4) boxes."""
        decoded = []
        for level_anchors, deltas in zip(anchors, pred_anchor_deltas, strict=True):
            num_images, _, box_dim = deltas.shape
            sources = level_anchors.tensor.expand(num_images, -1, -1).reshape(-1, box_dim)
            boxes = self.box2box_transform.apply_deltas(deltas.reshape(-1, box_dim), sources)
            decoded.append(boxes.view(num_images, -1, box_dim))
        return decoded
