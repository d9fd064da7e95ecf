"""Decoding of dense predictions."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import batched_nms

from centernet.modeling.dense_heads.decoding import Decoder
from detectron2.structures import Instances

SIZES = [(64, 96), (50, 70)]
MAPS = [(8, 12), (4, 6)]


def decoder(**settings: Any) -> Decoder:
    defaults = {
        "strides": (8, 16),
        "score_thresh": 0.1,
        "pre_nms_topk": 1000,
        "post_nms_topk": 30,
        "nms_thresh": 0.6,
        "take_root": False,
    }
    return Decoder(**defaults | settings)


def predictions(num_classes: int = 3, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    heat = [torch.rand(2, num_classes, *size, generator=generator) for size in MAPS]
    distances = [torch.rand(2, 4, *size, generator=generator) * 3 for size in MAPS]
    return heat, distances


def rows(instances: Instances) -> Tensor:
    """(R, 6) boxes, scores, classes."""
    columns = (instances.pred_boxes.tensor, instances.scores[:, None], instances.pred_classes[:, None].float())
    return torch.cat(columns, dim=1)


def slow(heat: list[Tensor], distances: list[Tensor], image: int, threshold: float, nms: float, topk: int) -> Tensor:
    """All detections of an image, one candidate after the other."""
    found = []
    for stride, level_heat, level_distances in zip((8, 16), heat, distances, strict=True):
        for label, row, column in (level_heat[image] > threshold).nonzero().tolist():
            left, up, right, down = (level_distances[image, :, row, column] * stride).tolist()
            x, y = column * stride + stride // 2, row * stride + stride // 2
            score = level_heat[image, label, row, column].item()
            found.append(
                [x - left, y - up, max(x + right, x - left + 0.01), max(y + down, y - up + 0.01), score, label]
            )
    found = torch.tensor(found)
    keep = batched_nms(found[:, :4], found[:, 4], found[:, 5].long(), nms)
    return found[keep][:topk]


def test_detections_are_those_of_a_slow_search() -> None:
    heat, distances = predictions()
    for post_nms_topk in (7, 30, 100000):
        found = decoder(post_nms_topk=post_nms_topk)(heat, distances, SIZES)
        for i, instances in enumerate(found):
            assert instances.image_size == SIZES[i]
            assert_close(rows(instances), slow(heat, distances, i, 0.1, 0.6, post_nms_topk))


def test_suppression_of_the_best_is_that_of_all() -> None:
    """Many boxes of one place: few stay, so that the search among the best has to go on."""
    generator = torch.Generator().manual_seed(1)
    heat = [torch.rand(2, 3, *size, generator=generator) for size in MAPS]
    distances = [torch.full((2, 4, *size), 40.0) / (index + 1) for index, size in enumerate(MAPS)]
    for post_nms_topk in (1, 2, 5, 20):
        found = decoder(post_nms_topk=post_nms_topk, nms_thresh=0.5)(heat, distances, SIZES)
        for i, instances in enumerate(found):
            assert_close(rows(instances), slow(heat, distances, i, 0.1, 0.5, post_nms_topk))


def test_equal_last_scores_all_stay() -> None:
    heat = [torch.full((1, 1, *size), 0.5) for size in MAPS]
    distances = [torch.full((1, 4, *size), 0.1) for size in MAPS]
    (found,) = decoder(post_nms_topk=4)(heat, distances, SIZES[:1])
    assert len(found) == 8 * 12 + 4 * 6


def test_two_images_are_two_batches_of_one() -> None:
    heat, distances = predictions()
    together = decoder()(heat, distances, SIZES)
    for i, expected in enumerate(together):
        (alone,) = decoder()([each[i : i + 1] for each in heat], [each[i : i + 1] for each in distances], [SIZES[i]])
        assert torch.equal(rows(alone), rows(expected))


def test_threshold_is_on_the_heat_and_the_root_is_of_the_product() -> None:
    heat, distances = predictions()
    object_maps = [torch.full_like(each[:, :1], 0.25) for each in heat]
    settings = {"nms_thresh": 0.0, "post_nms_topk": 100000}
    plain = decoder(**settings)(heat, distances, SIZES)
    rooted = decoder(take_root=True, **settings)(heat, distances, SIZES, object_maps)
    for one, other in zip(plain, rooted, strict=True):
        assert_close(other.scores, (0.25 * one.scores).sqrt())
        assert_close(other.pred_boxes.tensor, one.pred_boxes.tensor)


def test_candidates_are_limited_on_each_level() -> None:
    heat, distances = predictions()
    (found, _) = decoder(pre_nms_topk=5, nms_thresh=0.0)(heat, distances, SIZES)
    expected = torch.cat([each[0].flatten().topk(5).values for each in heat])
    assert_close(found.scores, expected.sort(descending=True).values)


@pytest.mark.parametrize("nms_thresh", [0.0, 0.6])
def test_local_maxima_replace_suppression(nms_thresh: float) -> None:
    heat = [torch.zeros(1, 1, *size) for size in MAPS]
    heat[0][0, 0, 2, 3:6] = torch.tensor([0.3, 0.9, 0.3])
    heat[0][0, 0, 2, 6] = 0.5  # two columns from the first peak
    distances = [torch.full((1, 4, *size), 3.0) for size in MAPS]
    (found,) = decoder(center_nms=True, nms_thresh=nms_thresh)(heat, distances, SIZES[:1])
    assert_close(found.scores, torch.tensor([0.9, 0.5]))


def test_nothing_above_the_threshold_is_no_detection() -> None:
    heat, distances = predictions()
    for instances in decoder(score_thresh=1.0, take_root=True)(heat, distances, SIZES):
        assert len(instances) == 0
        assert instances.pred_boxes.tensor.shape == (0, 4)


def test_what_is_not_finite_is_no_detection() -> None:
    heat, distances = predictions()
    heat = [torch.full_like(each, torch.nan) for each in heat]
    assert [len(each) for each in decoder()(heat, distances, SIZES)] == [0, 0]
    heat, distances = predictions()
    distances[0][0] = torch.inf
    (first, second) = decoder(nms_thresh=0.0, post_nms_topk=100000)(heat, distances, SIZES)
    assert len(first) == int((heat[1][0] > 0.1).sum())
    assert len(second) == sum(int((each[1] > 0.1).sum()) for each in heat)
