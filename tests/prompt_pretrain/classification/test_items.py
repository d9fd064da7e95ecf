import numpy as np
import pytest

from prompt_pretrain.classification.items import (
    ImageItem,
    ItemList,
    find_items,
    group_by_label,
    labels_of,
    select_items,
)


@pytest.fixture
def items() -> ItemList:
    names = np.array([b"a.jpg", b"longer name.jpg", "\u00e9.jpg".encode()], dtype=np.bytes_)
    return ItemList(["/d/n1/", "/d/n2.tar::"], np.array([0, 1, 1]), names, np.array([0, 5, 5]))


def test_items_are_paths_and_labels(items):
    expected = [
        ImageItem("/d/n1/a.jpg", 0),
        ImageItem("/d/n2.tar::longer name.jpg", 5),
        ImageItem("/d/n2.tar::é.jpg", 5),
    ]
    assert list(items) == expected
    assert items[-1] == expected[-1]
    assert list(items[1:]) == expected[1:]


def test_selecting_works_alike_on_compact_lists_and_tuples(items):
    for kind in (items, tuple(items)):
        chosen = select_items(kind, [2, 0])
        assert [item.path for item in chosen] == ["/d/n2.tar::é.jpg", "/d/n1/a.jpg"]
        assert labels_of(chosen).tolist() == [5, 0]
        assert labels_of(select_items(kind, np.array([2, 0]), np.array([7, 8]))).tolist() == [7, 8]


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        ItemList(["/d/"], np.array([0]), np.array([b"a"]), np.array([0, 1]))


def test_items_are_found_by_path(items):
    paths = [
        "/d/n2.tar::é.jpg",
        "/d/n1/a.jpg",
        "/d/n1/b.jpg",
        "/d/n1/0.jpg",
        "/d/n3/a.jpg",
        "/d/n2.tar::longer name.jpg",
    ]
    for kind in (items, tuple(items), items.select([0, 2, 1])[::1]):
        found = find_items(kind, paths).tolist()
        assert [kind[i].path if i >= 0 else None for i in found] == [*paths[:2], None, None, None, paths[5]]
    backwards = items.select([2, 1, 0])
    assert find_items(backwards, paths[:2]).tolist() == [0, 2]


def test_groups_hold_positions_in_order():
    groups = group_by_label(np.array([3, 0, 3, 1, 0]))
    assert {label: group.tolist() for label, group in groups.items()} == {0: [1, 4], 1: [3], 3: [0, 2]}
    assert group_by_label(np.zeros(0, dtype=np.int64)) == {}
