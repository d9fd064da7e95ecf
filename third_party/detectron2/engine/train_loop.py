"""The training loop: ``TrainerBase`` runs hooks around steps, ``SimpleTrainer`` and ``AMPTrainer`` do the steps."""

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import detectron2.utils.comm as comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]


class HookBase:
    """Code to run around the steps of a trainer, whose ``trainer`` attribute is set when it is registered.

    The order is ``before_train``; for each iteration ``before_step``, ``after_backward``, ``after_step``; then
    ``after_train``, which also runs after an error.
    """

    trainer: "TrainerBase" = None  # a weak proxy: trainer and hooks would hold each other otherwise

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, and after an error."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called between backward and the optimizer's step."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved in a checkpoint; hooks with a state also need ``load_state_dict``."""
        return {}


class TrainerBase:
    """A loop with hooks. Subclasses define ``run_step``.

    Attributes:
        iter: the current iteration; equal to ``max_iter`` once the training is complete.
        start_iter, max_iter: first iteration and end of the loop.
        storage: the ``EventStorage`` open during the training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks behind those registered so far, in this order; None is left out."""
        hooks = [hook for hook in hooks if hook is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase), f"{hook} is not a HookBase"
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``. An error is logged and raised again."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Hooks see by this in after_train that the training is complete.
                self.iter = max(start_iter, max_iter)
            except (OSError, ValueError) as error:  # of a disk or of data: where our code was says nothing about it
                logger.error("Exception during training, in iteration %d: %s", self.iter, error)
                raise
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Run the hooks' ``before_train``."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Run the hooks' ``after_train``."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Run the hooks' ``before_step``."""
        # By hooks and the model's code the current iteration is known from the storage.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Run the hooks' ``after_backward``; ``run_step`` calls it."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Run the hooks' ``after_step``."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """{"iteration": the last one done, "hooks": class name → state of the first hook of that class}."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks: dict[str, dict[str, Any]] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            if hook_state:
                hooks.setdefault(type(hook).__qualname__, hook_state)
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; states of hooks that are not registered are left out with a warning."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(f"Cannot find the hook '{name}', its state_dict is ignored.")
            else:
                hook.load_state_dict(hook_state)


class SimpleTrainer(TrainerBase):
    """A step of the common kind: one model, one loader, one optimizer.

    The model takes a batch of the loader and returns a dict of losses, which are summed, or one loss.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: is put into training mode.
            data_loader: gives batches without end, or at least as many as there are iterations.
            gather_metric_period: iterations from one collection of losses from all processes to the next.
            zero_grad_before_forward: otherwise gradients are cleared between forward and backward.
            async_write_metrics: collect losses in a thread, so that the loop need not wait for the GPU.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator[Any] | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        # One worker, so that metrics are written, and processes communicate, in the order of iterations.
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._pending_metrics: list[concurrent.futures.Future[None]] = []

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Made on first use: a resumed training restores the loader's state before.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replace the loader; the old one and its worker processes are released before the new one is built."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _next_batch(self) -> tuple[Any, float]:
        """A batch and the seconds that it took to get it."""
        start = time.perf_counter()
        try:
            batch = next(self._data_loader_iter)
        except StopIteration:
            raise ValueError(
                f"the data loader ended at iteration {self.iter}, before the training did: it must give batches "
                "without end; use detectron2.data.build_detection_train_loader or a TrainingSampler"
            ) from None
        return batch, time.perf_counter() - start

    def run_step(self) -> None:
        """Data, forward, backward, metrics, optimizer step."""
        assert self.model.training, "[SimpleTrainer] model was changed to eval mode!"
        batch, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = _total(self.model(batch))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _record_metrics(self, loss_dict: Mapping[str, Tensor], data_time: float) -> None:
        if self.concurrent_executor is None:
            self._write_metrics(loss_dict, data_time)
            return
        detached = {name: loss.detach() for name, loss in loss_dict.items()}
        storage = get_event_storage()

        def write(iteration: int) -> None:
            self._write_metrics(detached, data_time, cur_iter=iteration, storage=storage)

        for future in [future for future in self._pending_metrics if future.done()]:
            self._pending_metrics.remove(future)
            future.result()  # raises what the thread raised, such as for a loss that is not finite
        self._pending_metrics.append(self.concurrent_executor.submit(write, self.iter))

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        cur_iter: int | None = None,
        storage: EventStorage | None = None,
    ) -> None:
        iteration = self.iter if cur_iter is None else cur_iter
        if (iteration + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix, storage)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
        storage: EventStorage | None = None,
    ) -> None:
        """Average losses over the processes and put them, their sum and the longest ``data_time``, on rank 0.

        Every process puts its own ``data_time`` as ``rank_data_time``.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        storage = get_event_storage() if storage is None else storage
        metrics = _to_floats(loss_dict)
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather({**metrics, "data_time": data_time})
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(each.pop("data_time") for each in gathered), cur_iter=cur_iter)
        names = dict.fromkeys(name for each in gathered for name in each)
        # Processes may hold batches of different kinds, and so lack each other's losses.
        means = {name: float(np.mean([each[name] for each in gathered if name in each])) for name in names}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def after_train(self) -> None:
        """Wait for metrics that are still being written, then run the hooks."""
        if self.concurrent_executor is not None:
            self.concurrent_executor.shutdown(wait=True)
        super().after_train()
        for future in self._pending_metrics:
            future.result()

    def state_dict(self) -> dict[str, Any]:
        """The base's, and "optimizer"."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def _total(losses: Tensor | dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What a model returned, as a dict of losses and their sum."""
    if isinstance(losses, Tensor):
        return {"total_loss": losses}, losses
    return losses, sum(losses.values())


