"""The evaluation loop, merging of evaluators, printing, checking and flattening of results."""

import logging
import re

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.evaluation.testing import flatten_results_dict


class Summing(DatasetEvaluator):
    def __init__(self, name="sum"):
        self.name = name

    def reset(self):
        self.total, self.batches = 0, 0

    def process(self, inputs, outputs):
        self.total += sum(outputs)
        self.batches += 1

    def evaluate(self):
        return {self.name: {"total": self.total, "batches": self.batches}}


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout()
        self.modes = []

    def forward(self, inputs):
        self.modes.append((self.training, self.inner.training, torch.is_grad_enabled()))
        return [2 * value for value in inputs]


def test_every_batch_is_processed_in_evaluation_mode_without_gradients():
    model = Doubling()
    results = inference_on_dataset(model, [[1, 2], [3]], Summing())
    assert results == {"sum": {"total": 12, "batches": 2}}
    assert model.modes == [(False, False, False)] * 2
    assert model.training and model.inner.training


def test_several_evaluators_share_one_pass():
    model = Doubling()
    results = inference_on_dataset(model, [[1], [2]], [Summing("a"), Summing("b")])
    assert results == {"a": {"total": 6, "batches": 2}, "b": {"total": 6, "batches": 2}}
    assert len(model.modes) == 2


def test_no_evaluator_gives_no_results():
    assert inference_on_dataset(Doubling(), [[1]], None) == {}


def test_evaluators_without_results_count_as_empty():
    assert inference_on_dataset(Doubling(), [[1]], DatasetEvaluator()) == {}
    merged = DatasetEvaluators([DatasetEvaluator(), Summing()])
    assert inference_on_dataset(Doubling(), [[1]], merged) == {"sum": {"total": 2, "batches": 1}}


def test_equal_keys_of_evaluators_are_refused():
    with pytest.raises(AssertionError, match="sum"):
        inference_on_dataset(Doubling(), [[1]], [Summing(), Summing()])


def test_callbacks_run_around_each_batch():
    calls = []
    names = ["start", "before_inference", "after_inference"]
    callbacks = {name: (lambda name=name: calls.append(name)) for name in names}
    inference_on_dataset(Doubling(), [[1], [2]], None, callbacks=callbacks)
    assert calls == ["start", *["before_inference", "after_inference"] * 2]


def test_the_mode_is_restored_after_an_error():
    model = Doubling()
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training
        raise RuntimeError
    assert model.training
    model.eval()
    with inference_context(model):
        pass
    assert not model.training


def test_progress_names_the_batches_and_the_time_left(caplog):
    with caplog.at_level(logging.INFO, logger="detectron2"):
        inference_on_dataset(Doubling(), [[1]] * 12, Summing())
    line = next(record.getMessage() for record in caplog.records if "ETA" in record.getMessage())
    assert re.search(r"\d+/12.*ETA=0:00:0", line)


def test_csv_lines_hold_the_metrics_of_no_class(caplog):
    with caplog.at_level(logging.INFO, logger="detectron2"):
        print_csv_format({"bbox": {"AP": 12.34567, "AP50": 50.0, "AP-cat": 1.0}, "speed": 3})
    lines = [record.getMessage() for record in caplog.records]
    assert "copypaste: Task: bbox" in lines
    assert "copypaste: AP,AP50" in lines
    assert "copypaste: 12.3457,50.0000" in lines
    assert "copypaste: speed=3" in lines


def _cfg(*rows):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = list(rows)
    return cfg


def test_results_within_the_tolerance_pass():
    results = {"bbox": {"AP": 38.6}, "segm": {"AP": 35.0}}
    assert verify_results(_cfg(["bbox", "AP", 38.5, 0.2], ["segm", "AP", 35.0, 0.0]), results) is True
    assert verify_results(_cfg(), results) is True


@pytest.mark.parametrize("results", [{"bbox": {"AP": 38.8}}, {"bbox": {"AP": float("nan")}}])
def test_other_results_end_the_process(results):
    with pytest.raises(SystemExit) as ended:
        verify_results(_cfg(["bbox", "AP", 38.5, 0.2]), results)
    assert ended.value.code == 1


def test_flat_results_join_their_path():
    nested = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten_results_dict(nested) == {"a/b/c": 1, "a/d": 2, "e": 3}
