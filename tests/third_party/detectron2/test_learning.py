"""Small models learn: Mask R-CNN and a semantic FPN, trained from nothing on coloured shapes by ``DefaultTrainer``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from tests.third_party.detectron2.small_models import fpn_config, mask_rcnn_config

SIZE = 64  # pixels
CLASSES = ["red disc", "green square", "blue triangle"]
COLOURS = [(220, 40, 40), (40, 200, 60), (50, 70, 230)]


def outline(kind: int, x: float, y: float, radius: float) -> np.ndarray:
    """(N, 2) corners of shape ``kind`` around (x, y)."""
    corners = (24, 4, 3)[kind]
    angles = (np.arange(corners) + 0.5) / corners * 2 * np.pi + np.pi / 2
    if kind == 2:
        angles += np.pi / 3
    return np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1)


def draw_scene(generator: np.random.Generator) -> tuple[Image.Image, Image.Image, list[tuple[int, np.ndarray]]]:
    """A picture, its label map (class + 1, 0 for the ground), and the class and outline of each shape."""
    noise = generator.normal(0, 12, (SIZE, SIZE, 3)) + generator.uniform(90, 160, 3)
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    labels = Image.new("L", (SIZE, SIZE), 0)
    shapes = []
    for centre_x in (16, 48) if generator.random() < 0.5 else (generator.uniform(18, 46),):
        kind, radius = int(generator.integers(3)), generator.uniform(9, 15)
        points = outline(kind, centre_x, generator.uniform(16, SIZE - 16), radius)
        corners = [tuple(point) for point in points]
        ImageDraw.Draw(image).polygon(corners, fill=COLOURS[kind])
        ImageDraw.Draw(labels).polygon(corners, fill=kind + 1)
        shapes.append((kind, points))
    return image, labels, shapes


def write_scenes(folder: Path, count: int, seed: int) -> None:
    """``images``, ``labels`` and ``instances.json`` in COCO's format."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(count):
        image, labels, shapes = draw_scene(generator)
        image.save(folder / "images" / f"{i:04}.png")
        labels.save(folder / "labels" / f"{i:04}.png")
        images.append({"id": i, "file_name": f"{i:04}.png", "height": SIZE, "width": SIZE})
        for kind, points in shapes:
            low, side = points.min(axis=0), np.ptp(points, axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": kind + 1,
                    "bbox": [*low.tolist(), *side.tolist()],
                    "area": float(side.prod()),
                    "iscrowd": 0,
                    "segmentation": [points.ravel().tolist()],
                }
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Registers ``shapes_*`` (instances) and ``shape_maps_*`` (label maps), each for train and val."""
    root = tmp_path_factory.mktemp("scenes")
    names = []
    for part, count, seed in (("train", 160, 0), ("val", 24, 1)):
        folder = root / part
        write_scenes(folder, count, seed)
        register_coco_instances(f"shapes_{part}", {}, str(folder / "instances.json"), str(folder / "images"))
        maps = f"shape_maps_{part}"
        DatasetCatalog.register(maps, reader_of_maps(folder))
        MetadataCatalog.get(maps).set(stuff_classes=["ground", *CLASSES], ignore_label=255, evaluator_type="sem_seg")
        names += [f"shapes_{part}", maps]
    yield root
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def reader_of_maps(folder: Path) -> Callable[[], list[dict]]:
    return lambda: load_sem_seg(str(folder / "labels"), str(folder / "images"), gt_ext="png", image_ext="png")


def add_training(cfg: CfgNode, name: str, output: Path, iterations: int, lr: float) -> CfgNode:
    """Train on ``<name>_train``, evaluate on ``<name>_val``."""
    cfg.OUTPUT_DIR = str(output)
    cfg.SEED = 1
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{name}_train",), (f"{name}_val",)
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE,)
    cfg.INPUT.MIN_SIZE_TEST = SIZE
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 8
    cfg.SOLVER.BASE_LR = lr
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.STEPS = (iterations * 3 // 4,)
    cfg.SOLVER.WARMUP_ITERS = iterations // 10
    return cfg


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        if MetadataCatalog.get(dataset_name).evaluator_type == "sem_seg":
            return SemSegEvaluator(dataset_name, distributed=False)
        return COCOEvaluator(dataset_name, distributed=False, output_dir=cfg.OUTPUT_DIR)


def train(cfg: CfgNode) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """Metrics before the training, the sum of losses at each iteration, and the metrics after it."""
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    untrained = flatten_results_dict(trainer.test(cfg, trainer.model))
    trainer.train()
    metrics = {name: value for name, (value, _) in trainer.storage.latest().items() if name in untrained}
    return untrained, [value for value, _ in trainer.storage.history("total_loss").values()], metrics


@pytest.mark.slow
def test_mask_rcnn_learns_to_find_shapes(scenes: Path, tmp_path: Path) -> None:
    cfg = mask_rcnn_config(len(CLASSES))
    untrained, losses, metrics = train(add_training(cfg, "shapes", tmp_path, iterations=300, lr=0.05))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    for task in ("bbox", "segm"):
        assert untrained[f"{task}/AP50"] < 5
        assert metrics[f"{task}/AP50"] > 50
        assert metrics[f"{task}/AP"] > 20
        for name in CLASSES:
            assert metrics[f"{task}/AP-{name}"] > 10


@pytest.mark.slow
def test_semantic_fpn_learns_to_paint_shapes(scenes: Path, tmp_path: Path) -> None:
    cfg = fpn_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1 + len(CLASSES)
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    untrained, losses, metrics = train(add_training(cfg, "shape_maps", tmp_path, iterations=200, lr=0.1))
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])
    # Everything painted as ground would give 22.
    assert untrained["sem_seg/mIoU"] < 25
    assert metrics["sem_seg/mIoU"] > 60
    for name in CLASSES:
        assert metrics[f"sem_seg/IoU-{name}"] > 40
