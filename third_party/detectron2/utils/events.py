"""Training numbers: ``EventStorage`` collects them, writers print them or put them into files."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from detectron2.utils.file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_storages: list["EventStorage"] = []  # innermost context last


def get_event_storage() -> "EventStorage":
    """The storage of the innermost ``with EventStorage(...)``; asserts that there is one."""
    assert _storages, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _storages[-1]


def has_event_storage() -> bool:
    """Whether the caller is inside a ``with EventStorage(...)`` context."""
    return bool(_storages)


class EventStorage:
    """History of named scalars per iteration, and the images and histograms that no writer has taken yet.

    A context manager: inside of it ``get_event_storage`` returns this object.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Tensor | np.ndarray, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(
        self, name: str, value: float | Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add one value of ``name``, prefixed by the current scope.

        Args:
            smoothing_hint: whether writers should smooth this name's values; the same for all of them.
            cur_iter: iteration that the value belongs to, by default the storage's.
        """
        name = self._current_prefix + name
        value = float(value)
        iteration = self._iter if cur_iter is None else cur_iter
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known_hint == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint before!"
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float | Tensor
    ) -> None:
        """``put_scalar`` of each keyword."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Tensor | np.ndarray) -> None:
        """Add an image (C, H, W): uint8 or float in [0, 1], RGB. Writers that show images take it away."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Add the histogram of a tensor's elements, in the form of ``SummaryWriter.add_histogram_raw``."""
        values = hist_tensor.detach().float().reshape(-1)
        low, high = values.min().item(), values.max().item()
        counts = torch.histc(values, bins, min=low, max=high)
        edges = torch.linspace(low, high, steps=bins + 1)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All values of a scalar.

        Raises:
            KeyError: no such scalar was ever put.
        """
        history = self._history.get(name)
        if history is None:
            raise KeyError(f"No history metric available for {name}!")
        return history

    def histories(self) -> dict[str, HistoryBuffer]:
        """Scalar name → its values."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Scalar name → (latest value, its iteration)."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like ``latest``, with the median over the last ``window_size`` iterations where the hint asks for it."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of ``name`` belong to its last ``window_size`` iterations: fewer if put less often."""
        values = self._history[name].values()
        oldest = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= oldest:
                break
            count += 1
        return count

    def step(self) -> None:
        """Go to the next iteration; only for loops that do not set ``iter``."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, to which what is put belongs."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The same as ``iter``, for older code."""
        return self._iter

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Inside of it scalar names start with ``name/``."""
        outer = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Forget the images put so far; for writers that have written them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms put so far; for writers that have written them."""
        self._histograms = []

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None:
        assert _storages[-1] is self
        _storages.pop()


class EventWriter:
    """Base of the writers: ``write`` reads the current storage, ``close`` releases files."""

    def write(self) -> None:
        """Write what is new in ``get_event_storage()``."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish; ``write`` must not be called afterwards."""


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object per line and iteration (key "iteration").

    Lines of one write may be out of order where scalars are put at different iterations. After a resume the file holds
    some iterations twice; the later line is the valid one.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Open for appending; a line that a killed process left half written is removed first."""
        _cut_unfinished_line(json_file)
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Append the scalars of iterations after the last write, smoothed where the hint asks for it."""
        lines: defaultdict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        if not lines:
            return
        self._last_write = max(lines)
        for iteration, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file_handle.close()


def _cut_unfinished_line(file: str) -> None:
    """Truncate ``file``, if there is one, behind its last line break."""
    if not PathManager.isfile(file):
        return
    with PathManager.open(file, "rb+") as handle:
        end = handle.seek(0, os.SEEK_END)
        while end > 0:
            start = max(end - 4096, 0)
            handle.seek(start)
            newline = handle.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        handle.truncate(end)


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms to a TensorBoard folder; does nothing where tensorboard is missing."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """``kwargs`` go to ``torch.utils.tensorboard.SummaryWriter``, which is created on the first write."""
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._writer: Any = None
        self._missing = False
        self._last_write = -1

    def _open(self) -> Any:
        if self._writer is None and not self._missing:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                self._missing = True
                logging.getLogger(__name__).warning(
                    f"No TensorBoard files in {self._writer_args['log_dir']}: {error}; install tensorboard to get them"
                )
            else:
                self._writer = SummaryWriter(**self._writer_args)
        return self._writer

    def write(self) -> None:
        """Write scalars newer than the last write, all images and histograms; the latter two leave the storage."""
        storage = get_event_storage()
        writer = self._open()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                newest = max(newest, iteration)
                if writer is not None:
                    writer.add_scalar(name, value, iteration)
        self._last_write = newest
        if writer is not None:
            for name, image, iteration in storage._vis_data:
                writer.add_image(name, image, iteration)
            for histogram in storage._histograms:
                writer.add_histogram_raw(**histogram)
        # Nobody else clears them, so without tensorboard they would pile up.
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line per write: ETA, iteration, losses, times, learning rate and GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Without ``max_iter`` no ETA. Losses are medians, data time is a mean, over ``window_size`` iterations."""
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # (iteration, seconds on the clock)

    def _get_eta(self, storage: EventStorage) -> str | None:
        """Time left as text. From the times of the iterations; before there are any, from the clock."""
        if self._max_iter is None:
            return None
        left = self._max_iter - storage.iter - 1
        try:
            eta_seconds = storage.history("time").median(1000) * left
        except KeyError:
            eta_seconds = None
            if self._last_write is not None and storage.iter > self._last_write[0]:
                seconds = (time.perf_counter() - self._last_write[1]) / (storage.iter - self._last_write[0])
                eta_seconds = seconds * left
            self._last_write = (storage.iter, time.perf_counter())
        else:
            storage.put_scalar("eta_seconds", eta_seconds, smoothing_hint=False)
        return None if eta_seconds is None else str(datetime.timedelta(seconds=int(eta_seconds)))

    def write(self) -> None:
        """Log the line; nothing after the last iteration, which has been logged already."""
        storage = get_event_storage()
        iteration = storage.iter
        if iteration == self._max_iter:
            return
        eta = self._get_eta(storage)
        histories = storage.histories()

        def medians(marker: str) -> str:
            return "  ".join(
                f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
                for name, history in histories.items()
                if marker in name
            )

        times = ""
        if "time" in histories:
            history = histories["time"]
            times += f"time: {history.global_avg():.4f}  last_time: {history.latest():.4f}  "
        if "data_time" in histories:
            history = histories["data_time"]
            average = history.avg(storage.count_samples("data_time", self._window_size))
            times += f"data_time: {average:.4f}  last_data_time: {history.latest():.4f}  "
        lr = f"{histories['lr'].latest():.5g}" if "lr" in histories else "N/A"
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {iteration}  {medians('loss')}  {medians('[metric]')}  "
            f"{times} lr: {lr}  {memory}"
        )
