"""Scenes as label maps in the layouts of published data sets."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld.label_map_writers import FORMATS, classes_of, write_label_maps
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.scene_masks import is_recognisable
from prompt_pretrain.shapeworld.scenes import plan_scene, render_scene

SMALL = SceneRecipe(num_classes=6, num_novel=4, train_images=5, val_images=3, size=48)
FOLDERS = {
    "coco_stuff": ("coco/val2017", "coco/stuffthingmaps_detectron2/val2017"),
    "voc": ("VOC2012/JPEGImages", "VOC2012/annotations_detectron2/val"),
    "ade20k": ("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations_detectron2/validation"),
    "pascal_context": ("pcontext/val/image", "pcontext/val/label"),
}


@pytest.mark.parametrize("kind", list(FORMATS))
def test_label_maps_show_the_scenes_in_the_layout_of_the_data_set(kind: str, tmp_path: Path) -> None:
    write_label_maps(tmp_path / "world", kind, SMALL)
    images, labels = (tmp_path / "world" / folder for folder in FOLDERS[kind])
    names = (tmp_path / "world" / "classes.txt").read_text().splitlines()
    maps = sorted(labels.glob("*.png"))
    assert len(maps) == 3 and all((images / f"{path.stem}.jpg").is_file() for path in maps)
    for index, path in enumerate(maps):
        scene = render_scene(plan_scene(index, SMALL.mix("val"), split="val", seed=SMALL.seed), SMALL.size)
        found = cv2.imread(str(path), -1)
        for position, placed in enumerate(scene.plan.things):
            values = found[scene.thing_map == position + 1]
            expected = names.index(placed.thing.name) if is_recognisable(scene, position) else 255
            assert (values == expected).all()
        for number, ground in enumerate(scene.plan.grounds):
            values = found[(scene.thing_map == 0) & (scene.ground_map == number)]
            assert (values == (names.index(ground) if ground in names else 255)).all()


def test_formats_name_different_classes() -> None:
    counts = {kind: len(classes_of(kind, SMALL)) for kind in FORMATS}
    assert counts == {"coco_stuff": 16, "voc": 10, "ade20k": 22, "pascal_context": 16}
    for kind in FORMATS:
        classes = classes_of(kind, SMALL)
        assert [entry["id"] for entry in classes] == list(range(len(classes)))
        assert [entry["split"] for entry in classes] == ["base"] * (len(classes) - 4) + ["novel"] * 4


def test_base_maps_ignore_novel_things_and_counts_list_what_is_there(tmp_path: Path) -> None:
    write_label_maps(tmp_path / "world", "coco_stuff", SMALL)
    folder = tmp_path / "world" / "coco" / "stuffthingmaps_detectron2"
    seen = SMALL.num_classes + len(FORMATS["coco_stuff"].grounds)
    novel = 0
    for split in ("train2017", "val2017"):
        for path in sorted((folder / split).glob("*.png")):
            everything = cv2.imread(str(path), -1)
            base = cv2.imread(str(folder / f"{split}_base" / path.name), -1)
            np.testing.assert_array_equal(base, np.where(everything < seen, everything, 255))
            novel += int(((everything >= seen) & (everything < 255)).sum())
            for values, name in ((everything, split), (base, f"{split}_base")):
                counts = json.loads((folder / f"{name}_label_count.json").read_text())
                assert counts[path.name] == sorted(set(np.unique(values).tolist()) - {255})
    assert novel > 0


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format of label maps 'nix'; choose one of coco_stuff, voc"):
        write_label_maps(tmp_path / "a", "nix", SMALL)
    with pytest.raises(InputError, match="have room for 255 classes, found 262"):
        write_label_maps(tmp_path / "a", "ade20k", SceneRecipe(num_classes=150, num_novel=100))
