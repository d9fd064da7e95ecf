"""Choice of evaluators, classifiers that come back, and the table of results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detection.evaluate import _with_test_time_augmentation, build_evaluator, classifier_restored, do_test
from detection.evaluation.coco_zeroshot import CustomCOCOEvaluator
from detection.evaluation_table import published_numbers, results_table
from detection.reset_classifier import reset_cls_test
from detection.task import add_config
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from prompt_pretrain.errors import InputError
from tests.detection.tiny_runs import CLASS_NAMES, WIDTH, write_embeddings, write_pictures

CONFIGS = Path(__file__).parents[2] / "configs" / "detection"


@pytest.fixture
def data_set(tmp_path: Path) -> Iterator[str]:
    DatasetCatalog.register("evaluate_set", list)
    MetadataCatalog.get("evaluate_set").set(
        json_file=str(write_pictures(tmp_path)), thing_classes=list(CLASS_NAMES), evaluator_type="coco"
    )
    yield "evaluate_set"
    DatasetCatalog.remove("evaluate_set")
    MetadataCatalog.remove("evaluate_set")


def config() -> CfgNode:
    cfg = get_cfg()
    add_config(cfg)
    return cfg


def test_evaluator_follows_the_type_of_the_data_set(data_set: str, tmp_path: Path) -> None:
    cfg = config()
    assert type(build_evaluator(cfg, data_set, str(tmp_path))) is COCOEvaluator
    cfg.GEN_PSEDO_LABELS = True
    with pytest.raises(InputError, match="image 1 has no 'not_exhaustive_category_ids'"):  # the LVIS evaluator's words
        build_evaluator(cfg, data_set, str(tmp_path))


def test_set_with_unseen_classes_has_the_evaluator_for_them(data_set: str, tmp_path: Path) -> None:
    MetadataCatalog.get(data_set).set(seen_classes=list(CLASS_NAMES[:2]), unseen_classes=list(CLASS_NAMES[2:]))
    assert isinstance(build_evaluator(config(), data_set, str(tmp_path)), CustomCOCOEvaluator)


class OneBox(nn.Module):
    """The same box and mask in every image."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for record in batch:
            size = (record["height"], record["width"])
            fields = {"scores": torch.ones(1), "pred_classes": torch.zeros(1, dtype=torch.int64)}
            box = Boxes(torch.tensor([[1.0, 1, 20, 20]]))
            masks = torch.ones(1, *size, dtype=torch.bool)
            found.append({"instances": Instances(size, pred_boxes=box, pred_masks=masks, **fields)})
        return found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            '"images": [',
            '"images": 3, "others": [',
            "the data set cannot be loaded: .*pictures.json: 'images' is a int",
        ),
        ('"area": 480, ', "", "evaluate_set cannot be evaluated as COCO: .*pictures.json: annotation 1 has no 'area'"),
        ('"area": 480', '"area": "x"', "annotation 1 of image 1 has the area 'x'; expected numbers"),
        ('"annotations": [{"id": 1, ', '"annotations": [{', "pictures.json: an entry has no 'id', which is needed"),
        # Not until masks are compared.
        (
            '"segmentation": [[',
            '"segmentation": [null, [',
            "set evaluate_set cannot be evaluated: .*of annotation 1 holds",
        ),
    ],
)
def test_a_wrong_annotation_file_is_bad_input(data_set: str, old: str, new: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    DatasetCatalog.remove(data_set)  # which knows no file
    DatasetCatalog.register(data_set, lambda: load_coco_json(str(path), str(tmp_path), data_set))
    cfg = config()
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = (data_set,), str(tmp_path), 0
    with pytest.raises(InputError, match=problem):
        do_test(cfg, OneBox().eval())


def test_unknown_type_is_an_error(tmp_path: Path) -> None:
    MetadataCatalog.get("evaluate_other").set(evaluator_type="sem_seg")
    with pytest.raises(InputError, match="evaluate_other has the evaluator_type 'sem_seg', expected coco, lvis or oid"):
        build_evaluator(config(), "evaluate_other", str(tmp_path))
    MetadataCatalog.remove("evaluate_other")


def test_missing_test_classifiers_are_an_error() -> None:
    cfg = config()
    assert do_test(cfg, nn.Module()) == {}  # no test sets
    cfg.DATASETS.TEST, cfg.MODEL.RESET_CLS_TESTS = ("a", "b"), True
    cfg.MODEL.TEST_CLASSIFIERS = ["c.npy"]
    with pytest.raises(InputError, match="for each of the 2 data sets of DATASETS.TEST, found 1 and 0"):
        do_test(cfg, nn.Module())


def test_augmentation_needs_a_two_stage_detector() -> None:
    with pytest.raises(InputError, match="TEST.AUG.ENABLED needs a two-stage detector, GeneralizedRCNN is none"):
        _with_test_time_augmentation(config(), nn.Module())


class Stage(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.cls_score = ZeroShotClassifier(8, num_classes=3, zs_weight_path=path, zs_weight_dim=WIDTH)
        self.num_classes = 3


class Heads(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.box_predictor = nn.ModuleList([Stage(path), Stage(path)])
        self.num_classes = 3


@pytest.mark.parametrize("random", [False, True])
def test_classifier_comes_back_after_the_evaluation(tmp_path: Path, random: bool) -> None:
    model = nn.Module()
    model.roi_heads = Heads("rand" if random else str(write_embeddings(tmp_path / "three.npy", 3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = write_embeddings(tmp_path / "five.npy", 5)
    with pytest.raises(KeyError), classifier_restored(model):
        reset_cls_test(model, str(other), 5)
        reset_cls_test(model, str(other), 5)
        assert model.roi_heads.box_predictor[1].cls_score.zs_weight.shape == (WIDTH, 6)
        assert model.roi_heads.num_classes == model.roi_heads.box_predictor[0].num_classes == 5
        raise KeyError
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.roi_heads.num_classes == model.roi_heads.box_predictor[0].num_classes == 3
    assert isinstance(model.roi_heads.box_predictor[0].cls_score.zs_weight, nn.Parameter) == random


def test_table_shows_published_numbers_below_ours() -> None:
    name = "Detic_LbaseI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp"
    ours = {"AP": 32.04, "AP50": 45.0, "APr": -100.0, "APc": float("nan"), "APf": 36.0, "AP-cat": 3.0}
    table = results_table({"lvis_v1_val": {"segm": ours}, "mine": {"bbox": {"AP": 1.0}}}, name)
    assert table.splitlines() == [
        "| data set | task |  | AP | AP50 | APr | APc | APf |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| lvis_v1_val | mask | here | 32.0 | 45.0 | n/a | n/a | 36.0 |",
        "|  |  | published | 32.7 |  | 25.2 | 33.0 | 35.6 |",
        "| mine | box | here | 1.0 |  |  |  |  |",
    ]


def test_fractions_of_open_images_become_percent() -> None:
    table = results_table({"oid_val_expanded": {"bbox": {"AP50": 0.5, "AP50_expand": 0.546}}})
    assert "| oid_val_expanded | box | here | 50.0 | 54.6 |" in table


def test_cross_dataset_table_has_the_numbers_of_the_paper_and_says_what_they_are_of() -> None:
    name = "Detic_LI_CLIP_R5021k_640b64_4x_ft4x_max-size_pomp_cross_datasets"
    metrics = {"bbox": {"AP": 1.0, "AP50": 2.0}}
    table = results_table({"coco_generalized_zeroshot_val": metrics, "objects365_v2_val": metrics}, name)
    assert "| published | 40.3 | 57.9 | 43.6 | 28.3 | 43.9 | 50.6 |" in table
    assert "| published | 16.1 | 22.9 | 17.3 | 6.2 | 16.3 | 24.7 |" in table
    assert "coco_generalized_zeroshot_val: 80 class names, of which the ground truth has 65" in table


def test_published_numbers_belong_to_configs_that_exist() -> None:
    from detection.evaluation_table import _PUBLISHED

    files = {path.stem for path in CONFIGS.rglob("*.yaml")}
    assert set(_PUBLISHED) <= files
    assert published_numbers("nix", "lvis_v1_val", "bbox") == {}
