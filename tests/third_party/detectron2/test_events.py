"""Event storage and writers."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


@pytest.fixture
def printed() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("detectron2.utils.events")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_storages_nest() -> None:
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="inside a 'with EventStorage"):
        get_event_storage()
    with EventStorage() as outer:
        with EventStorage(5) as inner:
            assert get_event_storage() is inner
            assert inner.iter == 5
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_storage_leaves_the_stack_after_an_error() -> None:
    with pytest.raises(KeyError), EventStorage():
        raise KeyError
    assert not has_event_storage()


def test_scalars_keep_value_and_iteration() -> None:
    storage = EventStorage(3)
    storage.put_scalars(a=1, b=torch.tensor(2.5))
    storage.put_scalar("a", 7, cur_iter=9)
    storage.step()
    storage.put_scalar("b", 3)
    assert storage.latest() == {"a": (7.0, 9), "b": (3.0, 4)}
    assert storage.iteration == storage.iter == 4
    assert storage.history("a").values() == [(1.0, 3), (7.0, 9)]
    assert set(storage.histories()) == {"a", "b"}
    with pytest.raises(KeyError, match="No history metric available for c"):
        storage.history("c")


def test_smoothing_hint_may_not_change() -> None:
    storage = EventStorage()
    storage.put_scalar("lr", 1.0, smoothing_hint=False)
    with pytest.raises(AssertionError, match="lr"):
        storage.put_scalar("lr", 1.0)


def test_smoothing_is_over_iterations_rather_than_values() -> None:
    storage = EventStorage()
    for iteration in range(0, 30, 3):
        storage.iter = iteration
        storage.put_scalar("rare", iteration)
        storage.put_scalar("raw", iteration, smoothing_hint=False)
    assert storage.count_samples("rare", 10) == 4
    assert storage.latest_with_smoothing_hint(10) == {"rare": (22.5, 27), "raw": (27.0, 27)}


def test_scopes_prefix_names_and_end() -> None:
    storage = EventStorage()
    with storage.name_scope("stage1"):
        storage.put_scalar("x", 1)
    with pytest.raises(ValueError, match="ends"), storage.name_scope("broken/"):
        storage.put_scalar("x", 2)
        raise ValueError("ends")
    storage.put_scalar("x", 3)
    assert {name: value for name, (value, _) in storage.latest().items()} == {"stage1/x": 1, "broken/x": 2, "x": 3}


def test_images_and_histograms_wait_for_a_writer() -> None:
    storage = EventStorage(2)
    storage.put_image("seen", np.zeros((3, 2, 2), dtype=np.uint8))
    storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4)
    assert [(name, iteration) for name, _, iteration in storage._vis_data] == [("seen", 2)]
    (histogram,) = storage._histograms
    assert {key: histogram[key] for key in ("tag", "min", "max", "num", "global_step")} == {
        "tag": "weights",
        "min": 0.0,
        "max": 4.0,
        "num": 4,
        "global_step": 2,
    }
    assert histogram["sum"] == 6
    assert histogram["sum_squares"] == 18
    assert histogram["bucket_counts"] == [1.0, 2.0, 0.0, 1.0]
    assert histogram["bucket_limits"] == [1.0, 2.0, 3.0, 4.0]
    storage.clear_images()
    storage.clear_histograms()
    assert not storage._vis_data
    assert not storage._histograms


def test_json_holds_each_value_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    writer = JSONWriter(str(file))
    with EventStorage() as storage:
        storage.put_scalar("a", 1)
        writer.write()
        writer.write()
        storage.iter = 1
        storage.put_scalar("b", 2)
        writer.write()
    writer.close()
    again = JSONWriter(str(file))  # as a resumed training does
    with EventStorage(1) as storage:
        storage.put_scalar("b", 3)
        again.write()
    again.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"a": 1.0, "iteration": 0}, {"b": 2.0, "iteration": 1}, {"b": 3.0, "iteration": 1}]


def test_tensorboard_gets_scalars_images_and_histograms(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage(4) as storage:
        storage.put_scalar("loss", 0.5)
        storage.put_image("picture", torch.zeros(3, 4, 4))
        storage.put_histogram("weights", torch.arange(10.0), bins=5)
        writer.write()
        writer.write()
        assert not storage._vis_data
        assert not storage._histograms
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 0.5)]
    assert [event.step for event in events.Images("picture")] == [4]
    assert events.Tags()["histograms"] == ["weights"]


def test_printer_says_what_is_there(printed: list[str]) -> None:
    printer = CommonMetricPrinter(max_iter=10)
    with EventStorage(3) as storage:
        printer.write()
        storage.put_scalars(loss_a=0.25, time=2.0)
        storage.put_scalar("[metric]scale", 8.0)
        printer.write()
        storage.iter = 10
        printer.write()
    assert len(printed) == 2
    assert printed[0].split() == ["iter:", "3", "lr:", "N/A"] + printed[0].split()[4:]
    assert "eta: 0:00:12  iter: 3  loss_a: 0.25  [metric]scale: 8  time: 2.0000  last_time: 2.0000" in printed[1]
    assert storage.latest()["eta_seconds"] == (12.0, 3)


def test_printer_without_an_end_has_no_eta(printed: list[str]) -> None:
    with EventStorage() as storage:
        storage.put_scalar("time", 1.0)
        CommonMetricPrinter().write()
    assert "eta" not in printed[0]


def test_writers_have_to_write() -> None:
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()
