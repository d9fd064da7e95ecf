"""Hooks that measure time and memory inside of iterations."""

import logging
import os
from collections.abc import Callable, Iterable

import torch

import detectron2.utils.comm as comm
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.file_io import PathManager


class TorchProfiler(HookBase):
    """Profiles chosen iterations with ``torch.profiler``.

    Each gives a trace in ``<output_dir>/log``, for TensorBoard's profiler plugin, or in
    ``<output_dir>/profiler_iter<N>.json``, for chrome://tracing.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Iterable[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        """
        Args:
            enable_predicate: gets the trainer and says whether to profile the coming iteration.
            output_dir: folder for the traces.
            activities: of the CPU, the GPU or, by default, both.
            save_tensorboard: for TensorBoard rather than for Chrome.
        """
        self._enable_predicate = enable_predicate
        self._activities = activities
        self._output_dir = output_dir
        self._save_tensorboard = save_tensorboard
        self._profiler: torch.profiler.profile | None = None

    def before_step(self) -> None:
        if not self._enable_predicate(self.trainer):
            return
        on_trace_ready = None
        if self._save_tensorboard:
            on_trace_ready = torch.profiler.tensorboard_trace_handler(
                os.path.join(self._output_dir, "log", f"profiler-tensorboard-iter{self.trainer.iter}"),
                f"worker{comm.get_rank()}",
            )
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=on_trace_ready,
            record_shapes=True,
            profile_memory=True,
            with_stack=True,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            PathManager.mkdirs(self._output_dir)
            self._profiler.export_chrome_trace(os.path.join(self._output_dir, f"profiler_iter{self.trainer.iter}.json"))
        self._profiler = None


class AutogradProfiler(TorchProfiler):
    """``TorchProfiler`` for chrome://tracing under its older name."""

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        """``use_cuda``: also profile the GPU, if there is one."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if use_cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        super().__init__(enable_predicate, output_dir, activities=activities, save_tensorboard=False)


class TorchMemoryStats(HookBase):
    """Logs CUDA memory every ``period`` iterations, at most ``max_runs`` times; does nothing without CUDA."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._logger = logging.getLogger(__name__)
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            megabyte = 2**20
            self._logger.info(
                f" iter: {self.trainer.iter}  "
                f"max_reserved_mem: {torch.cuda.max_memory_reserved() / megabyte:.0f}MB  "
                f"reserved_mem: {torch.cuda.memory_reserved() / megabyte:.0f}MB  "
                f"max_allocated_mem: {torch.cuda.max_memory_allocated() / megabyte:.0f}MB  "
                f"allocated_mem: {torch.cuda.memory_allocated() / megabyte:.0f}MB"
            )
            self._runs += 1
            torch.cuda.reset_peak_memory_stats()
