"""The usual way to train: ``DefaultTrainer``; and the names that belong here, from the files beside this one.

Models, data and evaluation are imported where they are needed, so that a loop of one's own, or the argument parser,
does not load all of them.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.engine.predictor import DefaultPredictor
from detectron2.engine.resume import ResumeState
from detectron2.engine.setup import create_ddp_model, default_argument_parser, default_setup, default_writers
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

if TYPE_CHECKING:
    from detectron2.evaluation import DatasetEvaluator

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


class _ForwardBackwardHooks(HookBase):
    """Lets ``after_backward`` of the inner trainer's step reach the hooks of the outer trainer."""

    def __init__(self, outer: TrainerBase) -> None:
        self._outer = weakref.proxy(outer)

    def after_backward(self) -> None:
        self._outer.after_backward()


class DefaultTrainer(TrainerBase):
    """Builds everything from a config and trains with the usual hooks. Change parts by overriding methods.

    Beyond weights, optimizer and schedule, its checkpoints hold the place in the data, and its random states follow
    from the iteration: on the CPU a training that was killed and resumed ends bit-identical to an uninterrupted one.

    Attributes:
        scheduler: the learning-rate schedule.
        checkpointer: a ``DetectionCheckpointer`` of the model and this trainer.
        cfg: the config, after ``auto_scale_workers``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        from detectron2.checkpoint import DetectionCheckpointer

        super().__init__()
        logger = logging.getLogger("detectron2")
        if not logger.isEnabledFor(logging.INFO):  # default_setup was not called
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, data_loader, optimizer)
        self._trainer.register_hooks([_ForwardBackwardHooks(self)])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A proxy: the checkpointer belongs to the trainer, and a cycle would keep both alive.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self._resume_state = ResumeState(cfg.SEED)
        self._restored = False
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR`` if ``resume`` and there is one, else load MODEL.WEIGHTS.

        From a checkpoint everything is restored; from MODEL.WEIGHTS the model alone.
        """
        self._restored = False
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if self._restored:
            self.start_iter = self.iter + 1  # the stored iteration is done

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks, in order: timing, learning rate, precise BN, checkpoints, evaluation, writers."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # a second loader, read now and then: it needs no processes

        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            precise_bn = hooks.PreciseBN(
                cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
            )
        built: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler(), precise_bn]
        # Before the evaluation, whose failure should not cost the checkpoint.
        if comm.is_main_process():
            built.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))

        def test_and_save_results() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if comm.is_main_process():
            # Last, so that the results of the evaluation are written as well.
            built.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return built

    def build_writers(self) -> list[EventWriter]:
        """The writers of the main process."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> dict[str, Any] | None:
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            Results of the last evaluation if TEST.EXPECTED_RESULTS asks for their check, else None.
        """
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            from detectron2.evaluation import verify_results

            assert hasattr(self, "_last_eval_results"), "No evaluation results obtained during training!"
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def before_step(self) -> None:
        """Seed this iteration's random states, then run the hooks."""
        self._resume_state.seed_iteration(self.iter)
        super().before_step()

    def run_step(self) -> None:
        """One step of the inner trainer."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """The base's, "_trainer" (the inner trainer's) and "resume" (seed and place in the data)."""
        return {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "resume": self._resume_state.state_dict(self.data_loader),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave, also that of the real detectron2, which has no "resume"."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        self._resume_state.load_state_dict(state_dict.get("resume"), self.data_loader)
        self._restored = True

    @property
    def model(self) -> nn.Module:
        """The model being trained, in its DistributedDataParallel if there is one."""
        return self._trainer.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._trainer.model = model

    @property
    def data_loader(self) -> Iterable[Any]:
        """The training loader."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, data_loader: Iterable[Any]) -> None:
        self._trainer.data_loader = data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = optimizer

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """``detectron2.modeling.build_model``, logged."""
        from detectron2.modeling import build_model

        model = build_model(cfg)
        logging.getLogger(__name__).info(f"Model:\n{model}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """``detectron2.solver.build_optimizer``."""
        from detectron2.solver.build import build_optimizer

        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """``detectron2.solver.build_lr_scheduler``."""
        from detectron2.solver.build import build_lr_scheduler

        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """``detectron2.data.build_detection_train_loader``."""
        from detectron2.data import build_detection_train_loader

        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """``detectron2.data.build_detection_test_loader``."""
        from detectron2.data import build_detection_test_loader

        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> "DatasetEvaluator":
        """The evaluator of a data set; to be overridden, or ``test`` be called with evaluators."""
        raise NotImplementedError(
            "If you want DefaultTrainer to automatically run evaluation, please implement `build_evaluator()` in "
            "subclasses (see train_net.py for example). Alternatively, you can call evaluation functions yourself."
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: "DatasetEvaluator | list[DatasetEvaluator] | None" = None,
    ) -> dict[str, Any]:
        """Evaluate ``model`` on each data set of ``cfg.DATASETS.TEST``.

        Args:
            evaluators: one per data set, instead of those of ``build_evaluator``.
        Returns:
            The results of the data set; of several, data set → results. Empty on all but the main process.
        Raises:
            ValueError: the number of evaluators is not that of the data sets.
        """
        from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format

        logger = logging.getLogger(__name__)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(
                f"{len(evaluators)} evaluators for the {len(cfg.DATASETS.TEST)} data sets of DATASETS.TEST"
            )

        results: dict[str, Any] = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            data_loader = cls.build_test_loader(cfg, name)
            if evaluators is not None:
                evaluator = evaluators[index]
            else:
                try:
                    evaluator = cls.build_evaluator(cfg, name)
                except NotImplementedError:
                    logger.warning(
                        "No evaluator found. Use `DefaultTrainer.test(evaluators=)`, or implement its "
                        "`build_evaluator` method."
                    )
                    results[name] = {}
                    continue
            dataset_results = inference_on_dataset(model, data_loader, evaluator)
            results[name] = dataset_results
            if comm.is_main_process():
                assert isinstance(dataset_results, dict), (
                    f"Evaluator must return a dict on the main process. Got {dataset_results} instead."
                )
                logger.info(f"Evaluation results for {name} in csv format:")
                print_csv_format(dataset_results)
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """``cfg`` for ``num_workers`` processes instead of SOLVER.REFERENCE_WORLD_SIZE, if that is not 0.

        With s = processes / reference, IMS_PER_BATCH and BASE_LR are multiplied by s; MAX_ITER, WARMUP_ITERS, STEPS,
        TEST.EVAL_PERIOD and CHECKPOINT_PERIOD divided by it: the same epochs, and the linear scaling rule.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
            )
        was_frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER
        scale = num_workers / reference
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR = solver.BASE_LR * scale
        solver.MAX_ITER = round(solver.MAX_ITER / scale)
        solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
        solver.REFERENCE_WORLD_SIZE = num_workers  # so that scaling twice does nothing
        logging.getLogger(__name__).info(
            f"Auto-scaling the config to batch_size={solver.IMS_PER_BATCH}, learning_rate={solver.BASE_LR}, "
            f"max_iter={solver.MAX_ITER}, warmup={solver.WARMUP_ITERS}."
        )
        if was_frozen:
            cfg.freeze()
        return cfg
