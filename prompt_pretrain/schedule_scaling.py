"""The linear scaling rule: learning rate and schedule of a run on another number of processes than they are made for.

"Accurate, Large Minibatch SGD" (arXiv 1706.02677): with s times the images per iteration, s times the learning rate
and 1 / s times the iterations.
"""

import logging
from typing import Any

from prompt_pretrain import distributed
from prompt_pretrain.errors import InputError

__all__ = ["scale_schedule", "scaled_learning_rate"]

logger = logging.getLogger(__name__)

_KEY = "SOLVER.REFERENCE_WORLD_SIZE"


def scale_schedule(cfg: Any) -> Any:
    """A detectron2 ``cfg`` for the processes at hand, if SOLVER.REFERENCE_WORLD_SIZE says for how many it is made.

    A process that works in parts (SOLVER.ACCUMULATION_STEPS) counts as so many. With s = processes / reference,
    IMS_PER_BATCH and BASE_LR are multiplied by s; MAX_ITER, TRAIN_ITER, WARMUP_ITERS, STEPS, CHECKPOINT_PERIOD and
    TEST.EVAL_PERIOD divided by it. The rule and every number that it changes are logged. It is that of detectron2's
    DefaultTrainer, which finds nothing left to scale.

    Raises:
        InputError: the images per iteration cannot be scaled.
    """
    solver, world = cfg.SOLVER, distributed.world_size()
    parts = solver.ACCUMULATION_STEPS
    processes, reference = world * parts, solver.REFERENCE_WORLD_SIZE
    here = f"{world} processes" + (f" of {parts} parts each, which count as {processes}" if parts > 1 else "")
    if reference == 0:
        logger.info(
            "%s is 0: learning rate %g, %d images per iteration and %d iterations as configured, on %s",
            *(_KEY, solver.BASE_LR, solver.IMS_PER_BATCH, solver.MAX_ITER, here),
        )
        return cfg
    if solver.IMS_PER_BATCH * processes % reference or reference < 0:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} cannot be scaled from {_KEY} {reference} to {here}: it must "
            "be a multiple of it"
        )
    scale = processes / reference
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    changes: list[str] = []

    def change(node: Any, group: str, name: str, value: Any) -> None:
        if value != node[name]:
            changes.append(f"{group}.{name} {node[name]} -> {value}")
            node[name] = value

    def fewer(value: int) -> int:
        return max(round(value / scale), 1) if value > 0 else value

    change(cfg.SOLVER, "SOLVER", "IMS_PER_BATCH", round(solver.IMS_PER_BATCH * scale))
    change(cfg.SOLVER, "SOLVER", "BASE_LR", solver.BASE_LR * scale)
    for name in ("MAX_ITER", "TRAIN_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        if name in cfg.SOLVER:
            change(cfg.SOLVER, "SOLVER", name, fewer(cfg.SOLVER[name]))
    change(cfg.SOLVER, "SOLVER", "STEPS", tuple(map(fewer, solver.STEPS)))
    change(cfg.TEST, "TEST", "EVAL_PERIOD", fewer(cfg.TEST.EVAL_PERIOD))
    cfg.SOLVER.REFERENCE_WORLD_SIZE = world
    logger.info(
        "%s is %d, here are %s: factor %g by the linear scaling rule; %s",
        *(_KEY, reference, here, scale, ", ".join(changes) or "nothing changes"),
    )
    if frozen:
        cfg.freeze()
    return cfg


def scaled_learning_rate(optim: Any) -> float:
    """OPTIM.LR of a pre-training, scaled if OPTIM.REFERENCE_WORLD_SIZE says for how many processes it is made.

    Its batch size is per process and its schedule counts epochs, so only the rate changes. A process that works in
    parts (OPTIM.ACCUMULATION_STEPS) counts as so many. The rule is logged.
    """
    processes, reference = distributed.world_size() * optim.ACCUMULATION_STEPS, optim.REFERENCE_WORLD_SIZE
    if reference == 0:
        logger.info(
            "OPTIM.REFERENCE_WORLD_SIZE is 0: learning rate %g as configured, on %d processes", optim.LR, processes
        )
        return optim.LR
    rate = optim.LR * processes / reference
    logger.info(
        "OPTIM.REFERENCE_WORLD_SIZE is %d, here are %d processes: OPTIM.LR %g -> %g by the linear scaling rule",
        *(reference, processes, optim.LR, rate),
    )
    return rate
