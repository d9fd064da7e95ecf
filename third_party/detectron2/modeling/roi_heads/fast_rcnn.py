"""Classification and box regression of regions, and their losses (Fast R-CNN, arXiv 1504.08083)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.wrappers import cat, cross_entropy
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.roi_heads.detections import fast_rcnn_inference, fast_rcnn_inference_single_image
from detectron2.structures.instances import Instances
from detectron2.utils.events import get_event_storage

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference", "fast_rcnn_inference_single_image"]

Predictions = tuple[Tensor, Tensor]  # scores (R, K + 1), deltas (R, 4 K) or (R, 4)


def _log_classification_stats(pred_logits: Tensor, gt_classes: Tensor, prefix: str = "fast_rcnn") -> None:
    """Put accuracy, that of foreground, and the share of foreground taken for background into the event storage.

    Args:
        pred_logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
    """
    total = gt_classes.numel()
    if total == 0:
        return
    background = pred_logits.shape[1] - 1
    predicted = pred_logits.argmax(dim=1)
    correct = predicted == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    counts = (correct, foreground, correct & foreground, (predicted == background) & foreground)
    num_correct, num_fg, num_fg_correct, num_missed = torch.stack([each.sum() for each in counts]).tolist()
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", num_correct / total)
    if num_fg > 0:
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", num_fg_correct / num_fg)
        storage.put_scalar(f"{prefix}/false_negative", num_missed / num_fg)


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers: ``cls_score`` for K classes and background, ``bbox_pred`` for box deltas."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
    ) -> None:
        """
        Args:
            input_shape: of the region features, or their number.
            num_classes: K, without background.
            test_score_thresh, test_nms_thresh, test_topk_per_image: see `fast_rcnn_inference_single_image`.
            cls_agnostic_bbox_reg: one box for all classes.
            smooth_l1_beta: where smooth L1 turns from a parabola into a line; 0 is L1.
            box_reg_loss_type: ``smooth_l1``, ``giou``, ``diou`` or ``ciou``.
            loss_weight: of both losses, or by name (``loss_cls``, ``loss_box_reg``), 1 for a name that is absent.
            use_sigmoid_ce: classes are independent (sigmoid), not exclusive (softmax).
            use_fed_loss: of the classes that no sample of the batch belongs to, only randomly drawn ones enter the
                loss; needs ``use_sigmoid_ce``.
            get_fed_loss_cls_weights: called once, returns (K,) weights to draw by.
            fed_loss_num_classes: how many classes, the batch's own among them, enter the loss.
        """
        super().__init__()
        if isinstance(input_shape, int):
            input_shape = ShapeSpec(channels=input_shape)
        input_size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        self.num_classes = num_classes
        self.cls_score = nn.Linear(input_size, num_classes + 1)
        self.bbox_pred = nn.Linear(input_size, num_boxes * len(box2box_transform.weights))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if isinstance(loss_weight, (int, float)):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            self.register_buffer("fed_loss_cls_weights", self._checked_fed_loss_weights(get_fed_loss_cls_weights))

    def _checked_fed_loss_weights(self, get_weights: Callable[[], Tensor] | None) -> Tensor:
        if not self.use_sigmoid_ce:
            raise ValueError("MODEL.ROI_BOX_HEAD.USE_FED_LOSS is for sigmoid scores: set USE_SIGMOID_CE to True")
        if get_weights is None:
            raise ValueError("the federated loss needs get_fed_loss_cls_weights, which returns a weight for each class")
        weights = get_weights()
        if len(weights) != self.num_classes:
            raise ValueError(
                f"the federated loss got weights of {len(weights)} classes ('class_image_count' of the first data set "
                f"in DATASETS.TRAIN), but MODEL.ROI_HEADS.NUM_CLASSES is {self.num_classes}"
            )
        return weights

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "get_fed_loss_cls_weights": lambda: _fed_loss_weights_of_training_data(cfg),
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
        }

    def forward(self, x: Tensor) -> Predictions:
        """Scores (R, K + 1) before softmax or sigmoid, and deltas (R, 4 K) or (R, 4), of R region features."""
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def losses(self, predictions: Predictions, proposals: Sequence[Instances]) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg``.

        Args:
            predictions: of `forward`, for all regions of all images.
            proposals: per image ``proposal_boxes``, ``gt_classes`` (K for background) and, where there is ground truth,
                ``gt_boxes``.
        """
        scores, deltas = predictions
        empty = scores.new_zeros(0)
        gt_classes = cat([each.gt_classes for each in proposals]) if proposals else empty.long()
        _log_classification_stats(scores, gt_classes)
        boxes, gt_boxes = empty.view(0, 4), empty.view(0, 4)
        if proposals:
            boxes = cat([each.proposal_boxes.tensor for each in proposals])
            assert not boxes.requires_grad, "proposals must have no gradient"
            # An image without ground truth has background only, of whose boxes nothing is asked.
            gt_boxes = cat(
                [(each.gt_boxes if each.has("gt_boxes") else each.proposal_boxes).tensor for each in proposals]
            )
        classify = self.sigmoid_cross_entropy_loss if self.use_sigmoid_ce else cross_entropy
        losses = {
            "loss_cls": classify(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross entropy, summed over classes (without background) and averaged over the R regions.

        Args:
            pred_class_logits: (R, K + 1).
            gt_classes: (R,) in [0, K].
        """
        if gt_classes.numel() == 0:
            return pred_class_logits.sum() * 0.0
        logits = pred_class_logits[:, :-1]
        target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(logits.dtype)  # background: no class
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.use_fed_loss:
            chosen = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, self.num_classes, self.fed_loss_cls_weights
            )
            counts = loss.new_zeros(self.num_classes + 1)
            counts[chosen] = 1
            loss = loss * counts[:-1]
        return loss.sum() / len(logits)

    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Tensor | None
    ) -> Tensor:
        """Different classes that enter the loss: those of ``gt_classes``, background included, and random others.

        Args:
            num_fed_loss_classes: how many in all; more if ``gt_classes`` has more.
            weight: (K,) weights of the draw, by default equal ones.
        """
        present = gt_classes.unique()
        if len(present) >= num_fed_loss_classes:
            return present
        chances = torch.ones(num_classes + 1, device=gt_classes.device)
        if weight is not None:
            chances[:-1] = weight.float()
        chances[-1] = 0  # background is no class to draw
        chances[present] = 0
        count = min(num_fed_loss_classes - len(present), int(torch.count_nonzero(chances)))
        return present if count == 0 else torch.cat((present, torch.multinomial(chances, count)))

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Loss of the foreground regions' boxes, divided by the number of all regions.

        By all, so that every foreground region weighs the same however many there are, as each does in the
        classification loss.

        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, 4 K) or (R, 4).
            gt_classes: (R,) in [0, K].
        """
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        box_dim = proposal_boxes.shape[1]
        if pred_deltas.shape[1] == box_dim:
            deltas = pred_deltas[foreground]
        else:
            deltas = pred_deltas.view(-1, self.num_classes, box_dim)[foreground, gt_classes[foreground]]
        loss = _dense_box_regression_loss(
            [proposal_boxes[foreground]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes[foreground]],
            torch.ones_like(foreground, dtype=torch.bool)[None],
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss / max(gt_classes.numel(), 1)

    def inference(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """`fast_rcnn_inference` of the decoded boxes and of the probabilities."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [each.image_size for each in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Per image (R_i, 4), the box predicted for the true class of each region, any for background."""
        if not proposals:
            return ()
        boxes, counts = self._decode(predictions, proposals)
        per_class = boxes.unflatten(1, (-1, 4))
        if per_class.shape[1] == 1:
            return per_class[:, 0].split(counts)
        gt_classes = cat([each.gt_classes for each in proposals]).clamp(0, per_class.shape[1] - 1)
        return per_class[torch.arange(len(gt_classes), device=gt_classes.device), gt_classes].split(counts)

    def predict_boxes(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Per image (R_i, 4 K) decoded boxes of each class, or (R_i, 4) of all classes."""
        if not proposals:
            return ()
        boxes, counts = self._decode(predictions, proposals)
        return boxes.split(counts)

    def _decode(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, list[int]]:
        """Boxes of all regions, and the number of regions of each image."""
        sources = cat([each.proposal_boxes.tensor for each in proposals])
        return self.box2box_transform.apply_deltas(predictions[1], sources), [len(each) for each in proposals]

    def predict_probs(self, predictions: Predictions, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Per image (R_i, K + 1) probabilities, background last."""
        scores = predictions[0]
        probs = scores.sigmoid() if self.use_sigmoid_ce else scores.softmax(dim=-1)
        return probs.split([len(each) for each in proposals])


def _fed_loss_weights_of_training_data(cfg: CfgNode) -> Tensor:
    # Needed for this loss alone: it brings image libraries.
    from detectron2.data.detection_utils import get_fed_loss_cls_weights

    return get_fed_loss_cls_weights(cfg.DATASETS.TRAIN, cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER)
