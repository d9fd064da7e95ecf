"""The bundled training loader: samples depend on the seed and their place only, and a state leads to any place."""

import itertools
import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    build_batch_data_loader,
    build_detection_train_loader,
)
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

SIZES = [(4, 3), (3, 4), (5, 5), (6, 2), (1, 2), (9, 8), (7, 7), (8, 3), (2, 9), (9, 2), (5, 6)]
RECORDS = [{"image_id": number, "width": width, "height": height} for number, (width, height) in enumerate(SIZES)]


def augment(record: dict) -> dict:
    """A mapper that draws from all three generators."""
    return {**record, "drawn": (np.random.rand(), random.random(), float(torch.rand(())))}


def make_loader(sampler_seed: int | None = 3, *, grouping: bool = False, workers: int = 0, **options):
    dataset = MapDataset(DatasetFromList(RECORDS), augment)
    return build_batch_data_loader(
        dataset,
        TrainingSampler(len(RECORDS), seed=sampler_seed),
        options.pop("batch_size", 2),
        aspect_ratio_grouping=grouping,
        num_workers=workers,
        **{"seed": 5, **options},
    )


def take(loader, count: int) -> list[list[tuple]]:
    return [[(sample["image_id"], *sample["drawn"]) for sample in batch] for batch in itertools.islice(loader, count)]


@pytest.mark.parametrize("grouping", [False, True])
def test_samples_do_not_depend_on_workers(grouping):
    alone = take(make_loader(grouping=grouping), 9)
    assert take(make_loader(grouping=grouping, workers=2), 9) == alone
    assert take(make_loader(grouping=grouping, seed=6), 9) != alone


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_state_leads_back_to_any_place(grouping, workers):
    whole = take(make_loader(grouping=grouping), 20)
    for done in (0, 1, 7):
        loader = make_loader(grouping=grouping, workers=workers)
        iterator = iter(loader)
        assert take(iterator, done) == whole[:done]
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["batches"] == done
        resumed = make_loader(None, grouping=grouping, seed=None)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert take(resumed, 20 - done) == whole[done:]


@pytest.mark.parametrize("grouping", [False, True])
def test_what_comes_for_a_broken_image_depends_on_the_place_alone(grouping):
    def loader():
        dataset = MapDataset(DatasetFromList(RECORDS), lambda record: None if record["image_id"] % 3 else record)
        sampler = TrainingSampler(len(RECORDS), seed=1)
        return build_batch_data_loader(dataset, sampler, 2, aspect_ratio_grouping=grouping, seed=4)

    whole = [[record["image_id"] for record in batch] for batch in itertools.islice(loader(), 12)]
    resumed = loader()
    resumed.load_state_dict({"seed": 4, "batches": 7})
    assert [[record["image_id"] for record in batch] for batch in itertools.islice(resumed, 5)] == whole[7:]
    assert len({image for batch in whole for image in batch}) > 3


def test_each_iteration_starts_at_the_same_place():
    loader = make_loader()
    first = take(loader, 3)
    assert take(loader, 3) == first
    loader.load_state_dict({**loader.state_dict(), "batches": 1})
    assert take(loader, 2) == take(loader, 2) == first[1:]


def test_random_numbers_outside_are_left_alone():
    def draw() -> tuple:
        return np.random.rand(), random.random(), float(torch.rand(()))

    def seed() -> None:
        np.random.seed(0)
        random.seed(0)
        torch.manual_seed(0)

    loader = make_loader()
    seed()
    expected = draw()
    seed()
    take(loader, 4)
    assert draw() == expected


def test_repeated_images_get_new_numbers():
    batches = take(make_loader(), 30)
    numbers = [sample[1:] for batch in batches for sample in batch]
    assert len(set(numbers)) == len(numbers) == 60


def test_two_processes_see_what_one_sees(monkeypatch):
    alone = take(make_loader(batch_size=4), 8)
    ranks = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(comm, "get_rank", lambda rank=rank: rank)
            patch.setattr(comm, "get_world_size", lambda: 2)
            ranks.append(take(make_loader(batch_size=4), 8))
    together = [sorted(first + second) for first, second in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for batch in alone]


def test_samples_without_size_are_grouped_by_what_the_mapper_says():
    sizes = {record["image_id"]: record for record in RECORDS}
    dataset = MapDataset(
        DatasetFromList([{"image_id": number} for number in sizes]), lambda row: sizes[row["image_id"]]
    )
    loader = build_batch_data_loader(dataset, TrainingSampler(11, seed=0), 3, aspect_ratio_grouping=True)

    def groups(batches: Iterator) -> list[set]:
        return [{row["width"] > row["height"] for row in batch} for batch in itertools.islice(batches, 6)]

    assert all(len(group) == 1 for group in groups(iter(loader)))
    state = {**loader.state_dict(), "batches": 2}
    whole = [[row["image_id"] for row in batch] for batch in itertools.islice(loader, 6)]
    loader.load_state_dict(state)
    assert [[row["image_id"] for row in batch] for batch in itertools.islice(loader, 4)] == whole[2:]


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: TrainingSampler(30, seed=seed),
        lambda seed: RandomSubsetTrainingSampler(30, 0.5, seed_shuffle=seed, seed_subset=seed),
        lambda seed: RepeatFactorTrainingSampler(torch.linspace(1, 2, 30), seed=seed),
    ],
)
def test_state_of_a_sampler_gives_its_stream(make):
    original, other = make(1), make(2)
    assert list(itertools.islice(other, 50)) != list(itertools.islice(original, 50))
    other.load_state_dict(original.state_dict())
    assert list(itertools.islice(other, 50)) == list(itertools.islice(original, 50))


def test_order_depends_on_the_run_without_a_seed():
    name = "training_loader_test"
    DatasetCatalog.register(name, lambda: [dict(record) for record in RECORDS])
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = (name,), 0, 2
    try:
        orders = {}
        for seed in (-1, -1, 8, 8):
            cfg.SEED = seed
            loader = build_detection_train_loader(cfg, mapper=augment)
            orders.setdefault(seed, []).append(take(loader, 12))
    finally:
        DatasetCatalog.remove(name)
    assert orders[-1][0] != orders[-1][1]
    assert orders[8][0] == orders[8][1]
