"""The trainings of a soak: their data, commands, checkpoints and results."""

import pickle
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ROOT = Path(__file__).resolve().parents[2]
_CONFIGS = _ROOT / "configs"
sys.path.append(str(_ROOT))  # the commands are imported as ``tools.NAME``, which no installation provides
_SIZE = 96  # pixels of a scene


@dataclass(frozen=True)
class Task:
    """A training of the suite.

    Attributes:
        name: of the training.
        module: what its processes import; imported before they are forked, so that all of them take as long.
        draw: writes its data into a new folder.
        command: (data, run folder, steps) -> the entry point and its arguments; the same command continues a run.
        images: pattern of its training images below the data folder.
        last_step: (run folder) -> step of the newest readable checkpoint, None without one.
        checkpoints: (run folder) -> checkpoint files, the newest last.
        weights: (run folder) -> the trained weights of a finished run.
    """

    name: str
    module: str
    draw: Callable[[Path], None]
    command: Callable[[Path, Path, int], tuple[Callable[[Sequence[str]], int], list[str]]]
    images: str
    last_step: Callable[[Path], int | None]
    checkpoints: Callable[[Path], list[Path]]
    weights: Callable[[Path], dict[str, Tensor]]


def _recipe() -> Any:
    from prompt_pretrain.shapeworld.scene_files import SceneRecipe

    return SceneRecipe(num_classes=12, num_novel=2, train_images=24, val_images=2, size=_SIZE)


# ---- prompt pre-training ----


def _draw_pictures(folder: Path) -> None:
    from prompt_pretrain.shapeworld.writers import Recipe, write_imagenet21k

    recipe = Recipe(num_classes=12, num_novel=2, images_per_class=6, val_per_class=1)
    write_imagenet21k(folder / "shapeworld", recipe=recipe)


def _pretrain(data: Path, run: Path, steps: int) -> tuple[Callable[[Sequence[str]], int], list[str]]:
    from tools.pretrain_prompt import main

    # Images are decoded in every step: a cache of features would not notice that the data are gone.
    settings = {
        "DATASET.ROOT": data,
        "OUTPUT_DIR": run,
        "FEATURE_CACHE.ENABLED": False,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 12,
        "TRAINER.POMP.UPDATE_CLASS_NUM": 8,
        "OPTIM.MAX_EPOCH": max(2, steps // 4),
        "TRAIN.CHECKPOINT_STEPS": _period(steps),
        "TRAIN.TENSORBOARD": False,
        "TEST.SELECTION": "last",
    }
    return main, ["--config-file", str(_CONFIGS / "prompt_pretrain" / "shapeworld_tiny.yaml"), *_words(settings)]


def _prompt_step(run: Path) -> int | None:
    from prompt_pretrain.checkpoints import CheckpointFolder

    state = CheckpointFolder(run / "checkpoints").load()
    return None if state is None else int(state["step"])


def _prompt_files(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("state-*.pth"))


def _prompt_weights(run: Path) -> dict[str, Tensor]:
    from prompt_pretrain.prompt import load_prompt

    name = (run / "prompt_learner" / "checkpoint").read_text(encoding="utf-8").strip()
    return {"ctx": load_prompt(run / "prompt_learner" / name).ctx.detach()}


# ---- detection and segmentation ----


def _draw_boxes(folder: Path) -> None:
    from prompt_pretrain.shapeworld.annotation_writers import write_coco

    write_coco(folder / "world", recipe=_recipe())


def _detect(data: Path, run: Path, steps: int) -> tuple[Callable[[Sequence[str]], int], list[str]]:
    world = data / "world" / "coco"
    words = ["--train-json", world / "annotations" / "instances_train2017.json", "--train-images", world / "train2017"]
    settings = {"INPUT.TRAIN_SIZE": _SIZE}
    return _train_net("detection/shapeworld_boxsup.yaml", [str(word) for word in words], settings, run, steps)


def _draw_label_maps(folder: Path) -> None:
    from prompt_pretrain.shapeworld.annotation_writers import write_sem_seg

    write_sem_seg(folder / "world", recipe=_recipe())


def _segment(data: Path, run: Path, steps: int) -> tuple[Callable[[Sequence[str]], int], list[str]]:
    world = data / "world"
    words = ["--train-images", world / "images" / "train", "--train-labels", world / "labels" / "train"]
    words += ["--classes", world / "classes.txt"]
    return _train_net("segmentation/shapeworld_maskformer.yaml", [str(word) for word in words], {}, run, steps)


def _train_net(
    config: str, words: list[str], settings: dict[str, Any], run: Path, steps: int
) -> tuple[Callable[[Sequence[str]], int], list[str]]:
    from tools.train_net import main

    settings = {"OUTPUT_DIR": run, "SEED": 3, "SOLVER.MAX_ITER": steps, "SOLVER.IMS_PER_BATCH": 2, **settings}
    settings["SOLVER.CHECKPOINT_PERIOD"] = _period(steps)
    return main, ["--config-file", str(_CONFIGS / config), "--resume", *words, *_words(settings)]


def _iteration(run: Path) -> int | None:
    """As a resumed training finds it: of the last checkpoint, or of the newest complete one before it."""
    found = [_iteration_of(file) for file in _model_files(run)]
    return max((step for step in found if step is not None), default=None)


def _iteration_of(file: Path) -> int | None:
    """None if the file is damaged anywhere, or holds weights alone."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return None
        return int(torch.load(file, map_location="cpu", mmap=True, weights_only=True)["iteration"])
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def _model_files(run: Path) -> list[Path]:
    return sorted(run.glob("model_*.pth"), key=lambda path: path.stat().st_mtime)


def _model_weights(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "model_final.pth", map_location="cpu", weights_only=True)["model"]


def _period(steps: int) -> int:
    """Steps between two checkpoints: some 8 in a training, all of which the disk must hold."""
    return max(3, steps // 8)


def _words(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in (key, str(value))]


TASKS = {
    task.name: task
    for task in (
        Task(
            "prompt",
            "prompt_pretrain.pretraining_setup",
            _draw_pictures,
            _pretrain,
            "**/imagenet21k_train/*/*",
            _prompt_step,
            _prompt_files,
            _prompt_weights,
        ),
        Task(
            "detection",
            "detection.training",
            _draw_boxes,
            _detect,
            "**/train2017/*",
            _iteration,
            _model_files,
            _model_weights,
        ),
        Task(
            "segmentation",
            "segmentation.training",
            _draw_label_maps,
            _segment,
            "**/images/train/*",
            _iteration,
            _model_files,
            _model_weights,
        ),
    )
}
