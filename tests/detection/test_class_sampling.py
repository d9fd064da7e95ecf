"""Sampling of classes for the dynamic classifier; recorded draws are in the golden ``detic_data``."""

import torch

from detection.class_sampling import sample_classes


def test_classes_of_the_labels_come_first_and_positions_find_them() -> None:
    inds, positions = sample_classes([7, 3, 7], num_classes=10, num_sample_cats=5)
    assert inds[:2].tolist() == [3, 7] and len(inds) == len(set(inds.tolist())) == 5
    assert positions[inds].tolist() == [0, 1, 2, 3, 4]
    assert positions.shape == (11,) and (positions == 5).sum() == 6


def test_no_labels_draw_all_classes() -> None:
    inds, _ = sample_classes([], num_classes=10, num_sample_cats=4)
    assert len(inds) == 4 and inds.max() < 10


def test_enough_labels_draw_nothing() -> None:
    inds, positions = sample_classes([1, 0, 2], num_classes=4, num_sample_cats=2)
    assert inds.tolist() == [0, 1, 2] and positions.tolist() == [0, 1, 2, 3, 3]


def test_only_classes_with_weight_are_drawn() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for _ in range(10):
        inds, positions = sample_classes([0], num_classes=9, num_sample_cats=3, weight=weight)
        assert inds[0] == 0 and set(inds[1:].tolist()) == {1, 3}
        assert len(positions) == 10


def test_labels_beyond_the_weighted_classes_are_sampled_too() -> None:
    inds, positions = sample_classes([8], num_classes=9, num_sample_cats=2, weight=torch.tensor([0.0, 1.0]))
    assert inds.tolist() == [8, 1] and positions[8] == 0
