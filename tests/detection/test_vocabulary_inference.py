"""Detections over vocabularies of any size equal those of the plain way, in bounded memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detection import candidate_screening
from detection.linear_scores import LinearScores
from detection.vocabulary_inference import detect, first_survivors, scores_of_logits
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances

SIZE = (300, 400)


def make_boxes(count: int, generator: torch.Generator, per_class: int = 1) -> Tensor:
    corner = torch.rand(count, 1, 2, generator=generator) * 200
    size = 20 + 150 * torch.rand(count, per_class, 2, generator=generator)
    return torch.cat((corner.expand(-1, per_class, -1), corner + size), dim=2).flatten(1)


def make_stages(
    count: int, num_classes: int, generator: torch.Generator, bias: float = 0.0, width: int = 16
) -> list[LinearScores]:
    weight = F.normalize(torch.randn(width, num_classes + 1, generator=generator), dim=0)
    weight[:, -1] = 0
    features = [20 * F.normalize(torch.randn(count, width, generator=generator), dim=1) for _ in range(3)]
    return [LinearScores(each, weight, torch.tensor([bias])) for each in features]


def plain(
    stages: list[LinearScores],
    boxes: list[Tensor],
    proposal_scores: list[Tensor] | None,
    *,
    sigmoid: bool,
    one_class: bool,
    limits: tuple[float, float, int],
) -> list[Instances]:
    """All scores of all classes at once."""
    everything = [stage.logits(slice(None)) for stage in stages]
    probs = torch.stack([each.sigmoid() if sigmoid else each.softmax(dim=1) for each in everything]).mean(dim=0)
    scores = []
    for i, part in enumerate(probs.split([len(each) for each in boxes])):
        if proposal_scores is not None:
            part = (part * proposal_scores[i][:, None]).sqrt()
        if one_class:
            part = part * (part == part[:, :-1].amax(dim=1, keepdim=True))
        scores.append(part)
    threshold, nms_threshold, topk = limits
    return fast_rcnn_inference(boxes, scores, [SIZE] * len(boxes), threshold, nms_threshold, topk)[0]


def assert_same(found: list[Instances], expected: list[Instances]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine.image_size == other.image_size
        assert mine.pred_classes.tolist() == other.pred_classes.tolist()
        assert_close(mine.scores, other.scores)
        assert_close(mine.pred_boxes.tensor, other.pred_boxes.tensor)


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("with_proposal_scores", [True, False])
@pytest.mark.parametrize("one_class", [True, False])
@pytest.mark.parametrize("per_class_boxes", [True, False])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_detections_equal_those_of_all_scores_at_once(
    sigmoid: bool, with_proposal_scores: bool, one_class: bool, per_class_boxes: bool, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    counts, num_classes = (12, 0, 9), 41
    stages = make_stages(sum(counts), num_classes, generator)
    boxes = [make_boxes(count, generator, num_classes if per_class_boxes else 1) for count in counts]
    proposal_scores = [torch.rand(count, generator=generator) for count in counts] if with_proposal_scores else None
    limits = (0.02, 0.5, 30)
    found, rows = detect(
        stages,
        boxes,
        [SIZE] * len(counts),
        proposal_scores=proposal_scores,
        score_thresh=limits[0],
        nms_thresh=limits[1],
        topk_per_image=limits[2],
        sigmoid=sigmoid,
        one_class_per_proposal=one_class,
        classes_per_chunk=chunk,
    )
    assert_same(found, plain(stages, boxes, proposal_scores, sigmoid=sigmoid, one_class=one_class, limits=limits))
    assert len(found[0]) > 0
    assert [len(each) for each in rows] == [len(each) for each in found]


def detect_simply(stages: list[LinearScores], boxes: Tensor, **options: Any) -> Instances:
    settings = {
        "proposal_scores": None,
        "score_thresh": 0.1,
        "nms_thresh": 0.5,
        "topk_per_image": 10,
        "sigmoid": True,
    } | options
    return detect(stages, [boxes], [SIZE], **settings)[0][0]


@pytest.mark.parametrize("topk", [0, 1, 3, -1])
def test_keeping_only_the_best_candidates_changes_nothing(topk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    stages, boxes = make_stages(5, 400, generator), make_boxes(5, generator)
    found = detect_simply(stages, boxes, topk_per_image=topk, classes_per_chunk=10)
    assert_same([found], plain(stages, [boxes], None, sigmoid=True, one_class=False, limits=(0.1, 0.5, topk)))


def test_best_class_of_a_region_survives_many_former_best_ones() -> None:
    """Scores that rise from class to class leave stale candidates behind."""
    logits = torch.linspace(-3, 3, 600).repeat(4, 1) + torch.arange(4)[:, None] * 0.01
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [60, 60, 69, 69]])
    found = detect_simply(
        [scores_of_logits(logits)], boxes, one_class_per_proposal=True, topk_per_image=4, classes_per_chunk=1
    )
    assert found.pred_classes.tolist() == [598] * 4


@pytest.mark.parametrize("bias", [0.0, -4.0, -9.0])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.2, 0.6, 1.5])
def test_screening_changes_no_detection(bias: float, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    stages, boxes = make_stages(20, 900, generator, bias=bias), make_boxes(20, generator)
    proposal_scores = torch.rand(20, generator=generator)
    proposal_scores[3] = 0
    results = []
    for fast in (True, False):
        monkeypatch.setattr(candidate_screening, "_bfloat16_is_fast", lambda fast=fast: fast)
        for scores in (None, [proposal_scores]):
            results.append(
                detect_simply(stages, boxes, score_thresh=threshold, proposal_scores=scores, classes_per_chunk=50)
            )
    assert_same(results[:2], results[2:])


def test_screening_leaves_classes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_screening, "_bfloat16_is_fast", lambda: True)
    generator = torch.Generator().manual_seed(3)
    stages = make_stages(20, 900, generator, bias=-7.0, width=64)[:1]
    valid = torch.ones(20, dtype=torch.bool)
    screen = candidate_screening.Screen.of(stages, valid, 900, 50)
    promising = screen.promising(slice(100, 300), torch.full((20,), 0.3), None)
    scores = torch.stack([stage.logits(slice(100, 300)).sigmoid() for stage in stages]).mean(dim=0)
    needed = 100 + (scores > 0.3).any(dim=0).nonzero()[:, 0]
    assert set(needed.tolist()) <= set(promising.tolist())
    assert len(needed) > 0 and len(promising) < 100


@pytest.mark.parametrize("fast", [True, False])
def test_regions_that_are_not_finite_have_no_detection(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_screening, "_bfloat16_is_fast", lambda: fast)
    generator = torch.Generator().manual_seed(4)
    stages, boxes = make_stages(6, 300, generator), make_boxes(6, generator)
    alone = detect_simply(
        [LinearScores(each.features[4:], each.weight, each.bias) for each in stages], boxes[4:], classes_per_chunk=50
    )
    stages[1].features[0, 0] = torch.nan
    stages[2].features[1, 3] = torch.inf
    boxes[2, 1] = -torch.inf
    proposal_scores = torch.ones(6)
    found = detect_simply(stages, boxes, proposal_scores=[proposal_scores.index_fill(0, torch.tensor([3]), torch.nan)])
    assert len(found) and torch.isfinite(found.scores).all()
    stages[0].features[3] = torch.nan
    assert_same([detect_simply(stages, boxes, classes_per_chunk=50)], [alone])


def test_batch_of_two_equals_two_batches_of_one() -> None:
    generator = torch.Generator().manual_seed(5)
    stages = make_stages(14, 60, generator)
    boxes = make_boxes(14, generator).split([8, 6])
    options = {"proposal_scores": None, "score_thresh": 0.1, "nms_thresh": 0.5, "topk_per_image": 9, "sigmoid": True}
    together, _ = detect(stages, boxes, [SIZE, SIZE], **options)
    first = [LinearScores(each.features[:8], each.weight, each.bias) for each in stages]
    second = [LinearScores(each.features[8:], each.weight, each.bias) for each in stages]
    assert_same(
        together,
        [detect_simply(first, boxes[0], topk_per_image=9)] + [detect_simply(second, boxes[1], topk_per_image=9)],
    )


def test_permuted_classes_give_permuted_detections() -> None:
    generator = torch.Generator().manual_seed(6)
    stages, boxes = make_stages(10, 70, generator), make_boxes(10, generator)
    order = torch.randperm(70, generator=generator)
    permuted = [
        LinearScores(each.features, torch.cat((each.weight[:, order], each.weight[:, -1:]), dim=1), each.bias)
        for each in stages
    ]
    expected, found = detect_simply(stages, boxes), detect_simply(permuted, boxes)
    assert order[found.pred_classes].tolist() == expected.pred_classes.tolist()
    assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_no_image_and_no_region_are_ordinary() -> None:
    assert detect(
        [], [], [], proposal_scores=None, score_thresh=0.1, nms_thresh=0.5, topk_per_image=9, sigmoid=True
    ) == ([], [])
    generator = torch.Generator().manual_seed(7)
    for sigmoid in (True, False):
        found = detect_simply(make_stages(0, 9, generator), torch.zeros(0, 4), sigmoid=sigmoid)
        assert len(found) == 0
        assert found.pred_boxes.tensor.shape == (0, 4)
        assert found.pred_classes.dtype == torch.int64


@pytest.mark.parametrize("count", [None, 5, 200, 10_000])
def test_survivors_equal_those_of_suppression_class_by_class(count: int | None) -> None:
    generator = torch.Generator().manual_seed(8)
    boxes = make_boxes(5000, generator)
    classes = torch.randint(0, 22_000, (6,), generator=generator)[torch.randint(0, 6, (5000,), generator=generator)]
    expected = batched_nms(boxes, torch.arange(5000, 0, -1.0), classes, 0.6)
    assert first_survivors(boxes, classes, 0.6, count).tolist() == expected[:count].tolist()


class _LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each._base is None:
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_memory_does_not_grow_with_the_vocabulary(threshold: float) -> None:
    largest = []
    for num_classes in (2_000, 8_000):
        generator = torch.Generator().manual_seed(9)
        stages, boxes = make_stages(30, num_classes, generator), make_boxes(30, generator)
        with _LargestTensor() as mode:
            detect_simply(stages, boxes, score_thresh=threshold, classes_per_chunk=200)
        largest.append(mode.elements)
    assert largest[1] <= largest[0] <= 2 * 30 * 200  # row and column of each score of a chunk
