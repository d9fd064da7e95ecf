"""The data sets of the ShapeWorld detection study, as the loaders see them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import detection  # noqa: F401  makes a detectron2 importable
from detection.data.datasets.extended_lvis import custom_load_lvis_json
from detection.shapeworld_worlds import CAT_INFO, DetectionWorlds, classes_by_split, draw_worlds
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.scene_files import SceneRecipe

WORLDS = DetectionWorlds(
    lvis=SceneRecipe(num_classes=6, num_novel=3, train_images=12, val_images=4, size=64),
    coco=SceneRecipe(num_classes=4, num_novel=5, train_images=1, val_images=3, size=64, seed=1),
    objects365=SceneRecipe(num_classes=8, num_novel=4, train_images=1, val_images=3, size=64, seed=2),
    pictures_per_class=2,
    picture_size=32,
)
FOREIGN = "shapeworld_worlds_test"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("worlds")
    draw_worlds(root, WORLDS)
    yield root
    for name in ("a", "b"):
        MetadataCatalog.pop(FOREIGN + name, None)


def test_novel_classes_have_labels_but_no_boxes(root: Path) -> None:
    lvis = root / "lvis" / "lvis"
    base = custom_load_lvis_json(str(lvis / "lvis_v1_train_norare.json"), str(root / "lvis" / "coco"))
    labels = custom_load_lvis_json(
        str(root / "image_labels" / "image_info.json"), str(root / "image_labels" / "images")
    )
    assert all(Path(record["file_name"]).is_file() for record in [*base, *labels])
    assert {entry["category_id"] for record in base for entry in record["annotations"]} <= set(range(6))
    assert sorted(record["pos_category_ids"] for record in labels) == [[label] for label in range(9) for _ in range(2)]
    counts = json.loads((root / CAT_INFO).read_text())
    shown = [sum(any(e["category_id"] == c for e in r["annotations"]) for r in base) for c in range(9)]
    assert [row["image_count"] for row in counts] == shown and shown[6:] == [0, 0, 0]


def test_foreign_data_sets_have_their_own_layouts(root: Path) -> None:
    coco = root / "coco" / "coco"
    scenes = load_coco_json(str(coco / "annotations/instances_val2017.json"), str(coco / "val2017"), FOREIGN + "a")
    annotations = root / "objects365" / "annotations" / "zhiyuan_objv2_val_fixname.json"
    others = load_coco_json(str(annotations), str(root / "objects365" / "val"), FOREIGN + "b")
    assert (len(scenes), len(others)) == (3, 3)
    assert all(Path(record["file_name"]).is_file() for record in [*scenes, *others])
    assert "images/v2/patch16/objects365_v2_" in others[0]["file_name"]
    assert all("segmentation" not in entry for record in others for entry in record["annotations"])
    assert list(MetadataCatalog.get(FOREIGN + "b").thing_dataset_id_to_contiguous_id) == list(range(1, 13))
    assert len(MetadataCatalog.get(FOREIGN + "a").thing_classes) == 9


def test_classes_are_base_or_novel_in_every_format(root: Path) -> None:
    for file, base, novel in (
        ("lvis/lvis/lvis_v1_val.json", 6, 3),
        ("coco/coco/annotations/instances_val2017.json", 4, 5),
        ("objects365/annotations/zhiyuan_objv2_val_fixname.json", 8, 4),
    ):
        found = classes_by_split(json.loads((root / file).read_text())["categories"])
        assert (len(found["base"]), len(found["novel"])) == (base, novel)


def test_what_is_there_is_not_drawn_again(root: Path) -> None:
    picture = root / "image_labels" / "images" / "0001" / "0001_0000.jpg"
    before = picture.stat().st_mtime_ns
    draw_worlds(root, WORLDS)
    assert picture.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="pictures_per_class 2 instead of 3"):
        draw_worlds(root, DetectionWorlds(WORLDS.lvis, WORLDS.coco, WORLDS.objects365, 3, 32))