def _to_floats(loss_dict: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The values as Python numbers; one transfer for all those on a GPU."""
    tensors = {name: value.detach() for name, value in loss_dict.items() if isinstance(value, Tensor)}
    values: list[float] = []
    if tensors:
        values = torch.stack([value.double().reshape(()) for value in tensors.values()]).tolist()
    floats = dict(zip(tensors, values, strict=True))
    return {name: floats[name] if name in floats else float(value) for name, value in loss_dict.items()}


class AMPTrainer(SimpleTrainer):
    """``SimpleTrainer`` in mixed precision on a GPU; in full precision, with a warning, where the model is on the CPU.

    Args:
        grad_scaler: for float16; made here if not given. bfloat16 needs none.
        precision: ``torch.float16`` or ``torch.bfloat16``.
        log_grad_scaler: put the scale as the metric "[metric]grad_scaler".
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        if precision not in (torch.float16, torch.bfloat16):
            raise ValueError(f"AMPTrainer works in torch.float16 or torch.bfloat16, got precision={precision}")
        if isinstance(model, DistributedDataParallel):
            single_device = not (model.device_ids and len(model.device_ids) > 1)
        else:
            single_device = not isinstance(model, DataParallel)
        assert single_device, "[AMPTrainer] does not support single-process multi-device training!"
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler
        self._enabled = next(model.parameters()).is_cuda
        if not self._enabled:
            logging.getLogger(__name__).warning(
                "SOLVER.AMP.ENABLED: mixed precision needs a GPU; the model is on the CPU and trains in full precision"
            )
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler("cuda", enabled=self._enabled and precision == torch.float16)
        self.grad_scaler = grad_scaler

    def run_step(self) -> None:
        """Like the base's, with autocast around the model and the losses scaled.

        The scaler unscales in the optimizer's step, so clipping that happens there sees true gradients.
        """
        assert self.model.training, "[AMPTrainer] model was changed to eval mode!"
        batch, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast("cuda", dtype=self.precision, enabled=self._enabled):
            loss_dict, losses = _total(self.model(batch))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The base's, and "grad_scaler" (empty where none is needed)."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave; a checkpoint of another precision leaves the scaler as it is."""
        super().load_state_dict(state_dict)
        scaler_state = state_dict.get("grad_scaler")
        if scaler_state and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(scaler_state)
