"""From the network's size to that of the result."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks


def detections(**fields: object) -> Instances:
    """Three boxes in an image of 20 by 40; the second lies outside of it."""
    boxes = Boxes(torch.tensor([[2.0, 4.0, 12.0, 14.0], [50.0, 1.0, 60.0, 9.0], [30.0, 10.0, 90.0, 18.0]]))
    return Instances((20, 40), pred_boxes=boxes, scores=torch.tensor([0.9, 0.8, 0.7]), **fields)


def test_boxes_are_scaled_clipped_and_dropped_when_empty() -> None:
    results = detector_postprocess(detections(), 40, 60)  # twice as high, half again as wide
    assert results.image_size == (40, 60)
    assert_close(results.pred_boxes.tensor, torch.tensor([[3.0, 8.0, 18.0, 28.0], [45.0, 20.0, 60.0, 36.0]]))
    assert results.scores.tolist() == pytest.approx([0.9, 0.7])


def test_the_same_size_changes_only_what_lies_outside() -> None:
    results = detector_postprocess(detections(), 20, 40)
    assert_close(results.pred_boxes.tensor, torch.tensor([[2.0, 4.0, 12.0, 14.0], [30.0, 10.0, 40.0, 18.0]]))


def test_proposals_are_taken_where_there_are_no_predictions() -> None:
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    results = detector_postprocess(Instances((20, 40), proposal_boxes=boxes), 10, 20)
    assert_close(results.proposal_boxes.tensor, torch.tensor([[0.0, 0.0, 5.0, 5.0]]))


def test_instances_without_boxes_are_refused() -> None:
    with pytest.raises((AssertionError, ValueError, AttributeError)):
        detector_postprocess(Instances((20, 40), scores=torch.zeros(1)), 10, 20)


def test_no_instance_is_an_ordinary_result() -> None:
    empty = Instances((20, 40), pred_boxes=Boxes(torch.zeros(0, 4)), pred_masks=torch.zeros(0, 1, 28, 28))
    results = detector_postprocess(empty, 30, 50)
    assert len(results) == 0
    assert results.pred_masks.shape == (0, 30, 50)


@pytest.mark.parametrize("wrapped", [False, True])
def test_masks_are_pasted_into_their_boxes(wrapped: bool) -> None:
    masks = torch.ones(3, 1, 28, 28)
    masks[2, 0, :, 14:] = 0.4
    results = detector_postprocess(detections(pred_masks=ROIMasks(masks[:, 0]) if wrapped else masks), 20, 40)
    assert results.pred_masks.dtype == torch.bool
    expected = torch.zeros(2, 20, 40, dtype=torch.bool)
    expected[0, 4:14, 2:12] = True
    expected[1, 10:18, 30:35] = True  # the box was clipped to 30..40 before its mask was pasted
    assert torch.equal(results.pred_masks, expected)


def test_the_threshold_decides_what_belongs_to_a_mask() -> None:
    masks = torch.full((3, 1, 28, 28), 0.4)
    assert not detector_postprocess(detections(pred_masks=masks), 20, 40).pred_masks.any()
    assert detector_postprocess(detections(pred_masks=masks), 20, 40, mask_threshold=0.3).pred_masks.any()


def test_keypoints_are_scaled() -> None:
    points = torch.tensor([[[10.0, 10.0, 0.5]]]).repeat(3, 1, 1)
    results = detector_postprocess(detections(pred_keypoints=points), 40, 20)
    assert_close(results.pred_keypoints[0, 0], torch.tensor([5.0, 20.0, 0.5]))


def test_semantic_scores_lose_their_padding_and_are_interpolated() -> None:
    scores = torch.randn(5, 32, 64)
    found = sem_seg_postprocess(scores, (20, 40), 30, 50)
    expected = F.interpolate(scores[None, :, :20, :40], size=(30, 50), mode="bilinear", align_corners=False)[0]
    assert_close(found, expected)
    assert_close(sem_seg_postprocess(scores, (20, 40), 20, 40), scores[:, :20, :40])
