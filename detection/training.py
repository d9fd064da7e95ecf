"""Training with exact resume, and the entry point of every process of ``tools/train_net.py``.

What iteration k does follows from the seed, the process and k: order of the data, augmentations, sampled classes and
dropout. Checkpoints hold the rest, so a run that was killed at any instant and resumed ends, on the CPU, bit-identical
to one that was not.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detection.checkpoint import DeticCheckpointer, has_own_classes
from detection.class_counts import check_class_counts, trained_class_names
from detection.data.loading import build_train_loader
from detection.evaluate import do_test
from detection.normalizers import find_counters
from detection.optimizer import build_optimizer
from detection.reset_classifier import reset_cls_test
from detection.setup import explained_loading
from detectron2.config import CfgNode
from detectron2.engine import default_writers
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from prompt_pretrain.accumulation import accumulate_gradients, check_accumulation, number_of_parts
from prompt_pretrain.errors import InputError
from prompt_pretrain.interruption import StopSignal
from prompt_pretrain.metrics_log import drop_rows_from
from prompt_pretrain.pretrain import TrainingInterrupted
from prompt_pretrain.process_watch import ProcessWatch, watched_evaluation
from prompt_pretrain.run_setup import forget_earlier_run, weights_to_start_from
from prompt_pretrain.schedule_scaling import scale_schedule
from prompt_pretrain.strict_loading import CLASS_NAMES

__all__ = ["do_train", "run"]
_log = logging.getLogger(__name__)

WRITE_PERIOD = 20  # iterations between two lines of the log and of metrics.json
# Published configs save nothing before the end; a checkpoint this often bounds what a killed run loses.
ROLLING_CHECKPOINT_SECONDS = 900.0
_ROLLING = "latest_"  # start of the names of checkpoints that the next one replaces
_ADVICE = "Run the same command with --resume to continue from the last checkpoint"
_ADVICE_EVALUATION = "Run the same command with --resume to evaluate the trained model"


def run(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Train and then evaluate, or with ``--eval-only`` evaluate.

    Returns:
        The results of the test set, of several: data set -> results; empty except on the main process.
    Raises:
        InputError: numbers of classes that disagree; before the model is built.
        TrainingInterrupted: a signal asked the run to stop, and its state is saved.
        LostProcessError: another process is gone.
    """
    name = Path(args.config_file).stem if args.config_file else "custom"
    if not args.eval_only:
        cfg = scale_schedule(cfg)
    check_class_counts(cfg, weights=weights_to_start_from(cfg, args), eval_only=args.eval_only)
    model = build_model(cfg)
    if args.eval_only:
        _load_for_evaluation(cfg, model, resume=args.resume)
        with watched_evaluation(0, "Run the same command again", model):
            return do_test(cfg, model, config_name=name)
    if not args.resume:
        forget_earlier_run(cfg.OUTPUT_DIR)
    do_train(cfg, _distributed(cfg, model), resume=args.resume, config_name=name)
    with watched_evaluation(_total_iterations(cfg), _ADVICE_EVALUATION, model):
        return do_test(cfg, model, config_name=name)


