import json
import random

import pytest

from prompt_pretrain.classification.few_shot import few_shot_indices, sample_few_shot, saved_few_shot_split
from prompt_pretrain.classification.items import ImageItem
from prompt_pretrain.errors import InputError


def as_items(root, labels) -> tuple[ImageItem, ...]:
    return tuple(ImageItem(f"{root}/{split}/{i}.jpg", label) for split, i, label in labels)


@pytest.fixture
def data(tmp_path):
    train = as_items(tmp_path, [("train", i, i % 3) for i in range(12)])
    val = as_items(tmp_path, [("val", i, i % 3) for i in range(9)])
    return tmp_path / "split_fewshot", train, val


def obvious(labels, shots, rng) -> list[int]:
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, []).append(index)
    chosen = []
    for group in groups.values():
        chosen += rng.sample(group, shots) if len(group) >= shots else group
    return chosen


@pytest.mark.parametrize("shots", [1, 3, 16])
def test_indices_equal_the_obvious_loop(shots):
    labels = random.Random(0).choices(range(7), k=60)
    assert few_shot_indices(labels, shots, random.Random(4)) == obvious(labels, shots, random.Random(4))
    assert few_shot_indices([], shots, random.Random(4)) == []


def test_validation_gets_at_most_four_per_class():
    labels = [0] * 20 + [1] * 20
    train, val = sample_few_shot(labels, labels, 8, seed=1)
    assert (len(train), len(val)) == (16, 8)
    assert len(sample_few_shot(labels, labels, 2, seed=1)[1]) == 4
    assert sample_few_shot(labels, None, 8, seed=1) == (train, None)


def test_a_saved_split_is_read_again(data):
    folder, train, val = data
    first = saved_few_shot_split(folder, train, val, 2, 5)
    file = folder / "shot_2-seed_5.json"
    content = json.loads(file.read_text())
    assert content["train"][0][0].startswith("train/")
    assert len(content["train"]) == 6
    # What the file says counts, also where the listing has grown since.
    more = (*train, ImageItem(f"{folder.parent}/train/99.jpg", 0))
    again = saved_few_shot_split(folder, more, val, 2, 5)
    assert [list(part) for part in first] == [list(part) for part in again]
    assert list(first[0]) == [train[i] for i in sample_few_shot([i.label for i in train], None, 2, 5)[0]]


def test_without_validation_sampling_none_is_saved(data):
    folder, train, val = data
    assert saved_few_shot_split(folder, train, None, 2, 5)[1] is None
    with pytest.raises(InputError, match="disagree on whether validation images are sampled; remove it"):
        saved_few_shot_split(folder, train, val, 2, 5)


def test_tampered_and_foreign_splits_are_errors(data):
    folder, train, val = data
    saved_few_shot_split(folder, train, val, 2, 5)
    file = folder / "shot_2-seed_5.json"
    whole = file.read_text()
    file.write_text(whole.replace("train/", "other/", 1))
    with pytest.raises(InputError, match="was changed since it was saved .* remove it to draw a new subset"):
        saved_few_shot_split(folder, train, val, 2, 5)
    file.write_text("[]")
    with pytest.raises(InputError, match="is not a 'few-shot split 1' file"):
        saved_few_shot_split(folder, train, val, 2, 5)
    file.write_text(whole[:50])
    with pytest.raises(InputError, match="cannot be read"):
        saved_few_shot_split(folder, train, val, 2, 5)
    file.write_text(whole)
    file.rename(folder / "shot_3-seed_5.json")
    with pytest.raises(InputError, match="holds the subset for 2 shots, seed 5, expected 3 shots, seed 5"):
        saved_few_shot_split(folder, train, val, 3, 5)


def test_a_split_of_images_that_are_gone_or_relabelled_is_an_error(data):
    folder, train, val = data
    saved_few_shot_split(folder, train, val, 2, 5)
    relabelled = tuple(ImageItem(item.path, item.label + 1) for item in train)
    for other in (train[:3], relabelled):
        with pytest.raises(InputError, match=r"names train/\d+.jpg with label \d, which .* does not hold now"):
            saved_few_shot_split(folder, other, val, 2, 5)


def test_a_read_only_data_folder_sends_the_split_to_the_cache(data, monkeypatch, cache_home):
    folder, train, val = data
    from prompt_pretrain.classification import few_shot

    write = few_shot.write_json

    def refuse(path, value):
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        write(path, value)

    monkeypatch.setattr(few_shot, "write_json", refuse)
    first = saved_few_shot_split(folder, train, val, 2, 5)
    assert len(list((cache_home / "few_shot").rglob("shot_2-seed_5.json"))) == 1
    assert [list(part) for part in saved_few_shot_split(folder, train, val, 2, 5)] == [list(part) for part in first]
