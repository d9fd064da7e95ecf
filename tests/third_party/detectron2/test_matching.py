"""Matching predictions with ground truth, sampling them, and encoding boxes."""

import math

import pytest
import torch
from torch.testing import assert_close

from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes

QUALITY = torch.tensor([[0.1, 0.30, 0.7, 0.29, 0.0], [0.0, 0.4, 0.2, 0.69, 0.05]])


def test_bins_are_closed_below_and_open_above():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1])(QUALITY)
    assert matches.tolist() == [0, 1, 0, 1, 1] and matches.dtype == torch.int64
    assert labels.tolist() == [0, -1, 1, -1, 0] and labels.dtype == torch.int8


def test_low_quality_matches_promote_the_best_of_each_truth():
    quality = torch.tensor([[0.1, 0.2, 0.2, 0.0], [0.6, 0.9, 0.0, 0.0]])
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(quality)
    # Both ties of the first truth count; the prediction that fits the second one better stays with it.
    assert labels.tolist() == [-1, 1, 1, 0]
    assert matches.tolist()[:3] == [1, 1, 0]


def test_without_truths_everything_has_the_lowest_label():
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(0, 3))
    assert matches.tolist() == [0, 0, 0] and labels.tolist() == [0, 0, 0]
    assert matches.dtype == torch.int64 and labels.dtype == torch.int8
    assert Matcher([0.5], [-1, 1])(torch.zeros(0, 2))[1].tolist() == [-1, -1]
    assert [part.shape for part in Matcher([0.5], [0, 1])(torch.zeros(2, 0))] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 1, 1]), ([0.5], [0, 2]), ([-0.1], [0, 1])],
)
def test_wrong_bins_are_refused(thresholds, labels):
    with pytest.raises((AssertionError, ValueError)):
        Matcher(thresholds, labels)


def test_negative_quality_is_refused():
    with pytest.raises(AssertionError):
        Matcher([0.5], [0, 1])(torch.tensor([[-0.5, 0.2]]))


def test_sampling_fills_up_with_background():
    labels = torch.tensor([3, 3, 3, 8, 8, 8, 8, -1, 0, 8])  # 8 is background
    positive, negative = subsample_labels(labels, 6, 0.5, 8)
    assert len(positive) == 3 and len(negative) == 3
    assert set(positive.tolist()) <= {0, 1, 2, 8} and set(negative.tolist()) <= {3, 4, 5, 6, 9}
    positive, negative = subsample_labels(labels, 100, 0.5, 8)
    assert sorted(positive.tolist()) == [0, 1, 2, 8] and sorted(negative.tolist()) == [3, 4, 5, 6, 9]
    positive, negative = subsample_labels(torch.full((4,), -1), 4, 0.5, 0)
    assert len(positive) == len(negative) == 0


def test_positives_draw_first():
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    torch.manual_seed(5)
    positive, negative = subsample_labels(labels, 4, 0.5, 0)
    torch.manual_seed(5)
    assert positive.tolist() == torch.randperm(4)[:2].tolist()
    assert negative.tolist() == (torch.randperm(4)[:2] + 4).tolist()


def test_encoding_by_hand():
    deltas = Box2BoxTransform((10, 10, 5, 5)).get_deltas(
        torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 20]])
    )
    # The centre moves from (5, 10) to (15, 15), the size from 10 x 20 to 20 x 10.
    assert_close(deltas, torch.tensor([[10.0, 2.5, 5 * math.log(2), -5 * math.log(2)]]))


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40), dim=1)


def test_decoding_inverts_encoding():
    source, target = random_boxes(10, 0), random_boxes(10, 1)
    transform = Box2BoxTransform((10, 10, 5, 5))
    assert transform.weights == (10, 10, 5, 5)
    assert_close(transform.apply_deltas(transform.get_deltas(source, target), source), target, rtol=1e-4, atol=1e-4)


def test_groups_of_deltas_decode_independently():
    source = random_boxes(6, 0)
    deltas = torch.randn(6, 12, generator=torch.Generator().manual_seed(2))
    transform = Box2BoxTransform((1, 1, 1, 1))
    decoded = transform.apply_deltas(deltas, source)
    for group in range(3):
        columns = slice(4 * group, 4 * group + 4)
        assert_close(decoded[:, columns], transform.apply_deltas(deltas[:, columns], source))
    assert transform.apply_deltas(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


def test_growth_is_limited_shrinking_is_not():
    transform = Box2BoxTransform((1, 1, 1, 1), scale_clamp=math.log(4))
    box = torch.tensor([[0.0, 0, 8, 8]])
    grown = transform.apply_deltas(torch.tensor([[0.0, 0, 100, -3]]), box)
    assert_close(grown[0, 2] - grown[0, 0], torch.tensor(32.0))
    assert_close(grown[0, 3] - grown[0, 1], torch.tensor(8 * math.exp(-3)))
    half = transform.apply_deltas(torch.zeros(1, 4, dtype=torch.float16), box.half())
    assert half.dtype == torch.float32 and half.tolist() == box.tolist()


def test_source_boxes_need_a_width():
    with pytest.raises(AssertionError):
        Box2BoxTransform((1, 1, 1, 1)).get_deltas(torch.tensor([[5.0, 0, 5, 9]]), torch.tensor([[0.0, 0, 1, 1]]))


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_dense_loss_counts_foreground_only(kind):
    anchors = [Boxes(random_boxes(6, 0)), Boxes(random_boxes(2, 1))]
    truths = [random_boxes(8, 2), random_boxes(8, 3)]
    deltas = [torch.zeros(2, 6, 4, requires_grad=True), torch.zeros(2, 2, 4, requires_grad=True)]
    foreground = torch.zeros(2, 8, dtype=torch.bool)
    transform = Box2BoxTransform((1, 1, 1, 1))

    def loss() -> torch.Tensor:
        return _dense_box_regression_loss(anchors, transform, deltas, truths, foreground, kind)

    nothing = loss()
    nothing.backward()
    assert nothing.item() == 0 and deltas[0].grad.abs().sum() == 0
    parts = []
    for image, row in ((0, 1), (1, 7)):
        foreground.zero_()
        foreground[image, row] = True
        parts.append(loss())
    foreground[0, 1] = True
    assert_close(loss(), sum(parts))
    assert all(part > 0 for part in parts)


def test_dense_loss_vanishes_at_the_target():
    anchors, truth = random_boxes(5, 0), random_boxes(5, 1)
    transform = Box2BoxTransform((10, 10, 5, 5))
    perfect = transform.get_deltas(anchors, truth)[None]
    every = torch.ones(1, 5, dtype=torch.bool)
    for kind in ("smooth_l1", "giou"):
        loss = _dense_box_regression_loss([Boxes(anchors)], transform, [perfect], [truth], every, kind, 0.1)
        assert loss.item() == pytest.approx(0, abs=1e-4)


def test_unknown_dense_loss_is_refused():
    with pytest.raises(ValueError):
        _dense_box_regression_loss(
            [Boxes(random_boxes(1, 0))],
            Box2BoxTransform((1, 1, 1, 1)),
            [torch.zeros(1, 1, 4)],
            [random_boxes(1, 1)],
            torch.ones(1, 1, dtype=torch.bool),
            "iou",
        )
