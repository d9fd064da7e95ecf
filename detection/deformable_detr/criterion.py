"""Matching of predictions to objects, and the losses of box-annotated and of image-labelled batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds
from detection.deformable_detr.model import Prediction
from detectron2.utils import comm
from prompt_pretrain.errors import InputError

_GAMMA = 2.0  # of the focal loss


class Target(NamedTuple):
    """Objects of one image: labels (G,) int64 and boxes (G, 4) as (cx, cy, w, h), shares of the image."""

    labels: Tensor
    boxes: Tensor


class HungarianMatcher(nn.Module):
    """The one-to-one assignment of objects to predictions of least total cost."""

    def __init__(
        self, cost_class: float = 2.0, cost_bbox: float = 5.0, cost_giou: float = 2.0, focal_alpha: float = 0.25
    ) -> None:
        super().__init__()
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou
        self.focal_alpha = focal_alpha

    @torch.no_grad()
    def forward(self, predicted: Prediction, targets: Sequence[Target]) -> list[tuple[Tensor, Tensor]]:
        """For each image the indices of matched predictions and of their objects, (min(Q, G),) each."""
        costs = [self._cost(*image) for image in zip(predicted.logits, predicted.boxes, targets, strict=True)]
        matches = []
        for cost in costs:
            on_host = cost.cpu()
            if not torch.isfinite(on_host).all():
                raise FloatingPointError(
                    "Deformable DETR predicts boxes or scores that are not finite; lower SOLVER.BASE_LR or check "
                    "MODEL.WEIGHTS and the annotations"
                )
            rows, columns = linear_sum_assignment(on_host.numpy())
            matches.append((torch.as_tensor(rows).to(cost.device), torch.as_tensor(columns).to(cost.device)))
        return matches

    def _cost(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        """(Q, G) cost; that of a class is the change of its focal loss when the prediction becomes a positive."""
        picked = logits.float()[:, target.labels]
        probability = picked.sigmoid()
        positive = self.focal_alpha * (1 - probability) ** _GAMMA * F.softplus(-picked)
        negative = (1 - self.focal_alpha) * probability**_GAMMA * F.softplus(picked)
        distance = torch.cdist(boxes.float(), target.boxes, p=1)
        overlap = generalized_box_iou(corners(boxes.float()), corners(target.boxes))
        return self.cost_class * (positive - negative) + self.cost_bbox * distance - self.cost_giou * overlap


class SetCriterion(nn.Module):
    """Focal, L1 and GIoU losses of all decoder layers and the first stage.

    Args:
        weights: factors of ``loss_ce``, ``loss_bbox`` and ``loss_giou``.
        fed_loss_weight: (C,) sampling weights of the classes for the federated loss (detic.md, section 6), which then
            counts only the classes of the batch and sampled negatives, ``fed_loss_num_cat`` together; None for all.
    """

    fed_loss_weight: Tensor | None

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        focal_alpha: float = 0.25,
        fed_loss_weight: Tensor | None = None,
        fed_loss_num_cat: int = 50,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        self.focal_alpha = focal_alpha
        self.fed_loss_num_cat = fed_loss_num_cat
        self.register_buffer("fed_loss_weight", fed_loss_weight)
        # Objects per batch, averaged over more than this batch and its processes, for training in parts; or None.
        self.mean_count: Tensor | None = None

    def forward(
        self, layers: Sequence[Prediction], first_stage: Prediction | None, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Weighted losses ``loss_ce``, ``loss_bbox``, ``loss_giou`` of the last layer.

        Those of other decoder layers have the suffix ``_{layer}``, those of the first stage ``_enc``: it is trained
        with every object labelled 0.
        """
        count = self._num_boxes(targets, layers[-1].boxes.device)
        named = {f"_{i}": layer for i, layer in enumerate(layers[:-1])} | {"": layers[-1]}
        losses = {}
        for suffix, layer in named.items():
            losses |= self._losses(layer, targets, count, suffix)
        if first_stage is not None:
            objects = [Target(torch.zeros_like(target.labels), target.boxes) for target in targets]
            losses |= self._losses(first_stage, objects, count, "_enc")
        return losses

    def _num_boxes(self, targets: Sequence[Target], device: torch.device) -> Tensor:
        """Objects per process, averaged over processes, at least 1."""
        if self.mean_count is not None:
            return self.mean_count.clamp(min=1)
        count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
        world = comm.get_world_size()
        if world > 1:
            torch.distributed.all_reduce(count)
        return (count / world).clamp(min=1)

    def _losses(
        self, predicted: Prediction, targets: Sequence[Target], count: Tensor, suffix: str
    ) -> dict[str, Tensor]:
        matches = self.matcher(predicted, targets)
        image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(matches)])
        row = torch.cat([rows for rows, _ in matches])
        labels = torch.cat([target.labels[columns] for target, (_, columns) in zip(targets, matches, strict=True)])
        boxes = torch.cat([target.boxes[columns] for target, (_, columns) in zip(targets, matches, strict=True)])
        found = predicted.boxes[image, row].float()
        losses = {
            "loss_ce": self._class_loss(predicted.logits, image, row, labels),
            "loss_bbox": F.l1_loss(found, boxes, reduction="sum"),
            "loss_giou": generalized_box_iou_loss(corners(found), corners(boxes), reduction="sum"),
        }
        return {name + suffix: loss * self.weights[name] / count for name, loss in losses.items()}

    def _class_loss(self, logits: Tensor, image: Tensor, row: Tensor, labels: Tensor) -> Tensor:
        """Sum of focal losses over all predictions and the (federated) classes."""
        logits = logits.float()
        if self.fed_loss_weight is None:
            truth = torch.zeros_like(logits)
            truth[image, row, labels] = 1
        else:
            classes = get_fed_loss_inds(labels, self.fed_loss_num_cat, self.num_classes, self.fed_loss_weight)
            logits = logits[..., classes]
            truth = torch.zeros_like(logits)
            truth[image, row] = (labels[:, None] == classes).to(logits.dtype)
        return sigmoid_focal_loss(logits, truth, alpha=self.focal_alpha, gamma=_GAMMA, reduction="sum")


def image_label_loss(layers: Sequence[Prediction], image_labels: Sequence[Sequence[int]]) -> Tensor:
    """Binary cross-entropy of the largest predicted box of each layer and image against each of its labels.

    Labels of one image count each other as negatives, as in Detic. Summed over layers and classes, averaged over the
    labels of an image (none: 0) and over images.

    Raises:
        InputError: a label that is no class of the model.
    """
    total = layers[-1].logits.sum() * 0.0
    num_classes = layers[-1].logits.shape[-1]
    for predicted in layers:
        largest = predicted.boxes[..., 2:].prod(dim=-1).argmax(dim=1)
        for image, labels in enumerate(image_labels):
            if len(labels) == 0:
                continue
            _check_labels(labels, num_classes)
            logits = predicted.logits[image, largest[image]].float()
            # For each label: the sum over classes with that label alone as positive.
            total = total + F.softplus(logits).sum() - logits[list(labels)].mean()
    return total / len(image_labels)


def _check_labels(labels: Sequence[int], num_classes: int) -> None:
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise InputError(
            f"image label {wrong[0]} is no class: MODEL.DETR.NUM_CLASSES is {num_classes}; give the data set's class "
            f"count, or a data set of these classes"
        )


def corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) to (x0, y0, x1, y1)."""
    return box_convert(boxes, "cxcywh", "xyxy")
