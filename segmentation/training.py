"""Training with exact resume, and the entry point of every process of ``tools/train_net.py``.

What iteration k does follows from the seed, the process and k: order of the data, augmentations and dropout.
Checkpoints hold the rest, so a run that was killed at any instant and resumed ends, on the CPU, bit-identical to one
that was not.
"""

import argparse
import logging
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from prompt_pretrain.accumulation import accumulate_gradients, check_accumulation, number_of_parts
from prompt_pretrain.errors import InputError
from prompt_pretrain.interruption import StopSignal
from prompt_pretrain.metrics_log import drop_rows_from
from prompt_pretrain.pretrain import TrainingInterrupted
from prompt_pretrain.process_watch import ProcessWatch, watched_evaluation
from prompt_pretrain.run_setup import explained_loading, forget_earlier_run
from prompt_pretrain.sample_randomness import random_numbers_of
from prompt_pretrain.schedule_scaling import scale_schedule
from prompt_pretrain.strict_loading import CLASS_NAMES, SEEN_CLASSES
from segmentation.checkpoint import SegmentationCheckpointer, weights_to_load
from segmentation.class_counts import check_class_counts
from segmentation.class_embedding_hook import apply_class_embeddings, trained_classes
from segmentation.data import build_test_loader, build_train_loader
from segmentation.evaluate import build_evaluator, do_test, evaluate_on, write_report
from segmentation.normalizers import find_counters
from segmentation.optimizer import build_optimizer
from segmentation.wandb_writer import WandbWriter, check_wandb

__all__ = ["Trainer", "load_for_evaluation", "run"]
_log = logging.getLogger(__name__)

# Beside the checkpoints of SOLVER.CHECKPOINT_PERIOD; bounds what a killed run loses.
ROLLING_CHECKPOINT_SECONDS = 900.0
_ROLLING = "latest_"  # start of the names of checkpoints that the next one replaces
# Added to the iteration, so that a training step never draws the same numbers as the augmentation of a sample.
_STEP_OFFSET = 2**40
_STATE = "segmentation"  # key in checkpoints
_ADVICE = "Run the same command with --resume to continue from the last checkpoint"


