"""A whole pre-training run small enough for a test: a random CLIP, a few coloured images, a handful of classes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLIP_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CLASS_NAMES = ("red_panda", "sea lion", "sea urchin", "oak", "steam engine", "kite", "lamp", "owl")


def write_clip(folder: Path) -> Path:
    """An open_clip config file of a tiny CLIP, whose random weights are always the same."""
    path = folder / "tiny_clip.json"
    path.write_text(json.dumps(CLIP_CONFIG))
    return path


def write_images(root: Path, train: int = 6, test: int = 2) -> Path:
    """``root/{train,test}/<class>/<i>.png``: noise around one colour per class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASS_NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            colour = np.random.default_rng(label).integers(0, 256, 3)
            for index in range(count):
                pixels = np.clip(colour + rng.normal(0, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def settings(folder: Path, *extra: str) -> list[str]:
    """KEY VALUE pairs of a run on these files, in ``folder``."""
    pairs = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.ROOT": str(folder / "images"),
        "DATASET.HELD_OUT_SHOTS": "2",
        "OUTPUT_DIR": str(folder / "run"),
        "FEATURE_CACHE.FOLDER": str(folder / "features"),
        "FEATURE_CACHE.VIEWS": "2",
        "MODEL.BACKBONE.NAME": str(folder / "tiny_clip.json"),
        "INPUT.SIZE": "(16, 16)",
        "DATALOADER.NUM_WORKERS": "0",
        "DATALOADER.TRAIN_X.BATCH_SIZE": "8",
        "OPTIM.MAX_EPOCH": "3",
        "TRAIN.TENSORBOARD": "False",
        "TRAIN.PRINT_FREQ": "3",
        "TRAIN.CHECKPOINT_FREQ": "1",
        "TRAINER.POMP.EPT": "True",
        "TRAINER.POMP.UPDATE_CLASS_NUM": "5",
    }
    pairs |= dict(zip(extra[::2], extra[1::2], strict=True))
    return [text for pair in pairs.items() for text in pair]


def prepare(folder: Path) -> Path:
    """Write CLIP and images; returns ``folder``."""
    write_clip(folder)
    write_images(folder / "images")
    return folder
