import pytest

from prompt_pretrain.classification.items import ClassificationData, ImageItem
from prompt_pretrain.classification.subsets import hold_out, subsample
from prompt_pretrain.errors import InputError


def items(counts, split: str = "train") -> tuple[ImageItem, ...]:
    return tuple(ImageItem(f"/{split}/{label}/{i}", label) for label, count in enumerate(counts) for i in range(count))


@pytest.fixture
def data() -> ClassificationData:
    test = items([1, 2, 1], "test")
    return ClassificationData(
        "X",
        "/",
        ("a", "b", "c"),
        items([3, 2, 4]),
        test,
        test,
        (3, 2, 4),
        held_out=items([1, 0, 1], "held"),
        folders=("n0", "n1", "n2"),
    )


def test_base_is_the_first_half_rounded_up_and_new_the_rest(data):
    base, new = subsample(data, "base"), subsample(data, "new")
    assert (base.class_names, base.class_counts, base.folders) == (("a", "b"), (3, 2), ("n0", "n1"))
    assert (new.class_names, new.class_counts, new.folders) == (("c",), (4,), ("n2",))
    assert list(base.train) == list(data.train[:5])
    assert [(item.path, item.label) for item in new.test] == [("/test/2/0", 0)]
    assert [item.label for item in new.held_out] == [0]
    assert base.val is base.test
    assert subsample(data, "all") is data


def test_wrong_subsets_are_errors(data):
    with pytest.raises(InputError, match="unknown DATASET.SUBSAMPLE_CLASSES 'old'; expected one of all, base, new"):
        subsample(data, "old")
    with pytest.raises(InputError, match="has one class only, so its 'new' half is empty"):
        subsample(subsample(data, "new"), "new")


def test_held_out_images_come_from_those_not_sampled():
    full = items([10, 10])
    train = (*full[:4], *full[10:14])
    left, spared = hold_out(full, train, 3, seed=1)
    assert left == train
    assert [item.label for item in spared] == [0] * 3 + [1] * 3
    assert not set(spared) & set(train)
    assert hold_out(full, train, 3, seed=1)[1] == spared
    assert hold_out(full, train, 3, seed=2)[1] != spared


def test_classes_without_spare_images_give_up_at_most_half():
    full = items([10, 5, 1])
    train = (*full[:4], *full[10:])
    left, spared = hold_out(full, train, 4, seed=1)
    assert [item.label for item in spared] == [0] * 4 + [1] * 2
    assert [item.label for item in left] == [0] * 4 + [1] * 3 + [2]
    assert not set(spared) & set(left)


def test_all_images_for_training_share_with_held_out():
    full = items([10, 3])
    left, spared = hold_out(full, full, 4, seed=1)
    assert sorted([*left, *spared], key=lambda item: item.path) == sorted(full, key=lambda item: item.path)
    assert [item.label for item in spared] == [0] * 4 + [1]


def test_nothing_to_hold_out_is_an_error():
    full = items([1, 1])
    with pytest.raises(InputError, match="no class has two images.*set TEST.SELECTION to last"):
        hold_out(full, full, 4, seed=1)
