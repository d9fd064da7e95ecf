"""Losses and inference of the box predictor beyond the recorded numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from detection.box_predictor import DeticFastRCNNOutputLayers
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from prompt_pretrain.errors import InputError

CLASSES, WIDTH = 12, 8


def make(**options: Any) -> DeticFastRCNNOutputLayers:
    settings = {
        "num_classes": CLASSES,
        "box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        "cls_agnostic_bbox_reg": True,
        "use_sigmoid_ce": True,
    }
    return DeticFastRCNNOutputLayers(WIDTH, **settings | options)


def make_zero_shot(**options: Any) -> DeticFastRCNNOutputLayers:
    classifier = ZeroShotClassifier(WIDTH, num_classes=CLASSES, zs_weight_path="rand", zs_weight_dim=6)
    return make(use_zeroshot_cls=True, cls_score=classifier, **options)


def counts_file(folder: Path, counts: list[int]) -> str:
    file = folder / "counts.json"
    file.write_text(json.dumps([{"id": i + 1, "image_count": count} for i, count in enumerate(counts)]))
    return str(file)


def regions(classes: list[int]) -> Instances:
    boxes = torch.tensor([[10.0, 10, 60, 50]]).repeat(len(classes), 1)
    return Instances(
        (100, 120),
        proposal_boxes=Boxes(boxes),
        gt_boxes=Boxes(boxes + 2),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        objectness_logits=torch.full((len(classes),), 0.5),
    )


def losses_of(predictor: DeticFastRCNNOutputLayers, scores: Tensor, classes: list[int], **options: Any) -> dict:
    with EventStorage():
        return predictor.losses((scores, scores.new_zeros(len(scores), 4)), [regions(classes)], **options)


@pytest.mark.parametrize("options", [{}, {"use_sigmoid_ce": False}, {"dynamic_classifier": True}])
def test_no_regions_give_a_differentiable_zero(options: dict[str, Any]) -> None:
    predictor = make(**options)
    sampled = (torch.arange(3), torch.full((CLASSES + 1,), 3))
    scores, deltas = predictor(torch.zeros(0, WIDTH))
    scores = scores[:, :4] if options.get("dynamic_classifier") else scores
    for proposals in ([], [regions([])]):
        with EventStorage():
            losses = predictor.losses((scores, deltas), proposals, classifier_info=(None, sampled, None))
        assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
        sum(losses.values()).backward(retain_graph=True)


def test_federated_loss_counts_only_the_drawn_classes(tmp_path: Path) -> None:
    counts = counts_file(tmp_path, [1] * 5 + [0] * (CLASSES - 5))  # the others cannot be drawn
    predictor = make(use_fed_loss=True, fed_loss_num_cat=7, cat_freq_path=counts)
    scores = torch.randn(4, CLASSES + 1, requires_grad=True)
    losses = losses_of(predictor, scores, [9, 9, 0, CLASSES])
    losses["loss_cls"].backward()
    assert (scores.grad != 0).any(dim=0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 9]
    plain = losses_of(predictor, scores, [9, 9, 0, CLASSES], use_advanced_loss=False)
    target = F.one_hot(torch.tensor([9, 9, 0, CLASSES]), CLASSES + 1)[:, :-1].float()
    expected = F.binary_cross_entropy_with_logits(scores[:, :-1], target, reduction="sum") / 4
    assert_close(plain["loss_cls"], expected)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_ignored_categories_get_no_gradient(sigmoid: bool, tmp_path: Path) -> None:
    counts = counts_file(tmp_path, [3, 0, 5])  # the file is shorter than the vocabulary: the rest has no images
    predictor = make(ignore_zero_cats=True, cat_freq_path=counts, use_sigmoid_ce=sigmoid)
    assert_close(predictor.freq_weight, torch.tensor([3.0**0.5, 0, 5**0.5] + [0.0] * (CLASSES - 3)))
    scores = torch.randn(3, CLASSES + 1, requires_grad=True)
    losses_of(predictor, scores, [1, 2, CLASSES])["loss_cls"].backward()
    if sigmoid:
        assert (scores.grad != 0).any(dim=0).nonzero()[:, 0].tolist() == [0, 2]
    else:
        assert (scores.grad != 0).any(dim=1).tolist() == [False, True, True]


def test_dynamic_classes_are_a_sample_of_all(tmp_path: Path) -> None:
    sampled = torch.tensor([7, 2, 5])
    columns = torch.full((CLASSES + 1,), 3)
    columns[sampled] = torch.arange(3)
    predictor = make(dynamic_classifier=True, ignore_zero_cats=True, cat_freq_path=counts_file(tmp_path, [1] * 6))
    scores = torch.randn(3, 4, requires_grad=True)
    losses = losses_of(predictor, scores, [2, 5, CLASSES], classifier_info=(None, (sampled, columns), None))
    target = torch.tensor([[1.0, 0], [0, 1], [0, 0]])  # class 7, the first column, has no images
    expected = F.binary_cross_entropy_with_logits(scores[:, 1:3], target, reduction="sum") / 3
    assert_close(losses["loss_cls"], expected)
    assert losses["loss_box_reg"] > 0


def test_captions_follow_the_classes() -> None:
    predictor = make_zero_shot()
    x, captions = torch.randn(5, WIDTH), torch.randn(3, 6)
    scores, deltas = predictor(x, classifier_info=(None, None, captions))
    assert scores.shape == (5, CLASSES + 1 + 3)
    assert deltas.shape == (5, 4)
    assert_close(scores[:, CLASSES + 1 :], predictor.cls_score(x, classifier=captions))
    marked = torch.cat((captions, torch.ones(3, 1)), dim=1)
    synced = make_zero_shot(sync_caption_batch=True)
    synced.load_state_dict(predictor.state_dict())
    assert_close(synced(x, classifier_info=(None, None, marked))[0], scores)


def test_given_rows_replace_the_classes() -> None:
    predictor = make_zero_shot()
    x, rows = torch.randn(5, WIDTH), torch.randn(2, 6)
    scores, _ = predictor(x, classifier_info=(rows, None, None))
    assert_close(scores, predictor.linear_scores(x, rows).logits(slice(None)))
    assert scores.shape == (5, 2)


@pytest.mark.parametrize("options", [{}, {"use_sigmoid_ce": False}, {"mult_proposal_score": True}])
@pytest.mark.parametrize("zero_shot", [True, False])
def test_inference_from_features_equals_that_from_scores(zero_shot: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    predictor = (make_zero_shot if zero_shot else make)(test_topk_per_image=20, **options).eval()
    proposals, x = [regions([0] * 6), regions([0] * 3)], torch.randn(9, WIDTH)
    expected, rows = predictor.inference(predictor(x), proposals)
    found, found_rows = predictor.inference_from_features(x, proposals)
    for mine, other in zip(found, expected, strict=True):
        assert len(mine) > 0
        assert mine.pred_classes.tolist() == other.pred_classes.tolist()
        assert_close(mine.scores, other.scores)
    assert [each.tolist() for each in rows] == [each.tolist() for each in found_rows]


def test_learned_classifier_starts_at_the_prior() -> None:
    predictor = make(prior_prob=0.02)
    assert_close(predictor.cls_score.bias.sigmoid(), torch.full((CLASSES + 1,), 0.02))
    assert set(dict(predictor.named_children())) == {"cls_score", "bbox_pred"}


def test_proposal_scores_are_a_third_output() -> None:
    predictor = make_zero_shot(with_softmax_prop=True)
    scores, _, prop_scores = predictor(torch.randn(3, WIDTH))
    assert prop_scores.shape == scores.shape
    assert "prop_score.2.weight" in predictor.state_dict()
    found, _ = predictor.eval().inference(predictor(torch.randn(3, WIDTH)), [regions([0] * 3)])
    assert len(found) == 1


def test_options_that_contradict_each_other_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DYNAMIC_CLASSIFIER and .*USE_FED_LOSS both sample"):
        make(dynamic_classifier=True, use_fed_loss=True)
    with pytest.raises(InputError, match="needs cls_score"):
        make(use_zeroshot_cls=True)
    with pytest.raises(InputError, match=r"counts images of 13 classes, but .*NUM_CLASSES is 12"):
        make(use_fed_loss=True, cat_freq_path=counts_file(tmp_path, [1] * 13))
