"""Prompt pre-training: one soft prompt learned on a large vocabulary with frozen CLIP towers (POMP, arXiv 2304.04704).

:class:`PromptPretrainer` is the loop; :mod:`prompt_pretrain.pretraining_setup` makes one from a config.
Everything random is a function of (seed, epoch, image) or (seed, step), so a run continued after any interruption goes
the same way as one that was never interrupted, on the CPU to the last bit.
"""

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from prompt_pretrain import distributed
from prompt_pretrain.classification.samplers import train_batches, train_steps
from prompt_pretrain.errors import InputError
from prompt_pretrain.feature_source import Autocast, FeatureSource
from prompt_pretrain.interruption import StopSignal
from prompt_pretrain.metrics_log import MetricsLog
from prompt_pretrain.optimisation import build_sgd, learning_rate_from_cfg, set_learning_rate
from prompt_pretrain.process_watch import ProcessWatch
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from prompt_pretrain.prompt_loss import BatchLoss, StepRows
from prompt_pretrain.run_folder import RunFolder
from prompt_pretrain.schedule_scaling import scaled_learning_rate

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what to show beside them


class TrainingInterrupted(Exception):  # noqa: N818 (not an error: the run can go on)
    """A signal asked the run to stop; its state is saved. The message says where and how to continue."""


@dataclass(frozen=True)
class PretrainResult:
    """What a finished run leaves behind.

    ``best_accuracy`` and ``last_accuracy`` are percentages on the images that chose the epoch, None if none did.
    """

    best_prompt: Path
    last_prompt: Path
    best_epoch: int
    last_epoch: int
    best_accuracy: float | None
    last_accuracy: float | None


@dataclass
class _Meter:
    """Sums over steps on the device, so that no step waits for the device: loss, correct rows, rows."""

    sums: Tensor
    bad_step: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.bad_step = torch.full((), sys.maxsize, device=self.sums.device)

    @classmethod
    def empty(cls, device: torch.device) -> "_Meter":
        return cls(torch.zeros(3, dtype=torch.float64, device=device))

    def add(self, outcome: BatchLoss, step: int) -> None:
        self.sums += torch.stack([outcome.loss_sum, outcome.num_correct, outcome.num_rows]).double()
        bad = ~torch.isfinite(outcome.loss_sum)
        self.bad_step = torch.where(bad, self.bad_step.clamp(max=step), self.bad_step)

    def total(self) -> Tensor:
        """The sums over all processes."""
        return distributed.sum_(self.sums.clone())


