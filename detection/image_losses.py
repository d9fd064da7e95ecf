"""What Detic learns from images that have labels or captions but no boxes (arXiv 2201.02605, section 3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detectron2.structures import Instances
from detectron2.utils.comm import get_rank
from detectron2.utils.events import get_event_storage
from prompt_pretrain.errors import InputError

__all__ = ["ClassifierInfo", "ImageLabelLoss"]

# Rows to compare with in place of the stored classes; sampled classes and the map to their columns; caption rows.
ClassifierInfo = tuple[Tensor | None, tuple[Tensor, Tensor] | None, Tensor | None]
_WEAKLY_SUPERVISED = ("wsod", "wsddn")
_SMALLEST = 1e-10  # image-level probabilities stay this far from 0 and 1


@dataclass(frozen=True)
class _Labels:
    """The labels of all images that have any, one after the other.

    Attributes:
        image: (L,) position of the image in the batch.
        column: (L,) the label's column among the scores.
        weight: (L,) 1 / number of labels of the image / number of images.
    """

    image: Tensor
    column: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ImageLabelLoss:
    """Losses of image-labelled images: for each label one region (or all) is asked to be of that class and no other.

    Attributes:
        image_label_loss: which region: ``max_size`` the largest proposal, ``max_score`` the one that scores highest for
            the label, ``first`` the best proposal, ``image`` the image box, ``min_loss`` that with the smallest loss;
            ``wsddn`` or ``wsod``: all, each by its share in a softmax over the proposals (arXiv 1511.02853).
        image_loss_weight: of label and caption loss together.
        dynamic_classifier: scores are of sampled classes, as ``classifier_info`` says.
        sync_caption_batch: caption rows come from all processes, their last column says which.
        caption_weight: of the caption loss.
        neg_cap_weight: of other images' captions, with ``sync_caption_batch``.
        add_image_box: the last region of each image is its image box.
        softmax_weak_loss: cross entropy of the region instead of binary ones; for ``max_size``.
        with_softmax_prop: predictions hold the proposal scores that ``wsddn`` and ``wsod`` need.
        drop_last: as published, ``max_size`` never selects the last region, even where it is no image box.
        background: as published, the background column is one of the classes that a region shall not be.
        mutual_negatives: as published, each label of an image is a negative of the others.
    """

    image_label_loss: str = "max_size"
    image_loss_weight: float = 0.1
    dynamic_classifier: bool = False
    sync_caption_batch: bool = False
    caption_weight: float = 1.0
    neg_cap_weight: float = 1.0
    add_image_box: bool = False
    softmax_weak_loss: bool = False
    with_softmax_prop: bool = False
    drop_last: bool = True
    background: bool = True
    mutual_negatives: bool = True

    def __post_init__(self) -> None:
        known = (*_SELECTIONS, *_WEAKLY_SUPERVISED)
        key = "MODEL.ROI_BOX_HEAD.IMAGE_LABEL_LOSS"
        if self.image_label_loss and self.image_label_loss not in known:
            raise InputError(f"{key} is {self.image_label_loss!r}; expected one of {', '.join(known)}")
        if self.softmax_weak_loss and self.image_label_loss != "max_size":
            raise InputError(
                f"MODEL.ROI_BOX_HEAD.SOFTMAX_WEAK_LOSS is for {key} 'max_size', not {self.image_label_loss!r}"
            )
        if self.image_label_loss in _WEAKLY_SUPERVISED and not self.with_softmax_prop:
            raise InputError(f"{key} {self.image_label_loss!r} needs MODEL.ROI_BOX_HEAD.WITH_SOFTMAX_PROP True")
        if self.image_label_loss == "image" and not self.add_image_box:
            raise InputError(f"{key} 'image' selects the image box: set MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX to True")

    def __call__(
        self,
        predictions: tuple[Tensor, ...],
        proposals: Sequence[Instances],
        image_labels: Sequence[Sequence[int]],
        classifier_info: ClassifierInfo = (None, None, None),
        ann_type: str = "image",
    ) -> dict[str, Tensor]:
        """``image_loss``, and zeros as ``loss_cls`` and ``loss_box_reg``, which box-annotated batches have.

        Args:
            predictions: of the predictor's ``forward``, for all regions of all images.
            proposals: per image ``proposal_boxes``.
            image_labels: per image its classes.
            classifier_info: see `ClassifierInfo`.
            ann_type: ``image``; with captions ``caption``, which has no labels, or ``captiontag``, which has both.
        Raises:
            InputError: a label beyond the classes.
        """
        scores = predictions[0]
        sizes = [len(each) for each in proposals]
        captions = classifier_info[2] if "caption" in ann_type else None
        label_loss = caption_loss = scores.sum() * 0.0
        if captions is not None:
            caption_loss = caption_loss + self._caption_loss(scores[:, -len(captions) :], sizes, captions)
            scores = scores[:, : -len(captions)]
        if ann_type != "caption":
            labels = self._labels(image_labels, sizes, scores, classifier_info[1])
            if labels is not None:
                weak = self.image_label_loss in _WEAKLY_SUPERVISED
                method = self._weakly_supervised_loss if weak else self._selected_region_loss
                label_loss = label_loss + method(scores, predictions, proposals, sizes, labels)
        storage = get_event_storage()
        storage.put_scalar("stats_l_image", label_loss.item())
        if "caption" in ann_type:
            storage.put_scalar("stats_l_caption", caption_loss.item())
        zero = scores.new_zeros(())
        return {
            "image_loss": (label_loss + caption_loss) * self.image_loss_weight,
            "loss_cls": zero,
            "loss_box_reg": zero.clone(),
        }

    def _labels(
        self,
        image_labels: Sequence[Sequence[int]],
        sizes: Sequence[int],
        scores: Tensor,
        sampled: tuple[Tensor, Tensor] | None,
    ) -> _Labels | None:
        """The labels of images with regions; None without any."""
        entries = [
            (image, label, 1.0 / len(labels) / len(sizes))
            for image, (labels, size) in enumerate(zip(image_labels, sizes, strict=True))
            for label in labels
            if size > 0
        ]
        if not entries:
            return None
        images, classes, weights = zip(*entries, strict=True)
        num_classes = scores.shape[1] - 1 if not self.dynamic_classifier else len(sampled[1]) - 1
        if not 0 <= min(classes) <= max(classes) < num_classes:
            wrong = next(label for label in classes if not 0 <= label < num_classes)
            raise InputError(
                f"an image has label {wrong}, but the classifier has {num_classes} classes (0 to {num_classes - 1}): "
                "give the class embeddings and MODEL.ROI_HEADS.NUM_CLASSES of the image-labelled data set's classes"
            )
        columns = torch.tensor(classes, device=scores.device)
        if self.dynamic_classifier:
            columns = sampled[1][columns]
            get_event_storage().put_scalar("stats_label", columns[-1].item())
        return _Labels(torch.tensor(images, device=scores.device), columns, torch.tensor(weights, device=scores.device))

    def _binary_loss(self, scores: Tensor, labels: Tensor, images: Tensor, all_labels: _Labels) -> Tensor:
        """(L, columns) binary cross entropy of scores (L, columns), 1 expected at the label, 0 elsewhere."""
        target = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
        loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        return self._without_columns(loss, target, images, all_labels)

    def _without_columns(self, loss: Tensor, target: Tensor, images: Tensor, labels: _Labels) -> Tensor:
        """Loss (L, columns) without what the options leave out."""
        if not self.background:
            loss = F.pad(loss[:, :-1], (0, 1))
        if not self.mutual_negatives:
            present = loss.new_zeros(int(labels.image.max()) + 1, loss.shape[1])
            present[labels.image, labels.column] = 1
            loss = loss * (1 - (present[images] - target).clamp(min=0))
        return loss

    def _selected_region_loss(
        self,
        scores: Tensor,
        predictions: tuple[Tensor, ...],
        proposals: Sequence[Instances],
        sizes: Sequence[int],
        labels: _Labels,
    ) -> Tensor:
        select = _SELECTIONS[self.image_label_loss]
        offsets = torch.tensor([0, *accumulate(sizes)][:-1], device=scores.device)
        with torch.no_grad():
            selected = select(self, scores, proposals, sizes, labels)  # (L,) region within its image
            _put_selection(selected[-1], proposals[int(labels.image[-1])], scores, labels, offsets)
        rows = scores[offsets[labels.image] + selected]
        if self.softmax_weak_loss:
            losses = F.cross_entropy(rows, labels.column, reduction="none")
        else:
            losses = self._binary_loss(rows, labels.column, labels.image, labels).sum(dim=1)
        return (losses * labels.weight).sum()

    def _largest(self, scores: Tensor, proposals: Sequence[Instances], sizes: Sequence[int], labels: _Labels) -> Tensor:
        areas = [each.proposal_boxes.area() for each in proposals]
        if self.drop_last:
            areas = [each[:-1] if len(each) > 1 else each for each in areas]
        return pad_sequence(areas, batch_first=True, padding_value=-1.0).argmax(dim=1)[labels.image]

    def _best_scored(
        self, scores: Tensor, proposals: Sequence[Instances], sizes: Sequence[int], labels: _Labels
    ) -> Tensor:
        columns = [scores[:, labels.column].split(list(sizes))[i][:, n] for n, i in enumerate(labels.image.tolist())]
        return pad_sequence(columns, batch_first=True, padding_value=-torch.inf).argmax(dim=1)

    def _first(self, scores: Tensor, proposals: Sequence[Instances], sizes: Sequence[int], labels: _Labels) -> Tensor:
        return torch.zeros_like(labels.image)

    def _last(self, scores: Tensor, proposals: Sequence[Instances], sizes: Sequence[int], labels: _Labels) -> Tensor:
        return torch.tensor(sizes, device=scores.device)[labels.image] - 1

    def _smallest_loss(
        self, scores: Tensor, proposals: Sequence[Instances], sizes: Sequence[int], labels: _Labels
    ) -> Tensor:
        selected = []
        regions = scores.split(list(sizes))
        for label, image in zip(labels.column, labels.image, strict=True):
            candidates = regions[image]
            losses = self._binary_loss(candidates, label.expand(len(candidates)), image.expand(len(candidates)), labels)
            selected.append(losses.sum(dim=1).argmin())
        return torch.stack(selected)

    def _weakly_supervised_loss(
        self,
        scores: Tensor,
        predictions: tuple[Tensor, ...],
        proposals: Sequence[Instances],
        sizes: Sequence[int],
        labels: _Labels,
    ) -> Tensor:
        prop_scores = predictions[2].split(list(sizes))
        products = [
            each.sigmoid() * shares.softmax(dim=0)
            for each, shares in zip(scores.split(list(sizes)), prop_scores, strict=True)
        ]
        images = torch.stack([each.sum(dim=0) for each in products]).clamp(_SMALLEST, 1 - _SMALLEST)
        probs = images[labels.image]  # (L, columns)
        target = F.one_hot(labels.column, probs.shape[1]).to(probs.dtype)
        losses = F.binary_cross_entropy(probs, target, reduction="none")
        losses = self._without_columns(losses, target, labels.image, labels).mean(dim=1)
        with torch.no_grad():
            last = int(labels.image[-1])
            selected = products[last][:, labels.column[-1]].argmax()
            offsets = torch.tensor([0, *accumulate(sizes)][:-1], device=scores.device)
            _put_selection(selected, proposals[last], scores, labels, offsets)
        return (losses * labels.weight).sum()

    def _caption_loss(self, scores: Tensor, sizes: Sequence[int], captions: Tensor) -> Tensor:
        """Each image box shall match its own caption and no other.

        Args:
            scores: (R, m) logits of the captions (m rows).
        """
        if not self.add_image_box:
            raise InputError("captions are compared with the image box: set MODEL.ROI_BOX_HEAD.ADD_IMAGE_BOX to True")
        images = [image for image, size in enumerate(sizes) if size > 0]
        if not images:
            return scores.sum() * 0.0
        ends = list(accumulate(sizes))
        rows = scores[torch.tensor([ends[image] - 1 for image in images], device=scores.device)]
        own = torch.tensor(images, device=scores.device)
        if self.sync_caption_batch:
            rank = get_rank()
            own = own + len(sizes) * rank
            stored = captions[own, -1]
            assert bool((stored == rank).all()), f"captions of process {rank} are marked {stored.tolist()}"
        target = F.one_hot(own, rows.shape[1]).to(rows.dtype)
        losses = F.binary_cross_entropy_with_logits(rows, target, reduction="none")
        if self.sync_caption_batch:
            losses = losses * torch.where(target > 0, 1.0, self.neg_cap_weight)
        return losses.sum() * self.caption_weight / len(sizes)


_Selection = Callable[[ImageLabelLoss, Tensor, Sequence[Instances], Sequence[int], _Labels], Tensor]
_SELECTIONS: dict[str, _Selection] = {
    "max_size": ImageLabelLoss._largest,
    "max_score": ImageLabelLoss._best_scored,
    "first": ImageLabelLoss._first,
    "image": ImageLabelLoss._last,
    "min_loss": ImageLabelLoss._smallest_loss,
}


def _put_selection(selected: Tensor, proposals: Instances, scores: Tensor, labels: _Labels, offsets: Tensor) -> None:
    """Put the last label's region into the event storage: its row, size and centre relative to the image, score."""
    height, width = proposals.image_size
    row = offsets[labels.image[-1]] + selected
    x0, y0, x1, y1 = proposals.proposal_boxes.tensor[selected].unbind()
    score = scores[row, labels.column[-1]].sigmoid()
    index, x0, y0, x1, y1, score = torch.stack((selected.to(x0.dtype), x0, y0, x1, y1, score.to(x0.dtype))).tolist()
    storage = get_event_storage()
    storage.put_scalar("pool_stats", index)
    storage.put_scalar("stats_select_size", (x1 - x0) * (y1 - y0) / max(height * width, 1))
    storage.put_scalar("stats_select_x", (x0 + x1) / 2 / max(width, 1))
    storage.put_scalar("stats_select_y", (y0 + y1) / 2 / max(height, 1))
    storage.put_scalar("stats_max_label_score", score)
