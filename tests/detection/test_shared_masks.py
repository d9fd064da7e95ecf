import torch
from torch.testing import assert_close

import detection  # noqa: F401  makes detectron2 importable
from detection.shared_masks import masks_of_distinct_boxes
from detectron2.structures import Boxes, Instances


class MaskHead:
    """A mask that follows from the box; remembers how many boxes it was given."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, features, instances):
        self.counts = [len(each) for each in instances]
        for each in instances:
            each.pred_masks = each.pred_boxes.tensor.sum(dim=1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return instances


def detections(*boxes: list[float]) -> Instances:
    found = Instances((50, 60))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.pred_classes = torch.arange(len(boxes))
    found.scores = torch.linspace(1, 0.5, len(boxes))
    return found


def test_equal_boxes_share_a_mask_and_all_else_stays():
    first, second, third = [0, 0, 5, 5], [1, 2, 30, 40], [0, 0, 5, 6]
    found = [detections(first, second, first, third, second), detections(third)]
    head = MaskHead()
    results = masks_of_distinct_boxes(head, {}, found)
    assert head.counts == [3, 1]
    expected = MaskHead()({}, [detections(first, second, first, third, second), detections(third)])
    for ours, theirs in zip(results, expected, strict=True):
        assert_close(ours.pred_masks, theirs.pred_masks)
        assert_close(ours.pred_classes, theirs.pred_classes)
        assert_close(ours.scores, theirs.scores)


def test_images_without_detections_have_no_masks():
    results = masks_of_distinct_boxes(MaskHead(), {}, [detections(), detections([0, 0, 1, 1])])
    assert [each.pred_masks.shape[0] for each in results] == [0, 1]
