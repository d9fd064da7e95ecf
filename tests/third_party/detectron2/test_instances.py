"""Instances and ImageList."""

import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import Boxes, ImageList, Instances


def people() -> Instances:
    return Instances(
        (40, 60),
        pred_boxes=Boxes([[0, 0, 1, 1], [0, 0, 2, 2], [0, 0, 3, 3]]),
        scores=torch.tensor([0.1, 0.2, 0.3]),
        names=["a", "b", "c"],
    )


def test_fields_are_attributes():
    instances = people()
    instances.pred_classes = torch.tensor([4, 5, 6])
    assert instances.has("pred_classes") and instances.pred_classes is instances.get("pred_classes")
    assert list(instances.get_fields()) == ["pred_boxes", "scores", "names", "pred_classes"]
    instances.remove("scores")
    assert not instances.has("scores") and not hasattr(instances, "scores")
    assert instances.image_size == (40, 60) and len(instances) == 3


def test_get_fields_is_the_dict_in_use():
    instances = people()
    instances.get_fields()["more"] = [1, 2, 3]
    assert instances.more == [1, 2, 3]


def test_underscored_names_are_no_fields():
    instances = people()
    instances._note = "mine"
    assert instances._note == "mine" and not instances.has("_note")


def test_missing_field_is_an_attribute_error():
    with pytest.raises(AttributeError, match="masks"):
        people().masks  # noqa: B018


def test_a_field_of_another_length_is_refused():
    with pytest.raises(AssertionError):
        people().extra = torch.zeros(2)


@pytest.mark.parametrize(
    ("item", "rows"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(0, 2), [0, 1]),
        (slice(5, 9), []),
    ],
)
def test_indexing_reaches_every_field(item, rows):
    chosen = people()[item]
    assert chosen.image_size == (40, 60)
    assert chosen.names == [["a", "b", "c"][row] for row in rows]
    assert chosen.scores.tolist() == people().scores[rows].tolist()
    assert chosen.pred_boxes.tensor.tolist() == people().pred_boxes.tensor[rows].tolist()


def test_masks_and_index_tensors_choose_rows():
    instances = people()
    instances.remove("names")
    assert instances[instances.scores > 0.15].pred_boxes.tensor[:, 2].tolist() == [2, 3]
    assert instances[torch.tensor([2, 0])].pred_boxes.tensor[:, 2].tolist() == [3, 1]
    assert len(instances[torch.zeros(3, dtype=torch.bool)]) == 0


@pytest.mark.parametrize("item", [3, -4])
def test_index_out_of_range(item):
    with pytest.raises(IndexError):
        people()[item]


def test_without_fields_there_is_no_length():
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(Instances((1, 1)))


def test_cat_joins_every_kind_of_field():
    joined = Instances.cat([people(), people()[:1]])
    assert joined.names == ["a", "b", "c", "a"]
    assert joined.scores.shape == (4,) and joined.pred_boxes.tensor.shape == (4, 4)


def test_cat_of_one_is_itself():
    instances = people()
    assert Instances.cat([instances]) is instances


def test_cat_refuses_different_image_sizes_and_nothing():
    with pytest.raises(AssertionError):
        Instances.cat([people(), Instances((1, 1), scores=torch.zeros(1))])
    with pytest.raises(AssertionError):
        Instances.cat([])


def test_to_moves_the_fields_that_can_move():
    moved = people().to("cpu")
    assert moved.names == ["a", "b", "c"] and moved.scores.device.type == "cpu"


def test_copies_and_pickles():
    for other in (copy.copy(people()), copy.deepcopy(people()), pickle.loads(pickle.dumps(people()))):
        assert other.names == ["a", "b", "c"] and other.image_size == (40, 60)


def test_text_names_the_fields():
    assert "num_instances=3" in str(people()) and "scores" in str(people())


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.full((3, *size), float(index + 1)) for index, size in enumerate(sizes)]


def test_images_are_padded_right_and_bottom():
    batch = ImageList.from_tensors(images((5, 7), (6, 4)), pad_value=-1.0)
    assert batch.tensor.shape == (2, 3, 6, 7) and batch.tensor.is_contiguous()
    assert batch.image_sizes == [(5, 7), (6, 4)] and len(batch) == 2
    assert (batch[0] == 1).all() and batch[0].shape == (3, 5, 7)
    assert (batch[1] == 2).all() and batch[1].shape == (3, 6, 4)
    assert (batch.tensor[0, :, 5:] == -1).all() and (batch.tensor[1, :, :, 4:] == -1).all()


@pytest.mark.parametrize(
    ("divisibility", "constraints", "size"),
    [
        (4, None, (8, 8)),
        (1, None, (6, 7)),
        (4, {"size_divisibility": 5}, (10, 10)),
        (0, {"square_size": 16}, (16, 16)),
        (10, {"square_size": 16}, (20, 20)),
        (4, {"square_size": 0}, (8, 8)),
        (4, {}, (8, 8)),
    ],
)
def test_padded_size(divisibility, constraints, size):
    batch = ImageList.from_tensors(images((5, 7), (6, 4)), divisibility, padding_constraints=constraints)
    assert tuple(batch.tensor.shape[-2:]) == size


def test_label_maps_and_single_images_are_lists_too():
    maps = ImageList.from_tensors([torch.zeros(3, 4, dtype=torch.int64)], 8, pad_value=255)
    assert maps.tensor.shape == (1, 8, 8) and maps.tensor.dtype == torch.int64
    assert maps.tensor.sum() == 255 * (64 - 12)
    assert maps.to("cpu").device.type == "cpu"


def test_an_empty_batch_is_refused():
    with pytest.raises(AssertionError):
        ImageList.from_tensors([])


def test_numpy_images_are_refused():
    with pytest.raises(AssertionError):
        ImageList.from_tensors([np.zeros((3, 4, 4))])
