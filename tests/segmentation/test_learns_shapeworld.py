"""Both stages of training learn a few scenes of ShapeWorld by heart, through the command line's own code."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import segmentation  # noqa: F401  makes a detectron2 importable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from prompt_pretrain.shapeworld.label_map_writers import write_label_maps
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from segmentation import task
from segmentation.api import load

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "configs" / "segmentation"
RECIPE = SceneRecipe(num_classes=4, num_novel=1, train_images=8, val_images=1, size=64)
SMALL = [
    *("INPUT.CROP.SIZE", "(48, 48)", "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.SIZE_DIVISIBILITY", "48"),
    *("INPUT.MIN_SIZE_TEST", "48", "SEED", "1"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options that name images, label maps and classes, for training and for tests."""
    root = tmp_path_factory.mktemp("world")
    write_label_maps(root / "world", "coco_stuff", RECIPE)
    images = str(root / "world" / "coco" / "train2017")
    labels = str(root / "world" / "coco" / "stuffthingmaps_detectron2" / "train2017")
    words = [word for split in ("train", "test") for word in (f"--{split}-images", images, f"--{split}-labels", labels)]
    yield [*words, "--classes", str(root / "world" / "classes.txt")]
    for name in ("custom_sem_seg_train", "custom_sem_seg_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(config: str, folders: list[str], output: Path, *overrides: str) -> tuple[dict[str, float], list[float]]:
    """Metrics in the end, and the losses that were logged."""
    parser = default_argument_parser()
    task.add_arguments(parser)
    words = ["--config-file", str(CONFIGS / f"{config}.yaml"), *folders, *SMALL, *overrides, "OUTPUT_DIR", str(output)]
    results = task.main(parser.parse_args(words))
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return results.get("sem_seg", results), [line["total_loss"] for line in lines if "total_loss" in line]


def test_stage_2_learns_scenes_by_heart(folders: list[str], tmp_path: Path) -> None:
    settings = ["SOLVER.MAX_ITER", "80", "SOLVER.BASE_LR", "0.003", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", "False"]
    metrics, losses = run("shapeworld_maskformer", folders, tmp_path, *settings)
    assert losses[-1] < 0.7 * losses[0]
    assert metrics["pACC"] > 35 and metrics["mIoU"] > 15  # guessing: 9

    segmenter = load(CONFIGS / "shapeworld_maskformer.yaml", tmp_path / "model_final.pth", "cpu", overrides=SMALL)
    found = segmenter.set_classes(folders[-1]).predict(folders[1])
    assert len(found) == 8 and np.mean([len(each) for each in found]) > 1


def test_stage_1_learns_a_prompt(folders: list[str], tmp_path: Path) -> None:
    settings = ["INPUT.MIN_SIZE_TRAIN", "(48, 48)", "SOLVER.MAX_ITER", "40", "SOLVER.IMS_PER_BATCH", "8"]
    metrics, losses = run("shapeworld_stage1", folders, tmp_path, *settings)
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["macc_top1"] > 30  # of 11 classes
