"""Small models learn ShapeWorld from files on disk: Mask R-CNN its things, a semantic FPN things and grounds."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import third_party  # noqa: F401  makes a detectron2 importable
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from prompt_pretrain.shapeworld.annotation_writers import write_coco, write_sem_seg
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from tests.third_party.detectron2.small_models import fpn_config, mask_rcnn_config

pytestmark = pytest.mark.slow

RECIPE = SceneRecipe(num_classes=8, num_novel=0, train_images=400, val_images=50, size=80)
INSTANCES, LABEL_MAPS = "shapeworld_learning_{}", "shapeworld_learning_maps_{}"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Registers instances and label maps, each for train and val."""
    root = tmp_path_factory.mktemp("worlds")
    write_coco(root / "coco", RECIPE)
    write_sem_seg(root / "sem_seg", RECIPE)
    names = []
    for split in ("train", "val"):
        folder = root / "coco" / "coco"
        json_file = folder / "annotations" / f"instances_{split}2017.json"
        register_coco_instances(INSTANCES.format(split), {}, str(json_file), str(folder / f"{split}2017"))
        _register_label_maps(LABEL_MAPS.format(split), root / "sem_seg", split)
        names += [INSTANCES.format(split), LABEL_MAPS.format(split)]
    yield root
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _register_label_maps(name: str, root: Path, split: str) -> None:
    labels, images = str(root / "labels" / split), str(root / "images" / split)
    DatasetCatalog.register(name, lambda: load_sem_seg(labels, images, gt_ext="png", image_ext="jpg"))
    classes = (root / "classes.txt").read_text().splitlines()
    MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255, evaluator_type="sem_seg")


class Trainer(DefaultTrainer):
    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        # From random weights it needs a third of the iterations that SGD takes.
        return torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.BASE_LR, weight_decay=0.01)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        if MetadataCatalog.get(dataset_name).evaluator_type == "sem_seg":
            return SemSegEvaluator(dataset_name, distributed=False)
        return COCOEvaluator(dataset_name, distributed=False, output_dir=cfg.OUTPUT_DIR)


def train(
    cfg: CfgNode, data: str, output: Path, *, iterations: int, lr: float
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """Metrics before the training, the sum of losses at each iteration, and the metrics after it."""
    cfg.OUTPUT_DIR = str(output)
    cfg.SEED = 1
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.format("train"),), (data.format("val"),)
    cfg.INPUT.MIN_SIZE_TRAIN = (RECIPE.size * 3 // 4,)
    cfg.INPUT.MIN_SIZE_TEST = RECIPE.size * 3 // 4
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = RECIPE.size
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 8
    cfg.SOLVER.BASE_LR = lr
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.STEPS = (iterations * 3 // 4,)
    cfg.SOLVER.WARMUP_ITERS = iterations // 10
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    untrained = flatten_results_dict(trainer.test(cfg, trainer.model))
    trainer.train()
    trained = {name: value for name, (value, _) in trainer.storage.latest().items() if name in untrained}
    return untrained, [value for value, _ in trainer.storage.history("total_loss").values()], trained


def test_mask_rcnn_learns_things(worlds: Path, tmp_path: Path) -> None:
    cfg = mask_rcnn_config(RECIPE.num_classes)
    untrained, losses, trained = train(cfg, INSTANCES, tmp_path, iterations=320, lr=0.003)
    assert np.mean(losses[-20:]) < 0.65 * np.mean(losses[:5])
    for task in ("bbox", "segm"):
        assert untrained[f"{task}/AP50"] < 2
        # Perfect boxes with classes by chance would give 12.
        assert trained[f"{task}/AP50"] > 25
        assert trained[f"{task}/AP"] > 8


def test_semantic_fpn_learns_things_and_grounds(worlds: Path, tmp_path: Path) -> None:
    classes = json.loads((worlds / "sem_seg" / "classes.json").read_text())
    cfg = fpn_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(classes)
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    untrained, losses, trained = train(cfg, LABEL_MAPS, tmp_path, iterations=300, lr=0.005)
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    # Perfect outlines with classes by chance would give 3.
    assert untrained["sem_seg/mIoU"] < 4
    assert trained["sem_seg/mIoU"] > 15
    for kind in ("thing", "ground"):
        names = [entry["name"] for entry in classes if entry["kind"] == kind]
        assert np.mean([trained[f"sem_seg/IoU-{name}"] for name in names]) > 10