def do_train(cfg: CfgNode, model: nn.Module, *, resume: bool = False, config_name: str = "custom") -> None:
    """Train ``model`` in place up to SOLVER.TRAIN_ITER, or SOLVER.MAX_ITER where that is negative.

    Writes ``metrics.json``, events of TensorBoard and checkpoints to OUTPUT_DIR, the last one as ``model_final.pth``.

    Args:
        model: of ``build_model``, maybe in DistributedDataParallel.
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one; otherwise MODEL.WEIGHTS are loaded and
            the iteration starts at 0.
        config_name: for the table of an evaluation during the training.
    Raises:
        InputError: settings or data that cannot be used, or a loss that is not finite.
        TrainingInterrupted: by Ctrl-C or SIGTERM; the state has been saved.
        LostProcessError: another process is gone.
    """
    model.train()
    if cfg.MODEL.RESET_CLS_TRAIN:
        reset_cls_test(model, cfg.MODEL.TRAIN_CLASSIFIERS, cfg.MODEL.TRAIN_NUM_CLASSES)
    trainer = _Trainer(cfg, model)
    start = trainer.restore(resume)
    max_iter = _total_iterations(cfg)
    if start >= max_iter:
        _log.info("nothing to train: iteration %d of %d is done", start, max_iter)
        return
    _log.info("training from iteration %d to %d", start, max_iter)
    writers = _writers(cfg, max_iter, start) if comm.is_main_process() else []
    try:
        with (
            EventStorage(start) as storage,
            StopSignal() as stop,
            trainer.watch as watch,
        ):
            watch.follow(model)
            stream = iter(trainer.loader)
            for iteration in range(start, max_iter):
                storage.iter = iteration
                trainer.step(stream, storage)
                last = iteration == max_iter - 1
                watch.at(iteration, "checkpoint")
                trainer.save(iteration, last)  # first, so that a failing evaluation does not cost the checkpoint
                period = cfg.TEST.EVAL_PERIOD
                if period > 0 and (iteration + 1) % period == 0 and not last:
                    watch.at(iteration, "evaluation")
                    _evaluate(cfg, model, storage, config_name)
                if last or (iteration - start > 5 and (iteration + 1) % WRITE_PERIOD == 0):
                    for writer in writers:
                        writer.write()
                if not last and stop.agreed():
                    trainer.save_now(iteration)
                    raise TrainingInterrupted(
                        f"stopped after iteration {iteration}; run the same command with --resume to continue"
                    )
    finally:
        for writer in writers:
            writer.close()