def run(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or with ``--eval-only`` evaluate.

    Returns:
        The results of the test set, of several: data set -> results; empty except on the main process.
    Raises:
        InputError: numbers of classes that disagree; before the model is built.
        TrainingInterrupted: a signal asked the run to stop, and its state is saved.
        LostProcessError: another process is gone.
    """
    file = Path(args.config_file) if args.config_file else Path("custom")
    name = f"{file.parent.name}/{file.stem}"
    check_class_counts(cfg, eval_only=args.eval_only)
    check_wandb(cfg)
    if args.eval_only:
        model = build_model(cfg)
        load_for_evaluation(cfg, model, resume=args.resume)
        with watched_evaluation(0, "Run the same command again", model):
            results = do_test(cfg, model, config_name=name)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    if not args.resume:
        forget_earlier_run(cfg.OUTPUT_DIR)
    trainer = Trainer(scale_schedule(cfg))
    trainer.resume_or_load(resume=args.resume)
    if trainer.start_iter >= trainer.max_iter:
        _log.info("nothing to train: iteration %d of %d is done", trainer.start_iter, trainer.max_iter)
        with watched_evaluation(trainer.max_iter, _ADVICE, trainer.model):
            return do_test(cfg, trainer.model, config_name=name)
    trainer.train()
    write_report(cfg, trainer.last_results, name)
    return next(iter(trainer.last_results.values())) if len(trainer.last_results) == 1 else trainer.last_results


def load_for_evaluation(cfg: CfgNode, model: nn.Module, *, resume: bool = False) -> None:
    """MODEL.WEIGHTS, or with ``resume`` the last checkpoint, and given class embeddings; nothing of it learns further.

    Raises:
        InputError: the weights cannot be read, or a parameter would stay random.
    """
    checkpointer = SegmentationCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg)
    last = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if last else weights_to_load(cfg, model)
    with explained_loading(path):
        checkpointer.load_all(path)
    model.requires_grad_(False)  # so that text features are encoded once
    apply_class_embeddings(cfg, model)


class Trainer(DefaultTrainer):
    """detectron2's, with the data, optimiser, schedule and evaluation of segmentation.

    Attributes:
        last_results: data set -> metrics of the last evaluation; empty except on the main process.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.last_results: dict[str, Any] = {}
        self._stop = StopSignal()
        self._watch = ProcessWatch(_ADVICE, orderly=(_Stopped,))
        self._parts = number_of_parts(cfg)
        super().__init__(cfg)
        if self._parts > 1:
            check_accumulation(self.model)

    def resume_or_load(self, resume: bool = True) -> None:
        """As the base's; what cannot be loaded is an :class:`InputError`."""
        last = resume and self.checkpointer.has_checkpoint()
        weights = weights_to_load(self.cfg, self.model)
        with explained_loading(self.checkpointer.get_checkpoint_file() if last else weights):
            if last or weights:
                super().resume_or_load(resume=resume)
        apply_class_embeddings(self.cfg, self.model)

    def train(self) -> Any:
        """Train from ``start_iter`` to ``max_iter``, with evaluations.

        Raises:
            InputError: a loss that is not finite.
            TrainingInterrupted: by Ctrl-C or SIGTERM; the state has been saved.
            LostProcessError: another process is gone.
        """
        _log.info("training from iteration %d to %d", self.start_iter, self.max_iter)
        if comm.is_main_process() and self.start_iter > 0:
            drop_rows_from(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
        try:
            with self._stop, self._watch as watch:
                watch.follow(self.model)
                return super().train()
        except _Stopped as stopped:
            raise TrainingInterrupted(
                f"stopped after iteration {stopped}; run the same command with --resume to continue"
            ) from None
        except FloatingPointError as error:
            raise InputError(
                f"loss not finite at iteration {self.iter}: {' '.join(str(error).split())}; lower SOLVER.BASE_LR, warm "
                "up longer, or resume from an earlier checkpoint"
            ) from error

    def run_step(self) -> None:
        """One iteration, whose random numbers follow from the seed, the process and its number."""
        self._watch.at(self.iter, "data")
        if self._parts > 1:
            self._run_step_in_parts()
            return
        position = _STEP_OFFSET + self.iter * comm.get_world_size() + comm.get_rank()
        with random_numbers_of(self._seed, position):
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed(int(torch.randint(2**62, ())))
            super().run_step()

    def _run_step_in_parts(self) -> None:
        """What the inner trainer's step does, for several batches. detectron2's knows one."""
        inner = self._trainer
        inner.iter = self.iter
        began = time.perf_counter()
        stream = inner._data_loader_iter
        batches = [next(stream) for _ in range(self._parts)]
        waited = time.perf_counter() - began
        inner.optimizer.zero_grad()
        scaler = inner.grad_scaler if isinstance(inner, AMPTrainer) else torch.amp.GradScaler(enabled=False)
        mixed = isinstance(inner, AMPTrainer) and next(self.model.parameters()).is_cuda
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        losses = accumulate_gradients(
            self.model,
            batches,
            seed=self._seed,
            iteration=self.iter,
            counters=find_counters(model),
            backward=lambda loss: scaler.scale(loss).backward(),
            autocast=partial(torch.autocast, "cuda", getattr(inner, "precision", torch.float16), enabled=mixed),
        )
        self.after_backward()
        inner._write_metrics(losses, waited)
        scaler.step(inner.optimizer)
        scaler.update()

    def after_backward(self) -> None:
        """Run the hooks."""
        self._watch.at(self.iter, "optimizer")
        super().after_backward()

    def state_dict(self) -> dict[str, Any]:
        """The base's, and the seed and place in the data; equal on all processes."""
        loader = self._trainer.data_loader
        data = loader.state_dict() if hasattr(loader, "state_dict") else None
        return {**super().state_dict(), _STATE: {"seed": self._seed, "data": data}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        state = state_dict.get(_STATE)
        if state is None:
            _log.warning("the checkpoint does not know seed and place in the data: data starts anew")
            return
        self._seed = state["seed"]
        if state["data"] is not None and hasattr(self._trainer.data_loader, "load_state_dict"):
            self._trainer.data_loader.load_state_dict(state["data"])

    def build_hooks(self) -> list[HookBase | None]:
        """The base's, with our checkpoints, and one that saves and stops when a signal asks for it."""
        self.checkpointer = SegmentationCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, cfg=self.cfg, trainer=weakref.proxy(self)
        )
        names, flags = trained_classes(self.cfg)
        seen = [name for name, flag in zip(names, flags, strict=True) if flag]
        self.checkpointer.notes = {CLASS_NAMES: list(names), SEEN_CLASSES: seen}
        return [*super().build_hooks(), _SaveAndStop(self.checkpointer, self._stop)]

    def build_writers(self) -> list[EventWriter]:
        """The base's, and Weights & Biases if the run has a name there."""
        writers = super().build_writers()
        return [*writers, WandbWriter(self.cfg)] if self.cfg.WANDB.NAME else writers

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    def test(self, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, Any]:  # type: ignore[override]
        """Evaluate during the training; results stay in ``last_results``."""
        self._watch.at(self.iter, "evaluation")
        self.last_results = evaluate_on(cfg, model)
        return next(iter(self.last_results.values())) if len(self.last_results) == 1 else self.last_results


class _Stopped(BaseException):
    """Leaves the loop of the base, which logs every ``Exception`` as a failure."""


class _SaveAndStop(HookBase):
    """A checkpoint now and then that the next one replaces, and one before the run stops because a signal asks."""

    def __init__(self, checkpointer: SegmentationCheckpointer, stop: StopSignal) -> None:
        self._checkpointer, self._stop = checkpointer, stop
        self._saved_at = time.monotonic()

    def after_step(self) -> None:
        """Save if it is time; the last checkpoint of the training is that of the base."""
        iteration = self.trainer.iter
        if iteration == self.trainer.max_iter - 1:
            self._remove_others("")
            return
        if time.monotonic() - self._saved_at > ROLLING_CHECKPOINT_SECONDS:
            self._save(iteration)
        if self._stop.agreed():
            self._save(iteration)
            raise _Stopped(iteration)

    def _save(self, iteration: int) -> None:
        name = f"{_ROLLING}{iteration:07d}"
        self._checkpointer.save(name, iteration=iteration)
        self._saved_at = time.monotonic()
        self._remove_others(name)

    def _remove_others(self, name: str) -> None:
        # Each has a name of its own, for its predecessor must stay whole until it is.
        if comm.is_main_process():
            for file in Path(self._checkpointer.save_dir).glob(f"{_ROLLING}*.pth"):
                if file.stem != name:
                    file.unlink()
