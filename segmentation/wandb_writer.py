"""Training numbers to Weights & Biases, for runs that have a name there."""

import importlib.util
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage
from prompt_pretrain.errors import InputError

__all__ = ["WandbWriter", "check_wandb"]

_WINDOW = 20  # iterations that a smoothed value is the median of


def check_wandb(cfg: CfgNode) -> None:
    """Fail where WANDB.NAME asks for the package and it is missing.

    Raises:
        InputError: says what to install.
    """
    if cfg.WANDB.NAME and importlib.util.find_spec("wandb") is None:
        raise InputError("WANDB.NAME needs the package wandb; pip install wandb, or leave WANDB.NAME out")


class WandbWriter(EventWriter):
    """Latest numbers of the event storage; names that contain "loss" get the prefix "train/", as published."""

    def __init__(self, cfg: CfgNode) -> None:
        """Start the run WANDB.NAME of the project WANDB.PROJECT, with ``cfg`` as its config."""
        import wandb

        self._run: Any = wandb.init(
            project=cfg.WANDB.PROJECT, name=cfg.WANDB.NAME, config=dict(cfg), dir=cfg.OUTPUT_DIR, resume="allow"
        )
        self._last = -1

    def write(self) -> None:
        """Send what came since the last call."""
        storage = get_event_storage()
        latest = storage.latest_with_smoothing_hint(_WINDOW)
        new = {name: value for name, (value, iteration) in latest.items() if iteration > self._last}
        if new:
            self._run.log({f"train/{k}" if "loss" in k else k: v for k, v in new.items()}, step=storage.iter)
            self._last = max(iteration for _, iteration in latest.values())

    def close(self) -> None:
        """End the run."""
        self._run.finish()
