"""Targets of the dense head against loops over boxes and locations that follow the definitions word by word."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from centernet.modeling.dense_heads.centernet import CenterNet
from centernet.modeling.layers.iou_loss import IOULoss
from detectron2.structures import Boxes, Instances
from tests.third_party.centernet.small_models import objects

STRIDES = (8, 16)
SIZES = [(8, 12), (4, 6)]  # of an image of 64 x 96
INTEREST = ((0.0, 20.0), (15.0, 1000.0))
NUM_CLASSES = 3


def detector(**settings: Any) -> CenterNet:
    return CenterNet(
        num_classes=NUM_CLASSES,
        in_features=("p3", "p4"),
        strides=STRIDES,
        sizes_of_interest=INTEREST,
        **settings,
    )


def random_batch(seed: int, smallest: float = 1) -> list[Instances]:
    """Boxes of all sizes, some equal, some outside the image, and an image without any."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for count in (9, 0, 6):
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([110.0, 75.0]) - 5
        sides = torch.rand(count, 2, generator=generator) ** 2 * 70 + smallest
        boxes = torch.cat((corners, corners + sides), dim=1)
        boxes[count // 2 :][:1] = boxes[:1]
        classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        batch.append(Instances((64, 96), gt_boxes=Boxes(boxes), gt_classes=classes))
    return batch


class Loops:
    """The definitions, for one image; indices count the locations of this image alone, level by level."""

    def __init__(self, image: Instances, settings: CenterNet) -> None:
        self.boxes = image.gt_boxes.tensor.tolist()
        self.classes = image.gt_classes.tolist()
        self.delta = settings.assigner.delta
        self.locations = [
            (level, row, column)
            for level, (height, width) in enumerate(SIZES)
            for row in range(height)
            for column in range(width)
        ]

    def center(self, n: int) -> tuple[float, float]:
        x1, y1, x2, y2 = self.boxes[n]
        return (x1 + x2) / 2, (y1 + y2) / 2

    def cell(self, n: int, level: int) -> tuple[int, int]:
        x, y = self.center(n)
        return math.floor(y / STRIDES[level]), math.floor(x / STRIDES[level])

    def belongs(self, n: int, level: int) -> bool:
        x1, y1, x2, y2 = self.boxes[n]
        low, high = INTEREST[level]
        return low <= math.hypot(x2 - x1, y2 - y1) / 2 <= high

    def point(self, level: int, row: int, column: int) -> tuple[float, float]:
        stride = STRIDES[level]
        return column * stride + stride // 2, row * stride + stride // 2

    def sides(self, n: int, level: int, row: int, column: int) -> list[float]:
        x1, y1, x2, y2 = self.boxes[n]
        x, y = self.point(level, row, column)
        return [side / STRIDES[level] for side in (x - x1, y - y1, x2 - x, y2 - y)]

    def far(self, n: int, level: int, row: int, column: int) -> float:
        """Squared distance from the centre over squared radius."""
        if (row, column) == self.cell(n, level):
            return 0.0
        (x, y), (cx, cy) = self.point(level, row, column), self.center(n)
        x1, y1, x2, y2 = self.boxes[n]
        radius_squared = max(2 * self.delta**2 * (x2 - x1) * (y2 - y1), 16)
        return ((x - cx) ** 2 + (y - cy) ** 2) / radius_squared

    def positives(self) -> list[tuple[int, int]]:
        found = []
        for n, label in enumerate(self.classes):
            for level in range(2):
                place = (level, *self.cell(n, level))
                if self.belongs(n, level) and place in self.locations:
                    found.append((self.locations.index(place), label))
        return found

    def heat(self, classes: set[int]) -> list[float]:
        chosen = [n for n, label in enumerate(self.classes) if label in classes]
        heat = [max((math.exp(-self.far(n, *place)) for n in chosen), default=0.0) for place in self.locations]
        return [value if value >= 1e-4 else 0.0 for value in heat]

    def distances(self) -> list[list[float] | None]:
        result = []
        for level, row, column in self.locations:
            candidates = []
            for n in range(len(self.boxes)):
                center_row, center_column = self.cell(n, level)
                near = abs(row - center_row) <= 1 and abs(column - center_column) <= 1
                if near and self.belongs(n, level) and min(self.sides(n, level, row, column)) > 0:
                    candidates.append(n)
            best = min(candidates, key=lambda n: self.far(n, level, row, column), default=None)
            result.append(None if best is None else self.sides(best, level, row, column))
        return result

    def good_positives(self, predicted: Tensor, threshold: float, topk: int) -> list[tuple[int, int]]:
        found = []
        for n, label in enumerate(self.classes):
            losses = []
            for level in range(2):
                center_row, center_column = self.cell(n, level)
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        place = (level, center_row + dy, center_column + dx)
                        if place not in self.locations or min(self.sides(n, *place)) < 0:
                            losses.append((math.inf, None))
                            continue
                        index = self.locations.index(place)
                        target = torch.tensor([self.sides(n, *place)])
                        loss = IOULoss("giou")(predicted[index][None], target).item()
                        if dx == dy == 0 and self.belongs(n, level):
                            loss = 0.0
                        losses.append((loss, index))
            limit = min(sorted(loss for loss, _ in losses)[topk - 1], threshold)
            found += [(index, label) for loss, index in losses if loss < limit]
        return found


def per_image(values: Tensor, image: int, num_images: int) -> Tensor:
    """What a level-major tensor holds of one image."""
    start, parts = 0, []
    for height, width in SIZES:
        area = height * width
        parts.append(values[start + image * area : start + (image + 1) * area])
        start += num_images * area
    return torch.cat(parts)


def indices(num_images: int, image: int) -> Tensor:
    """Level-major indices of an image's locations."""
    total = num_images * sum(height * width for height, width in SIZES)
    return per_image(torch.arange(total), image, num_images)


@pytest.mark.parametrize("seed", range(3))
def test_targets_follow_the_definitions(seed: int) -> None:
    batch = random_batch(seed)
    agnostic, per_class = (detector(only_proposal=only, with_agn_hm=only) for only in (True, False))
    found = agnostic.assigner(batch, SIZES)
    class_heat = per_class.assigner(batch, SIZES).heatmap
    positives = []
    for i, image in enumerate(batch):
        loops = Loops(image, agnostic)
        positives += [(indices(3, i)[index].item(), label) for index, label in loops.positives()]
        every = set(range(NUM_CLASSES))
        assert_close(per_image(found.heatmap, i, 3)[:, 0], torch.tensor(loops.heat(every)), rtol=1e-4, atol=1e-6)
        for label in every:
            heat = torch.tensor(loops.heat({label}))
            assert_close(per_image(class_heat, i, 3)[:, label], heat, rtol=1e-4, atol=1e-6)
        for sides, expected in zip(per_image(found.distances, i, 3), loops.distances(), strict=True):
            if expected is None:
                assert sides.max() < -1e6
            else:
                assert_close(sides, torch.tensor(expected))
    assert list(zip(found.pos_inds.tolist(), found.labels.tolist(), strict=True)) == positives


@pytest.mark.parametrize("topk", [4, 9])
def test_further_positives_follow_the_definitions(topk: int) -> None:
    batch = random_batch(5, smallest=20)
    model = detector(more_pos=True, more_pos_thresh=0.3, more_pos_topk=topk)
    generator = torch.Generator().manual_seed(0)
    exact = model.assigner(batch, SIZES, torch.zeros(3 * 120, 4)).distances.clamp(min=0)
    predicted = exact + 0.2 * torch.rand(exact.shape, generator=generator)
    found = model.assigner(batch, SIZES, predicted)
    expected = []
    for i, image in enumerate(batch):
        positives = Loops(image, model).good_positives(per_image(predicted, i, 3), 0.3, topk)
        expected += [(indices(3, i)[index].item(), label) for index, label in positives]
    assert list(zip(found.pos_inds.tolist(), found.labels.tolist(), strict=True)) == expected
    assert len(expected) > len(detector().assigner(batch, SIZES).pos_inds)


def test_the_nearest_box_wins_and_the_first_of_two_equal_ones() -> None:
    boxes = [[4.0, 4.0, 28.0, 28.0], [0.0, 0.0, 32.0, 32.0], [4.0, 4.0, 28.0, 28.0]]
    found = detector().assigner([objects(boxes, [0, 1, 2])], SIZES)
    second_level = found.distances[96:].reshape(4, 6, 4)
    assert_close(second_level[1, 1], torch.tensor([1.25, 1.25, 0.25, 0.25]))  # all centres lie in this cell
    assert_close(second_level[1, 0], torch.tensor([0.5, 1.5, 1.5, 0.5]))  # the larger box has the larger radius


def test_centres_outside_the_image_are_no_positives_unless_clamped() -> None:
    image = [objects([[90.0, 10.0, 120.0, 30.0], [-30.0, 50.0, 10.0, 90.0]], [0, 1])]
    assert detector().assigner(image, SIZES).pos_inds.tolist() == []
    clamped = detector(not_clamp_box=True).assigner(image, SIZES)
    assert clamped.labels.tolist() == [0, 0, 1]  # the first box is of interest to both levels
    assert clamped.pos_inds.tolist() == [2 * 12 + 11, 96 + 1 * 6 + 5, 96 + 3 * 6 + 0]


def test_a_batch_is_its_images() -> None:
    batch = random_batch(7)
    model = detector()
    together = model.assigner(batch, SIZES)
    for i, image in enumerate(batch):
        alone = model.assigner([image], SIZES)
        assert torch.equal(per_image(together.heatmap, i, 3), per_image(alone.heatmap, 0, 1))
        assert torch.equal(per_image(together.distances, i, 3), per_image(alone.distances, 0, 1))


def test_an_image_without_boxes_has_no_target() -> None:
    for model in (detector(), detector(only_proposal=True, with_agn_hm=True), detector(more_pos=True)):
        found = model.assigner([objects([], [])], SIZES, torch.zeros(120, 4))
        assert len(found.pos_inds) == len(found.labels) == 0
        assert not found.heatmap.any()
        assert found.heatmap.shape == (120, 1 if model.only_proposal else NUM_CLASSES)
        assert (found.distances < -1e6).all()