class _Trainer:
    """Model, optimiser, schedule and data of a run, its steps and its checkpoints."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg, self.model = cfg, model
        self.optimizer = build_optimizer(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        self.scaler = torch.amp.GradScaler("cuda", enabled=cfg.FP16 and on_gpu)
        self.loader = build_train_loader(cfg)
        self.parts = number_of_parts(cfg)
        if self.parts > 1:
            _check_parts(cfg, model)
        self.counters = find_counters(_without_wrapper(model)) if self.parts > 1 else []
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.checkpointer = DeticCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            keep_class_embeddings=has_own_classes(cfg),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            progress=self,
        )
        names = trained_class_names(cfg)
        self.checkpointer.notes = {CLASS_NAMES: list(names)} if names else {}
        self.watch = ProcessWatch(_ADVICE, orderly=(TrainingInterrupted,))
        self._saved_at = time.monotonic()
        self._saved_iteration = -1

    def state_dict(self) -> dict[str, Any]:
        """Seed and place in the data; equal on all processes, for only the main one writes checkpoints."""
        return {"seed": self.seed, "data": self.loader.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.seed = state["seed"]
        self.loader.load_state_dict(state["data"])

    def restore(self, resume: bool) -> int:
        """Load the last checkpoint or MODEL.WEIGHTS; the iteration to start with."""
        resume = resume and self.checkpointer.has_checkpoint()
        path = self.checkpointer.get_checkpoint_file() if resume else self.cfg.MODEL.WEIGHTS
        with explained_loading(path):
            rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        # Only a checkpoint of this run says where to go on; weights to start from may hold an iteration as well.
        return rest.get("iteration", -1) + 1 if resume else 0

    def step(self, stream: Iterator[Any], storage: EventStorage) -> None:
        """One iteration."""
        began = time.perf_counter()
        self.watch.at(storage.iter, "data")
        batches = list(islice(stream, self.parts))
        waited = time.perf_counter() - began
        self.optimizer.zero_grad()
        losses = accumulate_gradients(
            self.model,
            batches,
            seed=self.seed,
            iteration=storage.iter,
            counters=self.counters,
            backward=lambda loss: self.scaler.scale(loss).backward(),
        )
        self.watch.at(storage.iter, "optimizer")
        self._put_losses(losses, storage)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        storage.put_scalar("lr", _largest_lr(self.optimizer), smoothing_hint=False)
        self.scheduler.step()
        storage.put_scalars(time=time.perf_counter() - began, data_time=waited)

    def _put_losses(self, losses: Mapping[str, Tensor], storage: EventStorage) -> None:
        """Check the losses of this process and record their means over processes; one copy from the device."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        own = dict(zip(losses, values.tolist(), strict=True))
        if not all(map(_is_finite, own.values())):
            bad = ", ".join(f"{name} {value}" for name, value in own.items() if not _is_finite(value))
            raise InputError(
                f"loss not finite at iteration {storage.iter}: {bad}; lower SOLVER.BASE_LR, warm up longer, or resume "
                "from an earlier checkpoint"
            )
        if comm.get_world_size() > 1:
            own = {name: float(value) for name, value in comm.reduce_dict(dict(losses)).items()}
        if comm.is_main_process():
            storage.put_scalars(total_loss=sum(own.values()), **own)

    def save(self, iteration: int, last: bool) -> None:
        """The checkpoints of SOLVER.CHECKPOINT_PERIOD, the final one, and in between one to resume from."""
        if last:
            self._write("model_final", iteration)
        elif (iteration + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            self._write(f"model_{iteration:07d}", iteration)
        elif time.monotonic() - self._saved_at > ROLLING_CHECKPOINT_SECONDS:
            self._write(f"{_ROLLING}{iteration:07d}", iteration)

    def save_now(self, iteration: int) -> None:
        """A checkpoint to resume from, if there is none of this iteration."""
        if self._saved_iteration != iteration:
            self._write(f"{_ROLLING}{iteration:07d}", iteration)

    def _write(self, name: str, iteration: int) -> None:
        self.checkpointer.save(name, iteration=iteration)
        self._saved_at, self._saved_iteration = time.monotonic(), iteration
        # Each has a name of its own, for its predecessor must stay whole until it is.
        if comm.is_main_process():
            for file in Path(self.cfg.OUTPUT_DIR).glob(f"{_ROLLING}*.pth"):
                if file.stem != name:
                    file.unlink()


def _check_parts(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse what cannot be trained in parts."""
    check_accumulation(model)
    key = "SOLVER.ACCUMULATION_STEPS is more than 1, but "
    if cfg.MODEL.WITH_CAPTION and cfg.MODEL.SYNC_CAPTION_BATCH:
        raise InputError(f"{key}MODEL.SYNC_CAPTION_BATCH compares with the captions of all; set one of them otherwise")
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CenterNet" and cfg.MODEL.CENTERNET.MORE_POS:
        raise InputError(f"{key}MODEL.CENTERNET.MORE_POS chooses positives by predictions; set one of them otherwise")


def _without_wrapper(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _load_for_evaluation(cfg: CfgNode, model: nn.Module, resume: bool) -> None:
    """MODEL.WEIGHTS, or with ``resume`` the last checkpoint; an error where a parameter would stay random."""
    checkpointer = DeticCheckpointer(model, save_dir=cfg.OUTPUT_DIR, keep_class_embeddings=has_own_classes(cfg))
    last = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if last else cfg.MODEL.WEIGHTS
    with explained_loading(path):
        checkpointer.load_all(path)


def _distributed(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model``, in DistributedDataParallel if there are several processes. detectron2's own needs a GPU."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.FIND_UNUSED_PARAM,
    )


def _total_iterations(cfg: CfgNode) -> int:
    """The number of iterations of the whole training."""
    return cfg.SOLVER.TRAIN_ITER if cfg.SOLVER.TRAIN_ITER >= 0 else cfg.SOLVER.MAX_ITER


def _evaluate(cfg: CfgNode, model: nn.Module, storage: EventStorage, config_name: str) -> None:
    results = do_test(cfg, model, config_name=config_name)
    scalars = {name: value for name, value in flatten_results_dict(results).items() if isinstance(value, int | float)}
    if scalars:
        storage.put_scalars(**scalars, smoothing_hint=False)
    comm.synchronize()


def _writers(cfg: CfgNode, max_iter: int, start: int) -> list[EventWriter]:
    """Writers to the terminal, metrics.json and TensorBoard; after a resume metrics.json loses what is done again."""
    if start > 0:
        drop_rows_from(Path(cfg.OUTPUT_DIR) / "metrics.json", start)
    return default_writers(cfg.OUTPUT_DIR, max_iter)


def _largest_lr(optimizer: torch.optim.Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups)


def _is_finite(value: float) -> bool:
    return value - value == 0
