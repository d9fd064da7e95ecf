"""A small detector learns boxes and classes of ShapeWorld, and finds the classes by their embeddings."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detection  # noqa: F401  makes a detectron2 importable
from detection.api import CONFIG_FOLDER
from detection.class_embedding_hook import resolve_class_embeddings_of
from detection.data.datasets import custom_register_lvis_instances
from detection.evaluate import do_test
from detection.reset_classifier import reset_cls_test
from detection.setup import load_config
from detection.shapeworld_worlds import CAT_INFO, DetectionWorlds, draw_worlds
from detection.training import do_train
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.shapeworld.scene_files import SceneRecipe

pytestmark = pytest.mark.slow

TRAIN, VAL, LABELS = "shapeworld_learning_train", "shapeworld_learning_val", "shapeworld_learning_labels"
WORLDS = DetectionWorlds(
    lvis=SceneRecipe(num_classes=8, num_novel=2, train_images=160, val_images=30, size=96),
    coco=SceneRecipe(num_classes=4, num_novel=2, train_images=1, val_images=2, size=96, seed=1),
    objects365=SceneRecipe(num_classes=4, num_novel=2, train_images=1, val_images=2, size=96, seed=2),
    pictures_per_class=1,
    picture_size=64,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("worlds")
    draw_worlds(root, WORLDS)
    for name, split in ((TRAIN, "train_norare"), (VAL, "val")):
        json_file = root / "lvis" / "lvis" / f"lvis_v1_{split}.json"
        custom_register_lvis_instances(name, {}, str(json_file), str(root / "lvis" / "coco"))
    labels = root / "image_labels"
    custom_register_lvis_instances(LABELS, {}, str(labels / "image_info.json"), str(labels / "images"), "imagenet")
    yield root
    for name in (TRAIN, VAL, LABELS):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(root: Path, name: str, iterations: int) -> CfgNode:
    cfg = load_config(CONFIG_FOLDER / f"{name}.yaml")
    cfg.OUTPUT_DIR = str(root / name)
    cfg.SEED = 1
    cfg.DATASETS.TRAIN = (TRAIN, LABELS) if cfg.WITH_IMAGE_LABELS else (TRAIN,)
    cfg.DATASETS.TEST = (VAL,)
    cfg.INPUT.TRAIN_SIZE = cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 96
    cfg.DATALOADER.DATASET_INPUT_SIZE = [96, 64]
    cfg.MODEL.CLASS_EMBEDDINGS.CACHE_DIR = str(root / "cache")
    cfg.MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH = str(root / CAT_INFO)
    cfg.MODEL.WEIGHTS = ""
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.BASE_LR = 0.003
    cfg.SOLVER.WARMUP_ITERS = 10
    resolve_class_embeddings_of(cfg)
    return cfg


def test_a_detector_learns_and_needs_its_class_embeddings(root: Path) -> None:
    torch.manual_seed(0)
    cfg = config(root, "shapeworld_boxsup", 200)
    model = build_model(cfg)
    do_train(cfg, model)
    trained = do_test(cfg, model)["bbox"]["AP50"]
    embeddings = ClassEmbeddings.load(cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH).embeddings
    reset_cls_test(model, embeddings.roll(3, dims=0).t(), len(embeddings))
    shuffled = do_test(cfg, model)["bbox"]["AP50"]
    assert trained > 10
    # Not near zero: LVIS counts a detection only in the few images where somebody looked for its class.
    assert trained > 1.4 * shuffled
