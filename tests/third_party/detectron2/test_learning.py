"""Small models learn: Mask R-CNN and a semantic FPN, trained from nothing on coloured shapes by ``DefaultTrainer``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, SemSegEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

SIZE = 64  # pixels
CLASSES = ["red disc", "green square", "blue triangle"]
COLOURS = [(220, 40, 40), (40, 200, 60), (50, 70, 230)]


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """One residual block per stage, 16 to 128 channels wide."""
    stem = BasicStem(input_shape.channels, 16, norm="BN")
    widths = [16, 16, 32, 64, 128]
    stages = [
        ResNet.make_stage(
            BasicBlock,
            1,
            in_channels=widths[i],
            out_channels=widths[i + 1],
            stride_per_block=[1 if i == 0 else 2],
            norm="BN",
        )
        for i in range(4)
    ]
    bottom_up = ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES)
    return FPN(
        bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, norm="BN", top_block=LastLevelMaxPool()
    )


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


def config(output: Path, iterations: int) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(output)
    cfg.SEED = 1
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [58.0, 58.0, 58.0]
    cfg.MODEL.BACKBONE.NAME = "build_small_resnet_fpn_backbone"
    levels = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = levels
    cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE,)
    cfg.INPUT.MIN_SIZE_TEST = SIZE
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 8
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.STEPS = (iterations * 3 // 4,)
    cfg.SOLVER.WARMUP_ITERS = iterations // 10
    return cfg


def instance_config(output: Path, iterations: int) -> CfgNode:
    cfg = config(output, iterations)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train",), ("shapes_val",)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[12], [24], [48]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4"]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 200
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 1
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 1
    cfg.SOLVER.BASE_LR = 0.05
    return cfg


def semantic_config(output: Path, iterations: int) -> CfgNode:
    cfg = config(output, iterations)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shape_maps_train",), ("shape_maps_val",)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1 + len(CLASSES)
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.SOLVER.BASE_LR = 0.1
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
    untrained, losses, metrics = train(instance_config(tmp_path, iterations=300))
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:5])
    for task in ("bbox", "segm"):
        assert untrained[f"{task}/AP50"] < 5
        assert metrics[f"{task}/AP50"] > 50
        assert metrics[f"{task}/AP"] > 20
        for name in CLASSES:
            assert metrics[f"{task}/AP-{name}"] > 10


@pytest.mark.slow
def test_semantic_fpn_learns_to_paint_shapes(scenes: Path, tmp_path: Path) -> None:
    untrained, losses, metrics = train(semantic_config(tmp_path, iterations=200))
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])
    # Everything painted as ground would give 22.
    assert untrained["sem_seg/mIoU"] < 25
    assert metrics["sem_seg/mIoU"] > 60
    for name in CLASSES:
        assert metrics[f"sem_seg/IoU-{name}"] > 40
