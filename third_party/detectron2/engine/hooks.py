"""Hooks for the training loop; those that profile it are in ``profiling_hooks``."""

import datetime
import itertools
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

import detectron2.utils.comm as comm
from detectron2.engine.profiling_hooks import AutogradProfiler, TorchMemoryStats, TorchProfiler
from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.solver.lr_scheduler import LRScheduler as _LRScheduler
from detectron2.utils.events import EventStorage, EventWriter

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]


class CallbackHook(HookBase):
    """Calls functions, each of which gets the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable[[TrainerBase], object] | None = None,
        after_train: Callable[[TrainerBase], object] | None = None,
        before_step: Callable[[TrainerBase], object] | None = None,
        after_step: Callable[[TrainerBase], object] | None = None,
    ) -> None:
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may be closures over the trainer, which would keep it alive.
        del self._before_train, self._after_train
        del self._before_step, self._after_step

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Puts the seconds of each iteration as ``time``, and logs totals with and without the time of hooks."""

    def __init__(self, warmup_iter: int = 3) -> None:
        """The iterations before number ``warmup_iter``, which are slower, do not count."""
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total_time = time.perf_counter() - self._start_time
        total_time_minus_hooks = self._total_timer.seconds()
        num_iter = self.trainer.storage.iter - self.trainer.start_iter - self._warmup_iter + 1
        if num_iter > 0 and total_time_minus_hooks > 0:
            per_iter = total_time_minus_hooks / num_iter
            logger.info(
                f"Overall training speed: {num_iter} iterations in {_duration(total_time_minus_hooks)} "
                f"({per_iter:.4f} s / it)"
            )
        logger.info(
            f"Total training time: {_duration(total_time)} ({_duration(total_time - total_time_minus_hooks)} on hooks)"
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        if self.trainer.storage.iter - self.trainer.start_iter + 1 >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls writers every ``period`` iterations, at the last one and after the training."""

    def __init__(self, writers: Iterable[EventWriter], period: int = 20) -> None:
        self._writers = list(writers)
        for writer in self._writers:
            assert isinstance(writer, EventWriter), writer
        self._period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Once more: the evaluation after the last iteration has put new scalars.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's as a hook: saves every ``period`` iterations, and ``<prefix>_final`` at the last one."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint whenever a metric is better than ever before. Register it behind the EvalHook.

    Its best value is part of checkpoints, so a resumed training compares with it.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: that of the EvalHook.
            checkpointer: what saves.
            val_metric: name in the event storage, such as "bbox/AP50".
            mode: whether "max" or "min" is best.
            file_prefix: name of the checkpoint, without ending.
        """
        if mode not in ("max", "min"):
            raise ValueError(f'BestCheckpointer: mode should be "max" or "min", got {mode!r}')
        self._logger = logging.getLogger(__name__)
        self._period = eval_period
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
            )
            return
        metric, metric_iter = latest
        if not math.isfinite(metric):
            return
        if self.best_metric is not None and not self._is_better(metric, self.best_metric):
            self._logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"not better than best score {self.best_metric:0.5f} @ iteration {self.best_iter}."
            )
            return
        before = "" if self.best_metric is None else f", before {self.best_metric:0.5f} @ iteration {self.best_iter}"
        self.best_metric, self.best_iter = metric, metric_iter
        self._checkpointer.save(self._file_prefix, iteration=self.trainer.iter)
        self._logger.info(f"Saved best model: {self._val_metric} is {metric:0.5f} @ iteration {metric_iter}{before}")

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        # As the EvalHook: the last iteration's evaluation comes after the training.
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()

    def state_dict(self) -> dict[str, Any]:
        if self.best_metric is None:
            return {}
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class LRScheduler(HookBase):
    """Puts the learning rate as ``lr`` and steps the scheduler, after each iteration."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: _LRScheduler | ParamScheduler | None = None,
    ) -> None:
        """By default the trainer's; a fvcore ParamScheduler is applied as a factor over the whole training."""
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """The group whose learning rate stands for all: the one with most parameters.

        If every group holds one parameter, the first group with the commonest learning rate.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common()[0][0])

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> _LRScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Runs an evaluation every ``eval_period`` iterations (0: never), and after the training."""

    def __init__(
        self, eval_period: int, eval_function: Callable[[], dict[str, Any]], eval_after_train: bool = True
    ) -> None:
        """``eval_function`` returns a dict, nested or not, of numbers; they are put as "task/metric"."""
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        from detectron2.evaluation.testing import flatten_results_dict

        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            flattened = flatten_results_dict(results)
            for name, value in flattened.items():
                try:
                    flattened[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**flattened, smoothing_hint=False)
        # An evaluation may take some processes longer than others.
        comm.synchronize()

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        # The last one is left to after_train, which would otherwise evaluate the same model again.
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._do_eval()

    def after_train(self) -> None:
        # Not after an error in the middle.
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function may be a closure over the trainer, which would keep it alive.
        del self._func


class PreciseBN(HookBase):
    """Replaces the running statistics of BatchNorm layers by true averages, every ``period`` iterations and at the end.

    To be registered before what uses the statistics, checkpoints and evaluation.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        """
        Args:
            period: iterations between two updates; 0 = only at the last iteration.
            model: as it is trained; layers in eval mode, such as frozen ones, stay as they are.
            data_loader: gives training batches; read from its beginning at each update, so that a resumed training gets
                the statistics of an uninterrupted one.
            num_iter: number of batches to average over.
        """
        self._logger = logging.getLogger(__name__)
        if not get_bn_modules(model):
            self._logger.info("PreciseBN is disabled because model does not contain BN layers in training mode.")
            self._disabled = True
            return
        self._disabled = False
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._period = period
        # Read before any batch: the state of the beginning, which holds the seed of the data's order.
        self._loader_start = data_loader.state_dict() if hasattr(data_loader, "state_dict") else None

    def state_dict(self) -> dict[str, Any]:
        if self._disabled or self._loader_start is None:
            return {}
        return {"data": self._loader_start}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if not self._disabled and hasattr(self._data_loader, "load_state_dict"):
            self._loader_start = state_dict["data"]
            self._data_loader.load_state_dict(self._loader_start)

    def after_step(self) -> None:
        if self._disabled:
            return
        next_iter = self.trainer.iter + 1
        is_final = next_iter == self.trainer.max_iter
        if is_final or (self._period > 0 and next_iter % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Recompute the statistics now."""
        if self._disabled:
            return
        self._logger.info(f"Running precise-BN for {self._num_iter} iterations ...")
        # What the model puts while its statistics are measured is no training metric.
        with EventStorage():
            batches = itertools.islice(iter(self._data_loader), self._num_iter)
            update_bn_stats(self._model, batches, self._num_iter)