class PromptPretrainer:
    """Trains ``prompt`` and keeps its files.

    The loop serves any module whose parameters are few: a subclass says what a step's loss is (:meth:`outcome`) and how
    a set of parameters becomes a file (:meth:`save`).

    Args:
        cfg: see :mod:`prompt_pretrain.config`; only OPTIM, TRAIN, SEED and DATALOADER.TRAIN_X.BATCH_SIZE are read.
        prompt: changed in place; the device of its parameters is where training happens.
        loss: loss of a batch of features; of a prompt, :class:`~prompt_pretrain.prompt_loss.PromptLoss`.
        source: training features.
        run: where files go; claimed by the caller.
        accuracy: percentage of a prompt on the images that choose the epoch (a collective call); None keeps the last.
        settings: what a continued run must agree on; kept in the states for
            :func:`~prompt_pretrain.checkpoints.check_settings`.
        autocast: context of the forward pass. grad_scaling: scale losses, for fp16.
        margin: nominal margin, for the log.
        progress: called after each step.
    """

    def __init__(
        self,
        cfg: CfgNode,
        prompt: nn.Module,
        loss: Any,
        source: FeatureSource,
        run: RunFolder,
        *,
        accuracy: Callable[[Any], float] | None,
        settings: Mapping[str, Any],
        autocast: Autocast,
        grad_scaling: bool = False,
        margin: float = 0.0,
        progress: Progress | None = None,
    ) -> None:
        self.cfg, self.prompt, self.loss, self.source, self.run = cfg, prompt, loss, source, run
        self.accuracy, self.settings, self.autocast = accuracy, dict(settings), autocast
        self.margin, self.progress = margin, progress
        self.parameters = {name: value for name, value in prompt.named_parameters() if value.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        optim = cfg.OPTIM
        self.optimizer = build_sgd(
            self.parameters.values(),
            momentum=optim.MOMENTUM,
            weight_decay=optim.WEIGHT_DECAY,
            dampening=optim.SGD_DAMPNING,
            nesterov=optim.SGD_NESTEROV,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=grad_scaling)
        self.parts: int = optim.ACCUMULATION_STEPS
        self.batch_size: int = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        self.optim = optim.clone()
        self.optim.defrost()
        self.optim.LR = scaled_learning_rate(optim)
        self.watch = ProcessWatch(
            f"Run the same command again to continue from the last state in {run.root}", orderly=(TrainingInterrupted,)
        )
        self.steps_per_epoch = train_steps(len(source.labels), self.batch_size, distributed.world_size() * self.parts)
        if not self.steps_per_epoch:
            raise InputError("there is no training image; check DATASET.ROOT and DATASET.NUM_SHOTS")
        self.epoch = 0  # 0-based, the one in progress
        self.step_in_epoch = 0
        self.epoch_meter = _Meter.empty(self.device)
        self.line_meter = _Meter.empty(self.device)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        for parameter in self.parameters.values():
            distributed.broadcast_(parameter.data)

    @property
    def step(self) -> int:
        """Steps done since the first one of the run."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def total_steps(self) -> int:
        return self.cfg.OPTIM.MAX_EPOCH * self.steps_per_epoch

    # -- what a subclass replaces ------------------------------------------------------------------------------------

    def outcome(self, image_features: Tensor, rows: StepRows, ok: Tensor | None) -> BatchLoss:
        """Loss of this process's part of the step in progress; called under autocast."""
        parts = rows.parts(self.parts, self.source.views)
        return self.loss(self.prompt.ctx, image_features, rows, self.step, ok=ok, parts=parts)

    def save(self, path: Path, parameters: Mapping[str, Tensor], epoch: int, accuracy: float | None) -> None:
        """Write the file of ``parameters``, those after ``epoch`` epochs."""
        assert isinstance(self.prompt, SoftPrompt)
        prompt = SoftPrompt(parameters["ctx"], self.prompt.position, self.prompt.metadata)
        save_prompt(path, prompt, epoch=epoch, extra={"val_result": accuracy})

    # -- the loop ----------------------------------------------------------------------------------------------------

    def train(self, state: Mapping[str, Any] | None = None) -> PretrainResult:
        """Train to the end, from the beginning or from a saved ``state`` (the same on every process).

        Raises:
            TrainingInterrupted: SIGINT or SIGTERM came; the state after the last step is saved.
            InputError: the loss is not finite any more.
            LostProcessError: another process is gone.
        """
        if state is not None:
            self._restore(state)
        log = self._open_log()
        self._started, self._steps_before = time.monotonic(), self.step
        self._line_started, self._line_step = self._started, self.step
        try:
            with StopSignal() as stop, self.watch, _deterministic_on_cpu(self.device):
                while self.epoch < self.cfg.OPTIM.MAX_EPOCH:
                    self._train_epoch(stop, log)
                    self._finish_epoch(log)
                    self._stop_if_asked(stop.agreed())
        finally:
            if log is not None:
                log.close()
        return self._result()

    def _train_epoch(self, stop: StopSignal, log: MetricsLog | None) -> None:
        rate = learning_rate_from_cfg(self.epoch, self.optim)
        set_learning_rate(self.optimizer, rate)
        dealt = [self._batches_of(rank) for rank in range(distributed.world_size())]
        self.watch.at(self.step, "data")
        features = self.source.batches(self.epoch, dealt[distributed.rank()])
        for images, (image_features, ok) in zip(zip(*dealt, strict=True), features, strict=True):
            rows = StepRows.deal(self.source.labels, images, self.source.views)
            self._take_step(image_features, rows, ok)
            last = self.step_in_epoch == self.steps_per_epoch
            line_due = last or self.step % self.cfg.TRAIN.PRINT_FREQ == 0
            if line_due:
                self._write_line(log, rate)
            if last:
                return  # the end of the epoch saves the state
            asked = stop.agreed()
            every = self.cfg.TRAIN.CHECKPOINT_STEPS
            if asked or (every and self.step % every == 0):
                self._save_state()
            self._stop_if_asked(asked)
            self.watch.at(self.step, "data")

    def _batches_of(self, rank: int) -> list[np.ndarray]:
        """Images of the remaining steps of a process: those of all the processes whose work it does, in turn."""
        world = distributed.world_size()
        of_parts = [
            train_batches(
                len(self.source.labels),
                self.batch_size,
                seed=self.cfg.SEED,
                epoch=self.epoch,
                rank=rank + part * world,
                world=world * self.parts,
                start_step=self.step_in_epoch,
            )
            for part in range(self.parts)
        ]
        return [np.stack(batches, axis=1).reshape(-1) for batches in zip(*of_parts, strict=True)]

    def _take_step(self, image_features: Tensor, rows: StepRows, ok: Tensor | None) -> None:
        self.watch.at(self.step, "forward")
        with self.autocast():
            outcome = self.outcome(image_features, rows, ok)
        self.watch.at(self.step, "backward")
        self.scaler.scale(outcome.loss).backward()
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.average_(parameter.grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.line_meter.add(outcome, self.step)
        self.epoch_meter.add(outcome, self.step)
        self.step_in_epoch += 1
        if self.progress is not None:
            self.progress(self.step, self.total_steps, f"epoch {self.epoch + 1}/{self.cfg.OPTIM.MAX_EPOCH}")

    def _finish_epoch(self, log: MetricsLog | None) -> None:
        self._check_finite()
        loss, train_accuracy = _means(self.epoch_meter.total())
        self.watch.at(self.step, "evaluation")
        self.epoch += 1
        self.step_in_epoch = 0
        self.epoch_meter, self.line_meter = _Meter.empty(self.device), _Meter.empty(self.device)
        accuracy = None if self.accuracy is None else self.accuracy(self.prompt)
        row = {"epoch": self.epoch, "loss": loss, "train_accuracy": train_accuracy, "accuracy": accuracy}
        self.history.append(row)
        # The first of several equal maxima counts, as published.
        if accuracy is None or not self.best or accuracy > self.best["accuracy"]:
            self.best = {"epoch": self.epoch, "accuracy": accuracy, "parameters": self._values()}
        self._write_prompts(accuracy)
        if log is not None:
            log.write(self.step, "epoch", {name: value for name, value in row.items() if value is not None})
        chosen = "" if accuracy is None else f", accuracy {accuracy:.2f} (best {self.best['accuracy']:.2f})"
        logger.info("epoch %d/%d done: loss %.4f%s", self.epoch, self.cfg.OPTIM.MAX_EPOCH, loss, chosen)
        self._save_state()
        self._line_started, self._line_step = time.monotonic(), self.step

    def _stop_if_asked(self, asked: bool) -> None:
        if asked and self.epoch < self.cfg.OPTIM.MAX_EPOCH:
            raise TrainingInterrupted(
                f"stopped in epoch {self.epoch + 1} after step {self.step} of {self.total_steps}; "
                f"the state is saved in {self.run.root}, run the same command again to continue"
            )

    # -- numbers -----------------------------------------------------------------------------------------------------

    def _open_log(self) -> MetricsLog | None:
        if not distributed.is_main_process():
            return None
        return MetricsLog(self.run.root, step=self.step, tensorboard=self.cfg.TRAIN.TENSORBOARD)

    def _write_line(self, log: MetricsLog | None, rate: float) -> None:
        self._check_finite()
        loss, accuracy = _means(self.line_meter.total())
        self.line_meter = _Meter.empty(self.device)
        now = time.monotonic()
        images = (self.step - self._line_step) * self.batch_size * self.parts * distributed.world_size()
        speed = images / max(now - self._line_started, 1e-9)
        per_step = (now - self._started) / max(self.step - self._steps_before, 1)
        remaining = per_step * (self.total_steps - self.step)
        self._line_started, self._line_step = now, self.step
        memory = _memory_gb(self.device)
        logger.info(
            "epoch %d/%d step %d/%d loss %.4f acc@K %.2f lr %.2e margin %.2f %.0f images/s ETA %s memory %.1f GB",
            self.epoch + 1,
            self.cfg.OPTIM.MAX_EPOCH,
            self.step_in_epoch,
            self.steps_per_epoch,
            loss,
            accuracy,
            rate,
            self.margin,
            speed,
            _clock(remaining),
            memory,
        )
        if log is not None:
            row = {"epoch": self.epoch + 1, "loss": loss, "accuracy_among_k": accuracy, "lr": rate}
            row |= {"margin": self.margin, "images_per_second": speed, "eta_seconds": remaining, "memory_gb": memory}
            log.write(self.step, "train", row)

    def _check_finite(self) -> None:
        """Raise on every process if a loss or the context of any of them is not finite."""
        total = self.line_meter.total()
        finite = [torch.isfinite(parameter).all() for parameter in self.parameters.values()]
        if bool(torch.isfinite(total[0])) and bool(torch.stack(finite).all()):
            return
        first = min(distributed.gather_objects(int(self.line_meter.bad_step)))
        rate = learning_rate_from_cfg(self.epoch, self.optim)
        raise InputError(
            f"the loss is not finite at step {min(first, self.step)} (epoch {self.epoch + 1}, learning rate {rate:g}); "
            f"lower OPTIM.LR or set TRAINER.POMP.PREC to fp32; the last good state is kept in {self.run.root}"
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def _write_prompts(self, accuracy: float | None) -> None:
        if not distributed.is_main_process():
            return
        last = self.epoch == self.cfg.OPTIM.MAX_EPOCH
        every = self.cfg.TRAIN.CHECKPOINT_FREQ
        if last or (every and self.epoch % every == 0):
            path = self.run.epoch_prompt(self.epoch)
            self.save(path, self._values(), self.epoch, accuracy)
            self.run.point_to(path)
        if self.best["epoch"] == self.epoch:
            self._write_best()

    def _write_best(self) -> None:
        self.save(self.run.best_prompt, self.best["parameters"], self.best["epoch"], self.best["accuracy"])

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def _save_state(self) -> None:
        """Save all that continuing needs; refuses to save what is not finite."""
        self.watch.at(self.step, "checkpoint")
        self._check_finite()
        meters = {"epoch_meter": self.epoch_meter.total().cpu(), "line_meter": self.line_meter.total().cpu()}
        if not distributed.is_main_process():
            return
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"].detach().cpu().clone()
            for name, parameter in self.parameters.items()
            if "momentum_buffer" in self.optimizer.state[parameter]
        }
        state = {
            "parameters": self._values(),
            "momentum": momentum,
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "best": self.best,
            "history": self.history,
            "settings": self.settings,
            **meters,
        }
        self.run.states.save(state, self.step)

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state["parameters"][name])
            if name in state["momentum"]:
                self.optimizer.state[parameter]["momentum_buffer"] = state["momentum"][name].to(self.device)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.best, self.history = state["best"], state["history"]
        if distributed.is_main_process():
            # Sums over all processes; one of them carries them on.
            self.epoch_meter = _Meter(state["epoch_meter"].to(self.device))
            self.line_meter = _Meter(state["line_meter"].to(self.device))
        logger.info("continuing after step %d of %d", self.step, self.total_steps)

    def _result(self) -> PretrainResult:
        last = self.run.epoch_prompt(self.epoch)
        if distributed.is_main_process():
            # A run continued elsewhere, or after its prompts were deleted, gets them again.
            if not self.run.best_prompt.exists():
                self._write_best()
            if not last.exists():
                self.save(last, self._values(), self.epoch, self.history[-1]["accuracy"])
                self.run.point_to(last)
        distributed.barrier()
        return PretrainResult(
            best_prompt=self.run.best_prompt,
            last_prompt=last,
            best_epoch=self.best["epoch"],
            last_epoch=self.epoch,
            best_accuracy=self.best["accuracy"],
            last_accuracy=self.history[-1]["accuracy"],
        )


def _means(total: Tensor) -> tuple[float, float]:
    """Mean loss, and accuracy in percent."""
    loss, correct, rows = total.tolist()
    return (loss / rows, 100 * correct / rows) if rows else (0.0, 0.0)


def _memory_gb(device: torch.device) -> float:
    """Peak memory: allocated on the GPU, else resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextmanager
def _deterministic_on_cpu(device: torch.device) -> Iterator[None]:
    """Forbid the few CPU kernels whose sums depend on the order in which threads finish."""
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
