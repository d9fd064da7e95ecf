"""A tiny detector, six pictures in COCO format and a command line, for tests of training and evaluation."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASS_NAMES = ("red star", "green disc", "blue square")
WIDTH = 16  # of the class embeddings

_CONFIG = """
_BASE_: {base}
MODEL:
  WEIGHTS: ''
  DEVICE: cpu
  TIMM: {{BASE_NAME: resnet18}}
  FPN: {{OUT_CHANNELS: 64}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_DIM: 8}}
  CENTERNET: {{POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 10}}
INPUT: {{TRAIN_SIZE: 32, MIN_SIZE_TEST: 32}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2, WARMUP_ITERS: 2}}
DATALOADER: {{NUM_WORKERS: 0}}
SEED: 3
"""


def write_pictures(folder: Path, class_names: tuple[str, ...] = CLASS_NAMES) -> Path:
    """A COCO json with six pictures of one box each beside it."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 7):
        width, height = (64, 48) if number % 2 else (48, 64)
        x, y = (int(value) for value in rng.integers(0, 20, 2))
        picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        picture[y : y + 20, x : x + 24, number % 3] = 250
        Image.fromarray(picture).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        outline = [[x, y, x + 24, y, x + 24, y + 20, x, y + 20]]
        box = {"bbox": [x, y, 24, 20], "area": 480, "iscrowd": 0, "segmentation": outline}
        annotations.append({"id": number, "image_id": number, "category_id": number % len(class_names) + 1, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    path = folder / "pictures.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_embeddings(path: Path, num_classes: int = len(CLASS_NAMES), width: int = WIDTH) -> Path:
    np.save(path, np.random.default_rng(1).normal(size=(num_classes, width)).astype(np.float16))
    return path


def write_config(folder: Path, base: str = "BoxSup-C2_L_CLIP_R5021k_640b64_4x") -> Path:
    path = folder / "tiny.yaml"
    path.write_text(_CONFIG.format(base=ROOT / "configs" / "detection" / f"{base}.yaml"))
    return path


def command(folder: Path, *overrides: str, test: bool = True) -> list[str]:
    """Arguments of ``tools/train_net.py`` for the tiny detector on the pictures, its run in ``folder/run``."""
    json_file, embeddings = write_pictures(folder), write_embeddings(folder / "embeddings.npy")
    data = ["--train-json", str(json_file), "--train-images", str(folder)]
    if test:
        data += ["--test-json", str(json_file), "--test-images", str(folder)]
    settings = ["OUTPUT_DIR", str(folder / "run"), "MODEL.CLASS_EMBEDDINGS.PATH", str(embeddings)]
    return ["--config-file", str(write_config(folder)), *data, *settings, *overrides]


def parsed(arguments: list[str]) -> argparse.Namespace:
    from tools.train_net import parse_args

    return parse_args(arguments)
