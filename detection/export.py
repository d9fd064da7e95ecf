"""A two-stage detector as one graph without Python's control flow, ready for export (``prompt_pretrain.model_export``).

It computes what the model does for one image of a fixed size. Class embeddings are an input. Where the model goes
through classes, candidates and pyramid levels some at a time, the graph does so at once: the same results, but memory
for all regions times all classes.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from centernet.modeling.dense_heads.centernet import CenterNet
from centernet.modeling.dense_heads.locations import level_locations
from detection.api import Detector
from detection.cascade_roi_heads import DeticCascadeROIHeads
from detection.meta_arch import CustomRCNN
from detection.reset_classifier import reset_cls_test
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.modeling.poolers import ROIPooler
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import Exportable

__all__ = ["DetectorGraph", "detector_part"]

_SMALLEST_SIDE = 0.01  # pixels, of proposals
_EPSILON = 1e-8


class DetectorGraph(nn.Module):
    """Image (3, H, W) and class embeddings (C, D) to the N detections, by falling score.

    The image is as the model takes it: resized, values in [0, 255], channels in the order of ``INPUT.FORMAT``. Outputs
    are boxes (N, 4) as (x1, y1, x2, y2) in its pixels, scores (N,), classes (N,) and, with a mask head, mask
    probabilities (N, S, S) of the boxes.
    """

    def __init__(self, model: CustomRCNN, image_size: tuple[int, int], padded: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.heads: Any = model.roi_heads
        self.proposals: Any = model.proposal_generator
        self.image_size = image_size
        self.padding = (0, padded[1] - image_size[1], 0, padded[0] - image_size[0])

    def forward(self, image: Tensor, class_embeddings: Tensor) -> tuple[Tensor, ...]:
        heads = self.heads
        normalised = (image - self.model.pixel_mean) / self.model.pixel_std
        features = self.model.backbone(F.pad(normalised, self.padding)[None])
        boxes, objectness = self._propose(features)
        boxes, scores = self._classify([features[name] for name in heads.box_in_features], boxes, class_embeddings)
        if heads.mult_proposal_score:
            scores = (scores * objectness[:, None]).sqrt()
        scores = scores * (objectness >= 0)[:, None]  # places without a proposal
        boxes, scores, classes = self._suppress(self._clip(boxes), scores)
        if not heads.mask_on:
            return boxes, scores, classes
        pooled = _pool(heads.mask_pooler, [features[name] for name in heads.mask_in_features], boxes)
        return boxes, scores, classes, heads.mask_head.layers(pooled)[:, 0].sigmoid()

    def _propose(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (R, 4) and scores (R,), in which -1 marks places without a proposal."""
        generator = self.proposals
        decoder = generator.test_decoder
        _, distances, heatmaps = generator.centernet_head([features[name] for name in generator.in_features])
        levels = [_candidates(*level, decoder) for level in zip(heatmaps, distances, decoder.strides, strict=True)]
        boxes, scores = (torch.cat(part) for part in zip(*levels, strict=True))
        candidates = len(scores)
        if decoder.nms_thresh > 0 and not decoder.center_nms:
            # Places without a proposal have the least scores, so they suppress no proposal.
            order = nms(boxes, scores, decoder.nms_thresh)
        else:
            order = scores.topk(candidates).indices
        count = min(decoder.post_nms_topk, candidates) if decoder.post_nms_topk > 0 else candidates
        # A fixed number of places keeps all later shapes fixed.
        boxes, scores = boxes[order], scores[order]
        return F.pad(boxes, (0, 0, 0, count))[:count], F.pad(scores, (0, count), value=-1.0)[:count]

    def _classify(self, maps: Sequence[Tensor], boxes: Tensor, class_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (R, 4) of the last stage and the mean scores (R, C) of all."""
        heads = self.heads
        columns = F.pad(class_embeddings.t(), (0, 1))  # the last is the background's
        total: Any = 0.0
        for stage, predictor in enumerate(heads.box_predictor):
            if stage > 0:
                boxes = self._clip(boxes)
            found = heads.box_head[stage](_pool(heads.box_pooler, maps, boxes)).flatten(1)
            classifier: ZeroShotClassifier = predictor.cls_score
            weight = F.normalize(columns, dim=0) if classifier.norm_weight else columns
            logits = classifier.region_features(found) @ weight
            if classifier.cls_bias is not None:
                logits = logits + classifier.cls_bias
            total = total + (logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=1))
            boxes = predictor.box2box_transform.apply_deltas(predictor.bbox_pred(found), boxes)
        return boxes, (total / len(heads.box_predictor))[:, :-1]

    def _suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = self.heads.box_predictor[-1]
        passing = scores > last.test_score_thresh
        if self.heads.one_class_per_proposal:
            passing = passing & (scores == scores.amax(dim=1, keepdim=True))
        found = passing.nonzero()
        rows, classes = found[:, 0], found[:, 1]
        boxes, scores = boxes[rows], scores[passing]
        # Boxes of different classes never overlap once each class has a place of its own.
        width = float(max(self.image_size) + 1)
        keep = nms(boxes + (classes.to(boxes.dtype) * width)[:, None], scores, last.test_nms_thresh)
        if last.test_topk_per_image >= 0:
            keep = keep[: last.test_topk_per_image]
        return boxes[keep], scores[keep], classes[keep]

    def _clip(self, boxes: Tensor) -> Tensor:
        height, width = self.image_size
        return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def detector_part(detector: Detector, image_size: tuple[int, int]) -> Exportable:
    """The forward pass of a detector for images (height, width), which its inputs must be resized or padded to.

    Raises:
        InputError: a model that this graph does not cover, with the part of it that is in the way.
    """
    obstacle = _obstacle(detector)
    if obstacle:
        raise InputError(
            f"this detector cannot be exported: {obstacle}; CustomRCNN with CenterNet proposals (ONLY_PROPOSAL), "
            "DeticCascadeROIHeads and class embeddings can"
        )
    height, width = image_size
    model = copy.deepcopy(detector.model)
    _forget_classes(model)
    padded = detector.padded_size(torch.empty(3, height, width, device="meta"))
    embed_dim = model.roi_heads.box_predictor[0].cls_score.linear.out_features
    inputs = [
        {"image": _picture(image_size, seed), "class_embeddings": _rows(classes, embed_dim, seed)}
        for seed, classes in enumerate((5, 8))
    ]
    outputs: dict[str, tuple[int | str, ...]] = {
        "boxes": ("detections", 4),
        "scores": ("detections",),
        "classes": ("detections",),
    }
    if model.roi_heads.mask_on:
        outputs["masks"] = ("detections", *[2 * detector.cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION] * 2)
    return Exportable(
        name="detector",
        module=DetectorGraph(model, image_size, padded).eval(),
        inputs=inputs[0],
        sizes={"class_embeddings": {0: "classes"}},
        outputs=outputs,
        others=inputs[1:],
        facts={
            "image": f"{detector.cfg.INPUT.FORMAT}, values 0 to 255, {height} x {width} pixels",
            "boxes": "x1, y1, x2, y2 in pixels of that image",
            "embedding_width": embed_dim,
        },
    )


def _obstacle(detector: Detector) -> str | None:
    """What of the model has no graph here; None if all has."""
    model = detector.model
    if not isinstance(model, CustomRCNN):
        return f"MODEL.META_ARCHITECTURE {type(model).__name__} has no graph of its own here"
    heads, proposals = model.roi_heads, model.proposal_generator
    if not isinstance(proposals, CenterNet) or not proposals.only_proposal or not proposals.with_agn_hm:
        return f"MODEL.PROPOSAL_GENERATOR {type(proposals).__name__} is another than CenterNet with ONLY_PROPOSAL"
    if not isinstance(heads, DeticCascadeROIHeads):
        return f"MODEL.ROI_HEADS.NAME {type(heads).__name__} is not supported"
    if not all(isinstance(getattr(each, "cls_score", None), ZeroShotClassifier) for each in heads.box_predictor):
        return "its classifier is learned, so class embeddings cannot be an input"
    if heads.mask_on and not detector.cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        return "its masks depend on the class (MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK False), classes are an input"
    if heads.keypoint_on:
        return "it has a head for key points"
    return None


def _forget_classes(model: CustomRCNN) -> None:
    """Leave one class of zeros: stored embeddings of a large vocabulary would make the files large in vain."""
    width = model.roi_heads.box_predictor[0].cls_score.linear.out_features
    reset_cls_test(model, torch.zeros(width, 1), 1)


def _candidates(heatmap: Tensor, distances: Tensor, stride: int, decoder: Any) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) and scores (K,) of a level of one image, -1 where the heat is too small."""
    height, width = heatmap.shape[-2:]
    heat = heatmap.float().sigmoid()
    if decoder.center_nms:
        heat = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    heat = heat.flatten()
    scores = heat.sqrt() if decoder.take_root else heat
    scores = torch.where(heat > decoder.score_thresh, scores, torch.full_like(scores, -1.0))
    scores, chosen = scores.topk(min(decoder.pre_nms_topk, height * width))
    sides = distances.float().flatten(2)[0].t()[chosen] * stride  # (K, 4)
    centers = level_locations(height, width, stride, heatmap.device)[chosen]
    low, high = centers - sides[:, :2], centers + sides[:, 2:]
    return torch.cat((low, torch.maximum(high, low + _SMALLEST_SIDE)), dim=1), scores


def _pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(R, C, S, S) features of boxes (R, 4) of one image; every level pools all of them, then each box takes its own.

    Choosing first would save time but leave the number of boxes per level to the data, which runtimes handle badly.
    """
    rois = F.pad(boxes, (1, 0))
    pooled = [level(features, rois) for level, features in zip(pooler.level_poolers, maps, strict=True)]
    if len(pooled) == 1:
        return pooled[0]
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = torch.floor(pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + _EPSILON))
    levels = levels.clamp(min=pooler.min_level, max=pooler.max_level) - pooler.min_level
    chosen = pooled[0]
    for level, features in enumerate(pooled[1:], start=1):
        chosen = torch.where((levels == level)[:, None, None, None], features, chosen)
    return chosen


def _picture(image_size: tuple[int, int], seed: int) -> Tensor:
    """A picture with edges (3, H, W), as a model finds little in noise."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 8, 8, generator=generator) * 255
    return F.interpolate(small, size=image_size, mode="nearest")[0]


def _rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
