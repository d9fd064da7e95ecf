"""Losses of image-labelled images against a slow obvious form, and what each option changes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from detection.image_losses import ImageLabelLoss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from prompt_pretrain.errors import InputError

COLUMNS = 6  # five classes and background
SIZES = (4, 3, 1)
LABELS = [[2, 0], [4], [1, 1, 3]]


def make_proposals() -> list[Instances]:
    generator = torch.Generator().manual_seed(0)
    result = []
    for size in SIZES:
        corner = torch.rand(size, 2, generator=generator) * 40
        boxes = torch.cat((corner, corner + 5 + 50 * torch.rand(size, 2, generator=generator)), dim=1)
        result.append(Instances((100, 120), proposal_boxes=Boxes(boxes)))
    return result


def make_scores(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(SIZES), COLUMNS, generator=generator).requires_grad_()


def compute(labels: list[list[int]] = LABELS, scores: Tensor | None = None, **options: Any) -> tuple[Tensor, dict]:
    scores = make_scores() if scores is None else scores
    loss = ImageLabelLoss(image_loss_weight=1.0, **options)
    predictions = (scores, torch.zeros(len(scores), 4), make_scores(2))
    with EventStorage() as storage:
        losses = loss(predictions, make_proposals(), labels)
    return losses["image_loss"], {name: value for name, (value, _) in storage.latest().items()}


def slow_loss(kind: str, *, drop_last: bool = True, background: bool = True, mutual_negatives: bool = True) -> Tensor:
    total = torch.zeros(())
    for scores, proposals, labels in zip(make_scores().split(SIZES), make_proposals(), LABELS, strict=True):
        for label in labels:
            keep = [
                c
                for c in range(COLUMNS)
                if (background or c < COLUMNS - 1) and (mutual_negatives or c == label or c not in labels)
            ]
            target = F.one_hot(torch.tensor(label), COLUMNS).float()[keep]
            per_row = torch.stack(
                [F.binary_cross_entropy_with_logits(row[keep], target, reduction="sum") for row in scores]
            )
            areas = proposals.proposal_boxes.area()
            areas = areas[:-1] if drop_last and len(areas) > 1 else areas
            row = {
                "max_size": areas.argmax(),
                "max_score": scores[:, label].argmax(),
                "first": 0,
                "image": -1,
                "min_loss": per_row.argmin(),
            }[kind]
            total = total + per_row[row] / len(labels) / len(SIZES)
    return total


@pytest.mark.parametrize("kind", ["max_size", "max_score", "first", "image", "min_loss"])
@pytest.mark.parametrize("options", [{}, {"background": False}, {"mutual_negatives": False}, {"drop_last": False}])
def test_loss_equals_the_slow_form(kind: str, options: dict[str, bool]) -> None:
    found, _ = compute(image_label_loss=kind, add_image_box=True, **options)
    assert_close(found, slow_loss(kind, **options))


@pytest.mark.parametrize("kind", ["wsddn", "wsod"])
def test_weakly_supervised_loss_sums_over_regions(kind: str) -> None:
    found, _ = compute(image_label_loss=kind, with_softmax_prop=True)
    total = torch.zeros(())
    for scores, shares, labels in zip(make_scores().split(SIZES), make_scores(2).split(SIZES), LABELS, strict=True):
        image = (scores.sigmoid() * shares.softmax(dim=0)).sum(dim=0)
        for label in labels:
            target = F.one_hot(torch.tensor(label), COLUMNS).float()
            total = total + F.binary_cross_entropy(image, target) / len(labels) / len(SIZES)
    assert_close(found, total)


def test_images_without_labels_or_regions_add_nothing() -> None:
    none, _ = compute([[], [], []])
    assert none.item() == 0
    none.backward()
    some, _ = compute([[], [4], []])
    scores = make_scores()
    predictions = (scores, torch.zeros(len(scores), 4))
    empty = [make_proposals()[0][:0], make_proposals()[1]]
    with EventStorage():
        found = ImageLabelLoss(image_loss_weight=1.0)((scores[4:7], predictions[1][4:7]), empty, [[2], [4]])
    assert_close(found["image_loss"] * 2 / 3, some)


def test_labels_of_no_image_at_all() -> None:
    with EventStorage():
        losses = ImageLabelLoss()((torch.zeros(0, COLUMNS), torch.zeros(0, 4)), [], [])
    assert all(loss.item() == 0 for loss in losses.values())


def test_selection_is_reported() -> None:
    _, stats = compute([[], [4], []], image_label_loss="image", add_image_box=True)
    box = make_proposals()[1].proposal_boxes[2]
    centre = box.get_centers()[0]
    assert stats["pool_stats"] == 2
    assert stats["stats_select_size"] == pytest.approx(box.area().item() / 12_000, rel=1e-5)
    assert stats["stats_select_x"] == pytest.approx(centre[0].item() / 120, rel=1e-5)
    assert stats["stats_select_y"] == pytest.approx(centre[1].item() / 100, rel=1e-5)
    assert stats["stats_max_label_score"] == pytest.approx(make_scores()[6, 4].sigmoid().item(), rel=1e-5)


def test_captions_are_compared_with_the_image_box() -> None:
    captions = torch.zeros(len(SIZES), 4)
    scores = torch.cat((make_scores(), torch.randn(sum(SIZES), len(SIZES))), dim=1)
    loss = ImageLabelLoss(image_loss_weight=1.0, add_image_box=True, caption_weight=0.5)
    with EventStorage():
        found = loss((scores, scores[:, :4]), make_proposals(), LABELS, (None, None, captions), "caption")
    last = scores[[3, 6, 7], COLUMNS:]
    expected = 0.5 * F.binary_cross_entropy_with_logits(last, torch.eye(3), reduction="sum") / 3
    assert_close(found["image_loss"], expected)


def test_captions_of_another_process_are_refused() -> None:
    captions = torch.ones(len(SIZES), 4)
    scores = torch.zeros(sum(SIZES), COLUMNS + len(SIZES))
    loss = ImageLabelLoss(add_image_box=True, sync_caption_batch=True)
    with pytest.raises(AssertionError, match="captions of process 0"), EventStorage():
        loss((scores, scores[:, :4]), make_proposals(), LABELS, (None, None, captions), "captiontag")


def test_wrong_options_and_labels_are_errors() -> None:
    with pytest.raises(InputError, match="IMAGE_LABEL_LOSS is 'biggest'; expected one of max_size"):
        ImageLabelLoss(image_label_loss="biggest")
    with pytest.raises(InputError, match="SOFTMAX_WEAK_LOSS is for .* 'max_size', not 'first'"):
        ImageLabelLoss(image_label_loss="first", softmax_weak_loss=True)
    with pytest.raises(InputError, match="'wsddn' needs .*WITH_SOFTMAX_PROP"):
        ImageLabelLoss(image_label_loss="wsddn")
    with pytest.raises(InputError, match="set .*ADD_IMAGE_BOX"):
        ImageLabelLoss(image_label_loss="image")
    with pytest.raises(InputError, match=r"label 5, but the classifier has 5 classes \(0 to 4\)"):
        compute([[1], [5], []])
    with pytest.raises(InputError, match="captions are compared with the image box"), EventStorage():
        scores = torch.zeros(sum(SIZES), COLUMNS + 3)
        ImageLabelLoss()((scores, scores), make_proposals(), LABELS, (None, None, torch.zeros(3, 2)), "caption")
