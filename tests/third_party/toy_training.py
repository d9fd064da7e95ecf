"""A training of seconds through ``DefaultTrainer``, with all the randomness that a real one has.

As a command it can kill itself: ``python -m tests.third_party.toy_training OUTPUT_DIR [CRASH]``, see ``crash_at``.
"""

import os
import random
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import third_party  # noqa: F401  puts third_party/ on the search path
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks

NUM_IMAGES = 11


def config(output_dir: Path | str, *settings: Any) -> CfgNode:
    """8 iterations with a checkpoint after every second one."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output_dir)
    cfg.SEED = 5
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.STEPS = (5,)
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(list(settings))
    return cfg


def records() -> list[dict[str, Any]]:
    """Wide and high images, so that aspect-ratio grouping holds samples back."""
    return [{"image_id": i, "width": 10 + i % 3, "height": 11} for i in range(NUM_IMAGES)]


def augment(record: dict[str, Any]) -> dict[str, Any]:
    """A small "image" from NumPy's, Python's and torch's random numbers."""
    image = torch.full((3, 6, 6), record["image_id"] / NUM_IMAGES)
    image += torch.as_tensor(np.random.randn(3, 1, 1), dtype=torch.float32) * 0.3
    image *= 1 + 0.2 * random.random()
    image += torch.randn(3, 6, 6) * 0.1
    return {**record, "image": image}


class Toy(nn.Module):
    """Two convolutions; the target is the image's number."""

    def __init__(self, noisy: bool) -> None:
        """``noisy``: with BatchNorm, dropout and random numbers of its own."""
        super().__init__()
        self.noisy = noisy
        between = [nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)] if noisy else [nn.ReLU()]
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), *between, nn.Conv2d(8, 1, 4))

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        found = self.layers(torch.stack([sample["image"] for sample in batch])).flatten()
        error = found - found.new_tensor([sample["image_id"] / NUM_IMAGES for sample in batch])
        factor = 1 + 0.1 * np.random.rand() if self.noisy else 1.0
        return {"loss_square": error.square().mean() * factor, "loss_size": 0.1 * found.abs().mean()}


class ToyTrainer(DefaultTrainer):
    """Trains ``Toy`` on ``records``."""

    noisy = True

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        torch.manual_seed(0)
        return Toy(cls.noisy)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return build_detection_train_loader(cfg, dataset=records(), mapper=augment)


class PlainTrainer(ToyTrainer):
    """With randomness in the images only: equal for any number of processes, if images are not grouped."""

    noisy = False


def final_weights(output_dir: Path | str) -> dict[str, Tensor]:
    """The model in ``model_final.pth``."""
    return torch.load(Path(output_dir) / "model_final.pth", weights_only=True)["model"]


def losses(output_dir: Path | str) -> dict[int, float]:
    """Iteration → loss in ``losses.txt`` of ``train_and_record``."""
    lines = (Path(output_dir) / "losses.txt").read_text().splitlines()
    return {int(iteration): float(loss) for iteration, loss in (line.split() for line in lines)}


class RecordLosses(HookBase):
    """Writes each iteration's loss, on the main process."""

    def __init__(self, output_dir: str) -> None:
        self.file = Path(output_dir) / "losses.txt"

    def after_step(self) -> None:
        total = self.trainer.storage.latest().get("total_loss")  # other processes have none
        if total is not None:
            with self.file.open("a") as file:
                file.write(f"{self.trainer.iter} {total[0]!r}\n")


def train_and_record(trainer_class: type[ToyTrainer], cfg: CfgNode) -> None:
    """A whole training from the start; for ``launch``."""
    torch.set_num_threads(1)
    trainer = trainer_class(cfg)
    trainer.register_hooks([RecordLosses(cfg.OUTPUT_DIR)])
    trainer.resume_or_load(resume=False)
    trainer.train()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(moment: str, trainer: ToyTrainer) -> None:
    """Make this process kill itself: at "step:<iteration>", or when it renames a file for the n-th time, "rename:<n>".

    A checkpoint renames two files into place, itself and the note which one is the last.
    """
    kind, _, number = moment.partition(":")
    if kind == "step":
        trainer.register_hooks([hooks.CallbackHook(before_step=lambda t: die() if t.iter == int(number) else None)])
        return
    rename, left = os.replace, int(number)

    def replace(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()
        rename(source, target)

    os.replace = replace


def main(output_dir: str, crash: str = "") -> None:
    """Start or resume the training of ``config``."""
    torch.set_num_threads(1)
    trainer = ToyTrainer(config(output_dir, "DATALOADER.NUM_WORKERS", 1))
    if crash:
        crash_at(crash, trainer)
    trainer.resume_or_load(resume=True)
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
