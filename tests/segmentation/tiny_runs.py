"""A tiny segmenter, eight pictures with label maps and a command line, for tests of training and evaluation."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import segmentation  # noqa: F401  (makes detectron2 importable)
from detectron2.data import DatasetCatalog, MetadataCatalog
from segmentation.data.datasets import load_binary_mask, load_sem_seg

ROOT = Path(__file__).parents[2]
CLASS_NAMES = ("sand", "water", "red star", "blue disc")
TRAIN, TEST = "tiny_train", "tiny_test"  # the first three classes, and all four
CLIP_SETTINGS = "{CLIP_MODEL_NAME: shapeworld-tiny, PROMPT_DIM: 64, PROMPT_SHAPE: [2, 0], PROMPT_LEARNER: predefined}"

_STAGE_2 = """
_BASE_: {configs}/coco-stuff-164k-156/zero_shot_maskformer_R50_bs32_60k.yaml
MODEL:
  WEIGHTS: ''
  DEVICE: cpu
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 3, EMBEDDING_DIM: 64, EMBED_HIDDEN_DIM: 16, CONVS_DIM: 32, MASK_DIM: 16}}
  MASK_FORMER: {{HIDDEN_DIM: 32, NHEADS: 2, DIM_FEEDFORWARD: 32, DEC_LAYERS: 2, NUM_OBJECT_QUERIES: 4, DROPOUT: 0.5}}
  CLIP_ADAPTER: {clip}
INPUT: {{MIN_SIZE_TRAIN: [48, 64], CROP: {{SIZE: [48, 48]}}, SIZE_DIVISIBILITY: 48, MIN_SIZE_TEST: 48}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2}}
TEST: {{EVAL_PERIOD: 0, AUG: {{MIN_SIZES: [32, 48]}}}}
"""
_STAGE_1 = """
_BASE_: {configs}/coco-stuff-164k-156/zero_shot_proposal_classification_learn_prompt_bs32_10k.yaml
MODEL:
  DEVICE: cpu
  CLIP_ADAPTER: {clip}
INPUT: {{MIN_SIZE_TRAIN: [32, 32], MIN_SIZE_TEST: 32}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 4, CHECKPOINT_PERIOD: 2}}
TEST: {{EVAL_PERIOD: 0}}
"""
_DATA = "DATASETS: {{TRAIN: [{train}], TEST: [{test}]}}\nDATALOADER: {{NUM_WORKERS: 0}}\nSEED: 3\n"


def write_pictures(folder: Path) -> Path:
    """Images, label maps of the training classes and of all, and the counts of both."""
    rng = np.random.default_rng(0)
    for name in ("images", "seen", "all"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, list[int]]] = {"seen": {}, "all": {}}
    for number in range(8):
        height, width = (48, 64) if number % 2 else (64, 48)
        picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        labels = np.full((height, width), number % 2, np.uint8)
        labels[10:34, 8:32] = 2 + number % 4 // 2
        picture[labels == 1, 2] += 80
        picture[labels == 2, 0] += 150
        picture[labels == 3, 2] += 150
        Image.fromarray(picture).save(folder / "images" / f"{number}.jpg")
        for name, kept in (("all", labels), ("seen", np.where(labels < 3, labels, 255).astype(np.uint8))):
            Image.fromarray(kept).save(folder / name / f"{number}.png")
            counts[name][f"{number}.png"] = [int(label) for label in np.unique(kept) if label != 255]
    for name, count in counts.items():
        (folder / f"{name}_label_count.json").write_text(json.dumps(count))
    return folder


@contextmanager
def registered(folder: Path, write: bool = True) -> Iterator[None]:
    """The pictures in ``folder`` as data sets, also one record per class."""
    if write:
        write_pictures(folder)
    names = []
    for name, labels, classes in ((TRAIN, "seen", CLASS_NAMES[:3]), (TEST, "all", CLASS_NAMES)):
        for suffix, load, kind in (
            ("", load_sem_seg, "sem_seg"),
            ("_classification", load_binary_mask, "classification"),
        ):
            paths = (str(folder / labels), str(folder / "images"))
            DatasetCatalog.register(name + suffix, lambda load=load, paths=paths: load(*paths))
            MetadataCatalog.get(name + suffix).set(
                stuff_classes=list(classes),
                ignore_label=255,
                evaluator_type=kind,
                trainable_flag=[1, 1, 1, 0][: len(classes)],
                evaluation_set={"base": [0, 1, 2]},
                image_root=paths[1],
                sem_seg_root=paths[0],
            )
            names.append(name + suffix)
    try:
        yield
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def write_config(folder: Path, stage: int = 2) -> Path:
    path = folder / "tiny.yaml"
    suffix = "_classification" if stage == 1 else ""
    text = (_STAGE_1 if stage == 1 else _STAGE_2) + _DATA
    clip = CLIP_SETTINGS.replace("predefined", "learnable") if stage == 1 else CLIP_SETTINGS
    configs = ROOT / "configs" / "segmentation"
    path.write_text(text.format(configs=configs, clip=clip, train=TRAIN + suffix, test=TEST + suffix))
    return path


def command(folder: Path, *overrides: str, stage: int = 2) -> list[str]:
    """Arguments of ``tools/train_net.py`` for the tiny segmenter on the pictures, its run in ``folder/run``."""
    return ["--config-file", str(write_config(folder, stage)), "OUTPUT_DIR", str(folder / "run"), *overrides]


def parsed(arguments: list[str]) -> argparse.Namespace:
    from tools.train_net import parse_args

    return parse_args(arguments)
