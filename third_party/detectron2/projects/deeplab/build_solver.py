"""``build_lr_scheduler`` that also knows DeepLab's schedule."""

import torch

from detectron2.config import CfgNode
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver.build import build_lr_scheduler as _build_lr_scheduler
from detectron2.solver.lr_scheduler import LRScheduler


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule named by ``SOLVER.LR_SCHEDULER_NAME``: WarmupPolyLR, or any that ``detectron2.solver`` knows."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return _build_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        solver.MAX_ITER,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD,
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
    )
