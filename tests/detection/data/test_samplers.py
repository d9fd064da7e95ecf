"""Weights and streams of several data sets."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import detection  # noqa: F401  (makes detectron2 importable)
from detection.data.samplers import MultiDatasetSampler, WeightedSampler, repeat_factors_from_tag_frequency
from detectron2.utils import comm
from prompt_pretrain.errors import InputError


def records(*sizes: int) -> list[dict[str, Any]]:
    return [{"dataset_source": source, "annotations": []} for source, size in enumerate(sizes) for _ in range(size)]


def sampler(data: list[dict[str, Any]], *, ratio: tuple = (1, 4), rfs: tuple = (False, False), **options: Any) -> Any:
    return MultiDatasetSampler(data, ratio, rfs, options.pop("ann", ("box", "image")), seed=3, **options)


def test_data_sets_have_their_shares_whatever_their_sizes() -> None:
    weights = sampler(records(10, 90)).weights
    assert_close(weights[:10].sum() / weights.sum(), torch.tensor(0.2))
    # By hand: the largest has 90 images, so 90 / 10 * 1 / 5 and 90 / 90 * 4 / 5.
    assert_close(weights, torch.tensor([1.8] * 10 + [0.8] * 90))


def test_the_order_of_records_does_not_matter() -> None:
    data = records(3, 5)
    mixed = [data[index] for index in (7, 0, 3, 1, 4, 2, 6, 5)]
    weights = dict(zip(map(id, data), sampler(data).weights.tolist(), strict=True))
    assert [weights[id(record)] for record in mixed] == sampler(mixed).weights.tolist()


def test_repeat_factors_keep_the_share_of_the_data_set() -> None:
    data = records(8, 8)
    for number, record in enumerate(data[8:]):
        record["pos_category_ids"] = [number // 7]
    plain, repeated = sampler(data).weights, sampler(data, rfs=(False, True), repeat_threshold=0.5).weights
    assert_close(plain[:8], repeated[:8])
    assert_close(plain[8:].sum(), repeated[8:].sum())
    assert repeated[15] == pytest.approx(2 * repeated[8].item())  # sqrt(0.5 / (1 / 8)) = 2, the others 1


def test_boxes_and_labels_count_by_the_kind_of_annotation() -> None:
    data = records(4, 4)
    data[0]["annotations"] = [{"category_id": 1}]
    data[4]["pos_category_ids"] = [1]
    as_boxes = sampler(data, rfs=(True, True), ann=("box", "box"), repeat_threshold=1.0).weights
    as_labels = sampler(data, rfs=(True, True), ann=("image", "image"), repeat_threshold=1.0).weights
    assert as_boxes[0] > as_boxes[1] and as_boxes[4] == as_boxes[5]
    assert as_labels[0] == as_labels[1] and as_labels[4] > as_labels[5]


def test_tag_frequencies_by_hand() -> None:
    data = [{"pos_category_ids": labels} for labels in ([0, 0, 1], [0], [], [2])] + [{}]
    # Threshold 0.8 of 5 images = 4: class 0 stands there 3 times, classes 1 and 2 once.
    expected = [2.0, (4 / 3) ** 0.5, 1.0, 2.0, 1.0]
    assert_close(repeat_factors_from_tag_frequency(data, 0.8), torch.tensor(expected))


def test_every_image_comes_as_often_as_its_weight_says() -> None:
    drawn = Counter(itertools.islice(sampler(records(2, 8)), 20_000))
    shares = torch.tensor([drawn[index] / 20_000 for index in range(10)])
    assert_close(shares, torch.tensor([0.1] * 10), atol=0.01, rtol=0)


@pytest.mark.parametrize("world_size", [2, 3, 7, 12])
def test_processes_take_turns_in_one_stream_over_rounds(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(itertools.islice(sampler(records(4, 6)), 5 * world_size))  # rounds of 10
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert list(itertools.islice(sampler(records(4, 6)), 5)) == whole[rank::world_size]


def test_another_seed_is_another_stream_over_the_same_weights() -> None:
    first = WeightedSampler(torch.ones(50), seed=1)
    second = first.with_seed(2)
    head = [list(itertools.islice(each, 20)) for each in (first, second, first.with_seed(1))]
    assert head[0] == head[2] != head[1]
    assert second.weights is first.weights


def test_without_a_seed_processes_draw_one_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 3)
    drawn = MultiDatasetSampler(records(4, 6), (1, 4), (False, False), ("box", "image"))
    assert list(itertools.islice(drawn, 9)) == list(itertools.islice(sampler(records(4, 6)), 9))


def test_wrong_arguments_name_their_key() -> None:
    data = records(3, 3)
    with pytest.raises(InputError, match=r"DATALOADER.USE_RFS has 1 entries for 2 training sets"):
        sampler(data, rfs=(True,))
    with pytest.raises(InputError, match=r"DATALOADER.DATASET_ANN has 3 entries for 2"):
        sampler(data, ann=("box",) * 3)
    with pytest.raises(InputError, match=r"DATALOADER.DATASET_RATIO has 1 entries for 2"):
        sampler(data, ratio=(1,), rfs=(True,), ann=("box",))
    with pytest.raises(InputError, match=r"DATASET_RATIO is \[0, 0\]; expected shares"):
        sampler(data, ratio=(0, 0))
    with pytest.raises(InputError, match=r"number 2 has no images.*FILTER_EMPTY_ANNOTATIONS"):
        sampler(records(3))
