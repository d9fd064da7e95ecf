"""The evaluation loop: run a model over a data loader and hand every batch to evaluators."""

import datetime
import logging
import time
from collections import OrderedDict, abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from detectron2.evaluation.testing import print_csv_format, verify_results
from detectron2.utils.comm import get_world_size, is_main_process

__all__ = [
    "DatasetEvaluator",
    "DatasetEvaluators",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]


_LOG_SECONDS = 5.0  # between two progress lines
_WARMUP_BATCHES = 5  # left out of the speed: allocation and compilation make them slow


class DatasetEvaluator:
    """Turns the inputs and outputs of a model over a whole data set into metrics.

    ``inference_on_dataset`` calls ``reset`` once, ``process`` for every batch, ``evaluate`` at the end.
    """

    def reset(self) -> None:
        """Forget earlier rounds; called before the first batch."""

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take one batch: the model's inputs and its outputs, in the same order."""

    def evaluate(self) -> dict[str, Any] | None:
        """Metrics as ``{task: {metric: value}}``; for several processes only the main one's count."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their results are merged and must not share a key."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        merged: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()  # on every process: it may gather
            if not is_main_process() or results is None:
                continue
            for key, value in results.items():
                assert key not in merged, f"Different evaluators produce results with the same key {key}"
                merged[key] = value
        return merged


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable[Any],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run ``model`` on every batch of ``data_loader`` and return what ``evaluator`` makes of it.

    The model runs in evaluation mode and without gradients; its mode is restored. Progress, speed and the time left
    are logged every few seconds.

    Args:
        model: called with a batch; an ``nn.Module``, or any callable.
        data_loader: an iterable of batches; without a length no time left is logged.
        evaluator: one or several; None only measures the speed.
        callbacks: functions to call at "start", and at "before_inference" and "after_inference" of each batch.
    Returns:
        The results; {} where there are none, as on all processes but the main one.
    """
    logger = logging.getLogger(__name__)
    if evaluator is None or isinstance(evaluator, abc.Sequence):
        evaluator = DatasetEvaluators(evaluator or [])
    callbacks = callbacks or {}
    total = len(data_loader) if isinstance(data_loader, abc.Sized) else None
    logger.info(f"Start inference on {'an unknown number of' if total is None else total} batches")
    evaluator.reset()
    progress = _Progress(total, logger)
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        callbacks.get("start", _do_nothing)()
        progress.start()
        for inputs in data_loader:
            progress.lap("data")
            callbacks.get("before_inference", _do_nothing)()
            outputs = model(inputs)
            callbacks.get("after_inference", _do_nothing)()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # else the time of the model would count as the evaluator's
            progress.lap("inference")
            evaluator.process(inputs, outputs)
            progress.lap("eval")
            progress.batch_done()
    progress.finish()
    results = evaluator.evaluate()
    return {} if results is None else results


class _Progress:
    """Seconds spent per phase, and log lines about them."""

    def __init__(self, total: int | None, logger: logging.Logger) -> None:
        self._total = total
        self._logger = logger
        self._warmup = _WARMUP_BATCHES if total is None else min(_WARMUP_BATCHES, max(total - 1, 0))
        self._batches = 0

    def start(self) -> None:
        self._start = self._last_lap = self._last_log = time.perf_counter()
        self._seconds = {"data": 0.0, "inference": 0.0, "eval": 0.0}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] += now - self._last_lap
        self._last_lap = now

    def batch_done(self) -> None:
        self._batches += 1
        if self._batches == self._warmup:
            self.start()  # count from here, and log as soon as there is something to say
            self._last_log = float("-inf")
        elif self._batches > self._warmup and time.perf_counter() - self._last_log >= _LOG_SECONDS:
            self._log()

    def _log(self) -> None:
        now = self._last_log = time.perf_counter()
        counted = self._batches - self._warmup
        per_batch = (now - self._start) / counted
        times = " ".join(f"{name.capitalize()}: {s / counted:.4f} s/iter." for name, s in self._seconds.items())
        line = f"Inference done {self._batches}/{'?' if self._total is None else self._total}. {times}"
        line += f" Total: {per_batch:.4f} s/iter."
        if self._total is not None:
            left = datetime.timedelta(seconds=int(per_batch * (self._total - self._batches)))
            line += f" ETA={left}"
        self._logger.info(line)

    def finish(self) -> None:
        counted = max(self._batches - self._warmup, 0)
        seconds = time.perf_counter() - self._start
        devices = f"on {get_world_size()} devices"
        self._logger.info(
            f"Total inference time: {datetime.timedelta(seconds=int(seconds))} "
            f"({seconds / max(counted, 1):.6f} s / iter per device, {devices})"
        )
        compute = self._seconds["inference"]
        self._logger.info(
            f"Total inference pure compute time: {datetime.timedelta(seconds=int(compute))} "
            f"({compute / max(counted, 1):.6f} s / iter per device, {devices})"
        )


def _do_nothing() -> None:
    pass


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode inside of the context, and back into its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
