"""The resumable loader: what it gives depends on the seed and the iteration only."""

import itertools
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detection  # noqa: F401  (makes detectron2 importable)
from detection.data.mapper import CustomDatasetMapper
from detection.data.samplers import MultiDatasetSampler
from detectron2.data import detection_utils
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from prompt_pretrain import distributed
from prompt_pretrain.classification.decoding import ImageError
from prompt_pretrain.errors import InputError
from prompt_pretrain.training_loader import TrainingLoader, group_indices, grouped_batches

SIZES = ((40, 30), (30, 40), (32, 32))


def records(count: int = 23) -> list[dict[str, Any]]:
    """Two data sets of different sizes, wide and high images."""
    return [
        {"number": n, "dataset_source": int(n >= count // 3), "width": SIZES[n % 3][0], "height": SIZES[n % 3][1]}
        for n in range(count)
    ]


def draw(record: dict[str, Any]) -> tuple[int, float, float, float]:
    """The record's number and a number of each generator."""
    return record["number"], np.random.rand(), random.random(), torch.rand(()).item()


def make_loader(mapper: Any = draw, *, num_workers: int = 0, seed: int = 5, **options: Any) -> TrainingLoader:
    data = options.pop("data", None) or records()
    sampler = MultiDatasetSampler(data, [1, 2], [False, False], ["box", "image"], seed=0)
    return TrainingLoader(
        data,
        mapper,
        options.pop("make_sampler", sampler.with_seed),
        options.pop("batch_sizes", [2, 2, 3, 3]),
        groups=options.pop("groups", group_indices(data, by_source=True)),
        seed=seed,
        num_workers=num_workers,
        input_errors=(detection_utils.SizeMismatchError,),
        **options,
    )


def take(loader: TrainingLoader, count: int) -> list[Any]:
    batches = iter(loader)
    return list(itertools.islice(batches, count))


def test_batches_do_not_mix_data_sets_or_aspect_ratios() -> None:
    data = records()
    for batch in take(make_loader(), 40):
        groups = {
            (data[number]["dataset_source"], data[number]["width"] > data[number]["height"]) for number, *_ in batch
        }
        assert len(groups) == 1
        assert len(batch) == (2 if groups.pop()[0] == 0 else 3)


@pytest.mark.parametrize("done", [1, 2, 7, 20])
def test_a_resumed_loader_goes_on_exactly(done: int) -> None:
    whole = take(make_loader(), 30)
    loader = make_loader()
    first = take(loader, done)
    state = loader.state_dict()
    resumed = make_loader(seed=99)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert first + take(resumed, 30 - done) == whole
    assert resumed.state_dict()["batches"] == 30


def test_workers_change_neither_order_nor_random_numbers_nor_the_state() -> None:
    loader = make_loader(num_workers=2)
    batches = iter(loader)
    first = [next(batches) for _ in range(5)]  # by now the workers have prepared more
    resumed = make_loader(seed=1)
    resumed.load_state_dict(loader.state_dict())
    assert first + take(resumed, 7) == take(make_loader(), 12)


def test_the_seed_changes_everything_and_the_generators_of_the_process_nothing() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(()).item()
    np.random.seed(0)
    torch.manual_seed(0)
    batches = take(make_loader(), 3)
    assert (np.random.rand(), torch.rand(()).item()) == expected
    np.random.seed(123)
    assert take(make_loader(), 3) == batches
    assert take(make_loader(seed=6), 3) != batches


def be_process(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """One of two, for the loader and for detectron2's samplers."""
    for module, name in ((comm, "get_rank"), (distributed, "rank")):
        monkeypatch.setattr(module, name, lambda: rank)
    for module, name in ((comm, "get_world_size"), (distributed, "world_size")):
        monkeypatch.setattr(module, name, lambda: 2)


def test_processes_share_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"groups": None, "batch_sizes": [4]}
    alone = [sample for batch in take(make_loader(**options), 6) for sample in batch]
    parts = []
    for rank in range(2):
        be_process(monkeypatch, rank)
        parts.append([sample for batch in take(make_loader(**options), 3) for sample in batch])
    assert [sample for pair in zip(*parts, strict=True) for sample in pair] == alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_are_the_batches_of_as_many_processes(monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    alone = make_loader(parts=2, num_workers=num_workers)
    in_parts = take(alone, 8)
    states = [alone.state_dict()]
    for rank in range(2):
        be_process(monkeypatch, rank)
        loader = make_loader()
        assert take(loader, 4) == in_parts[rank::2]
        states.append(loader.state_dict())
    assert states[0] == states[1] == states[2]  # a run may go on with other numbers of both
    monkeypatch.undo()
    resumed = make_loader(parts=2)
    resumed.load_state_dict({**states[1], "batches": 2})
    assert take(resumed, 4) == in_parts[4:]


def test_states_of_all_processes_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for rank in range(2):
        be_process(monkeypatch, rank)
        loader = make_loader()
        take(loader, 3)
        states.append(loader.state_dict())
    assert states[0] == states[1]


def test_detectron2_samplers_give_their_own_order() -> None:
    loader = make_loader(
        lambda record: record["number"],
        make_sampler=lambda seed: TrainingSampler(23, seed=seed),
        groups=None,
        batch_sizes=[5],
    )
    expected = list(itertools.islice(TrainingSampler(23, seed=5), 30))
    assert [number for batch in take(loader, 6) for number in batch] == expected


def test_a_negative_seed_is_drawn_and_kept_for_resuming() -> None:
    loader = make_loader(seed=-1)
    take(loader, 2)
    resumed = make_loader(seed=-1)
    resumed.load_state_dict(loader.state_dict())
    again = make_loader(seed=loader.state_dict()["seed"])
    assert take(resumed, 2) == take(again, 4)[2:]


def test_collate_and_no_mapper() -> None:
    loader = make_loader(None, collate_fn=lambda batch: [record["number"] for record in batch])
    assert all(isinstance(number, int) for batch in take(loader, 2) for number in batch)


class BreaksOn:
    """``draw`` that cannot read some images."""

    def __init__(self, *numbers: int, error: Exception | None = None) -> None:
        self.numbers, self.error = numbers, error

    def __call__(self, record: dict[str, Any]) -> Any:
        if record["number"] in self.numbers:
            raise self.error or ImageError(f"{record['number']}.jpg", "damaged")
        return draw(record)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_counted_logged_and_replaced_within_their_group(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    mapper = BreaksOn(2, 3, 9, 10, 16)
    data = records()
    loader = make_loader(mapper, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        batches = take(loader, 40)
    whole = take(make_loader(), 40)
    replaced = 0
    for batch, original in zip(batches, whole, strict=True):
        for (number, *_), (wanted, *_) in zip(batch, original, strict=True):
            assert number not in mapper.numbers
            assert group_indices([data[number]], True) == group_indices([data[wanted]], True)
            replaced += number != wanted
    assert loader.skipped >= replaced > 0
    assert sum("damaged" in message for message in caplog.messages) == loader.skipped
    assert "left out an image, number 1 in this process: 10.jpg: damaged" in caplog.text or "3.jpg" in caplog.text
    resumed = make_loader(mapper)
    resumed.load_state_dict({**loader.state_dict(), "batches": 20})
    assert take(resumed, 20) == batches[20:]


def test_a_mapper_that_gives_none_skips_the_image() -> None:
    loader = make_loader(lambda record: None if record["number"] == 4 else record["number"])
    assert all(4 not in batch for batch in take(loader, 30))
    assert loader.skipped > 0


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file", "a/b.jpg"), "^a/b.jpg does not exist; check the image folder"),
        (detection_utils.SizeMismatchError("Mismatched\nsizes"), "^Mismatched sizes$"),
        (InputError("unusable"), "^unusable$"),
        (
            ImageError("x.jpg", "damaged"),
            "^100 images in a row cannot be read, the last one because: .*x.jpg: damaged$",
        ),
        (OSError("image file is truncated"), "^100 images in a row .*image file is truncated$"),
        (Image.DecompressionBombError("too\nlarge"), "^100 images in a row .*too large$"),
    ],
)
def test_errors_of_the_user_are_one_line(num_workers: int, error: Exception, message: str) -> None:
    loader = make_loader(BreaksOn(*range(23), error=error), num_workers=num_workers)
    with pytest.raises(InputError, match=message) as raised:
        take(loader, 1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), KeyError("bbox"), RuntimeError("ours")])
def test_other_errors_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        take(make_loader(BreaksOn(*range(23), error=error)), 1)


def test_resuming_with_other_data_or_processes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    state = make_loader().state_dict()
    make_loader().load_state_dict(state)
    assert not caplog.records
    make_loader(data=records(25), batch_sizes=[2, 2, 4, 4]).load_state_dict(state | {"processes": 8})
    for change in ("images was 23 and is 25", "batch_sizes was [2, 2, 3, 3]", "processes was 8 and is 1"):
        assert change in caplog.text


def test_batch_sizes_must_be_positive() -> None:
    with pytest.raises(InputError, match=r"batch sizes are \[2, 0\].*SOLVER.IMS_PER_BATCH"):
        make_loader(batch_sizes=[2, 0])


def test_grouping_needs_the_size_of_every_image() -> None:
    with pytest.raises(InputError, match=r"image a.jpg has no width or height.*ASPECT_RATIO_GROUPING"):
        group_indices([{"file_name": "a.jpg", "width": 3}], by_source=False)


def test_square_images_count_as_high() -> None:
    sizes = [{"width": w, "height": h, "dataset_source": 3} for w, h in ((2, 1), (1, 2), (2, 2))]
    assert group_indices(sizes, by_source=False).tolist() == [0, 1, 1]
    assert group_indices(sizes, by_source=True).tolist() == [6, 7, 7]


def test_grouped_batches_by_hand() -> None:
    batches = grouped_batches(iter([1, 2, 3, 5, 4, 7, 9, 6]), lambda number: number % 2, [2, 3])
    assert list(batches) == [[1, 3, 5], [2, 4]]


def test_broken_files_are_left_out_whatever_is_broken(tmp_path: Path) -> None:
    """Through the real mapper: a truncated JPEG and PNG, text, an empty file, and a 20,000 x 20,000 image."""
    pixels = np.random.RandomState(0).randint(0, 256, (30, 40, 3), dtype=np.uint8)
    for ending in ("jpg", "png"):
        Image.fromarray(pixels).save(tmp_path / f"good.{ending}")
        whole = (tmp_path / f"good.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    names = ["good.jpg", "good.png", "cut.jpg", "cut.png", "text.jpg", "empty.jpg", "huge.png"]
    data = [{"file_name": str(tmp_path / name)} for name in names]
    mapper = CustomDatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    loader = TrainingLoader(data, mapper, lambda seed: TrainingSampler(len(names), seed=seed), [7], seed=0)
    (batch,) = take(loader, 1)
    assert loader.skipped >= 5
    assert {Path(sample["file_name"]).stem for sample in batch} == {"good"}
