import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from lvis import LVIS
from pycocotools.coco import COCO

from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import scene_files
from prompt_pretrain.shapeworld.annotation_writers import (
    COCO_URL,
    coco_category_id,
    sem_seg_classes,
    write_coco,
    write_lvis,
    write_sem_seg,
)
from prompt_pretrain.shapeworld.grounds import GROUNDS
from prompt_pretrain.shapeworld.scene_files import SceneRecipe
from prompt_pretrain.shapeworld.scene_masks import label_map
from prompt_pretrain.shapeworld.scenes import Scene, plan_scene, render_scene

ROOT = Path(__file__).parents[3]
SMALL = SceneRecipe(num_classes=12, num_novel=6, train_images=70, val_images=9, size=64)
WRITERS: dict[str, Callable[..., None]] = {"coco": write_coco, "lvis": write_lvis, "sem_seg": write_sem_seg}

# Draws 40 scenes, then hangs.
STALLING = """
import itertools, sys, time
from prompt_pretrain.shapeworld import annotation_writers, scene_files
from tests.prompt_pretrain.shapeworld.test_annotation_writers import SMALL

count, draw = itertools.count(), scene_files.render_scene
scene_files.render_scene = lambda *args: draw(*args) if next(count) < 40 else time.sleep(600)
annotation_writers.write_coco(sys.argv[1], SMALL)
"""


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drawn(index: int, split: str = "train") -> Scene:
    return render_scene(plan_scene(index, SMALL.mix(split), split=split, seed=SMALL.seed), SMALL.size)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for kind, write in WRITERS.items():
        write(folder / kind, SMALL)
    return {kind: folder / kind for kind in WRITERS}


def test_coco_json_agrees_with_the_scenes(worlds: dict[str, Path]) -> None:
    api = COCO(str(worlds["coco"] / "coco/annotations/instances_train2017.json"))
    assert len(api.imgs) == 70
    crowds = 0
    for image in api.loadImgs(api.getImgIds()):
        scene = drawn(image["id"] - 1)
        assert (image["height"], image["width"]) == scene.thing_map.shape
        for annotation in api.loadAnns(api.getAnnIds(imgIds=image["id"])):
            mask = api.annToMask(annotation).astype(bool)
            positions = set(scene.thing_map[mask].tolist())
            things = [scene.plan.things[position - 1] for position in positions]
            assert 0 not in positions
            assert {coco_category_id(thing.label) for thing in things} == {annotation["category_id"]}
            assert {thing.crowd for thing in things} == {bool(annotation["iscrowd"])}
            np.testing.assert_array_equal(mask, np.isin(scene.thing_map, list(positions)))
            assert annotation["area"] == mask.sum()
            crowds += annotation["iscrowd"]
    assert crowds > 0


def test_coco_categories(worlds: dict[str, Path]) -> None:
    content = json.loads((worlds["coco"] / "coco/annotations/instances_val2017.json").read_text())
    assert [category["id"] for category in content["categories"]][7:12] == [8, 9, 11, 12, 13]  # no 10
    assert [category["name"] for category in content["categories"]] == [thing.name for thing in SMALL.things]
    assert Counter(category["split"] for category in content["categories"]) == {"base": 12, "novel": 6}
    assert content["categories"][0]["supercategory"] == SMALL.things[0].shape
    train = json.loads((worlds["coco"] / "coco/annotations/instances_train2017.json").read_text())
    assert not {image["id"] for image in train["images"]} & {image["id"] for image in content["images"]}
    assert len({annotation["id"] for annotation in train["annotations"]}) == len(train["annotations"])


def test_images_show_the_scenes_in_every_kind(worlds: dict[str, Path]) -> None:
    for split, number in (("train", 4), ("val", 1_000_004)):
        files = [worlds[kind] / f"coco/{split}2017/{number:012d}.jpg" for kind in ("coco", "lvis")]
        files.append(worlds["sem_seg"] / f"images/{split}/{number:012d}.jpg")
        assert len({path.read_bytes() for path in files}) == 1
        written = cv2.imread(str(files[0]))[..., ::-1].astype(int)
        assert np.abs(written - drawn(3, split).pixels).mean() < 6  # JPEG


def test_lvis_json_has_the_fields_of_lvis(worlds: dict[str, Path]) -> None:
    folder = worlds["lvis"] / "lvis"
    api = LVIS(str(folder / "lvis_v1_train.json"))
    assert set(next(iter(api.imgs.values()))) == {
        "id", "width", "height", "license", "coco_url", "flickr_url", "date_captured", "neg_category_ids",
        "not_exhaustive_category_ids",
    }  # fmt: skip
    assert set(next(iter(api.anns.values()))) == {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
    assert set(next(iter(api.cats.values()))) == {
        "id", "name", "synset", "synonyms", "def", "frequency", "image_count", "instance_count"
    }  # fmt: skip
    assert sorted(api.cats) == list(range(1, 19))
    for image in api.imgs.values():
        path = image["coco_url"].removeprefix(COCO_URL)
        assert len(COCO_URL) == 30  # Detic's reader cuts off so many letters
        assert (worlds["lvis"] / "coco" / path).is_file()
        for annotation in api.load_anns(api.get_ann_ids(img_ids=[image["id"]])):
            assert isinstance(annotation["segmentation"], list)
            assert api.ann_to_mask(annotation).sum() == annotation["area"]


def test_lvis_frequencies_and_counts(worlds: dict[str, Path]) -> None:
    train, val, norare = (
        json.loads((worlds["lvis"] / f"lvis/lvis_v1_{name}.json").read_text())
        for name in ("train", "val", "train_norare")
    )
    assert train["categories"] == val["categories"] == norare["categories"]
    frequency = {category["id"]: category["frequency"] for category in train["categories"]}
    assert "".join(frequency.values())[12:] == "rrrrrr"
    assert Counter(frequency.values()) == {"f": 6, "c": 6, "r": 6}
    counts = {kind: [c["image_count"] for c in train["categories"] if c["frequency"] == kind] for kind in "rcf"}
    assert min(counts["f"]) >= max(counts["c"])
    for category in train["categories"]:
        mine = [entry for entry in train["annotations"] if entry["category_id"] == category["id"]]
        assert category["instance_count"] == len(mine)
        assert category["image_count"] == len({entry["image_id"] for entry in mine})
    kept = [entry for entry in train["annotations"] if frequency[entry["category_id"]] != "r"]
    assert norare["annotations"] == kept
    assert len(kept) < len(train["annotations"])
    assert norare["images"] == train["images"]


def test_lvis_pictures_are_checked_for_some_classes_only(worlds: dict[str, Path]) -> None:
    content = json.loads((worlds["lvis"] / "lvis/lvis_v1_train.json").read_text())
    positive: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for entry in content["annotations"]:
        positive[entry["image_id"]].add(entry["category_id"])
    left_out = crowds = 0
    for image in content["images"]:
        shown = {thing["label"] + 1 for thing in scene_files.describe_things(drawn(image["id"] - 1))}
        negative, partial = set(image["neg_category_ids"]), set(image["not_exhaustive_category_ids"])
        assert len(negative) == 4
        assert not negative & shown
        assert positive[image["id"]] <= shown
        assert not shown or positive[image["id"]] or partial
        left_out += len(shown - positive[image["id"]] - partial)
        crowds += len(partial)
    assert left_out > 0
    assert crowds > 0


def test_label_maps_hold_train_ids(worlds: dict[str, Path]) -> None:
    classes = json.loads((worlds["sem_seg"] / "classes.json").read_text())
    assert classes == sem_seg_classes(SMALL)
    names = (worlds["sem_seg"] / "classes.txt").read_text().splitlines()
    assert names == [entry["name"] for entry in classes]
    assert [entry["id"] for entry in classes] == list(range(12 + len(GROUNDS) + 6))
    assert [entry["split"] for entry in classes] == ["base"] * (12 + len(GROUNDS)) + ["novel"] * 6
    assert names[12:24] == list(GROUNDS)
    thing_ids = [names.index(thing.name) for thing in SMALL.things]
    ground_ids = {ground: names.index(ground) for ground in GROUNDS}
    for index in range(9):
        path = worlds["sem_seg"] / f"labels/val/{1_000_001 + index:012d}.png"
        written = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert written.dtype == np.uint8
        np.testing.assert_array_equal(written, label_map(drawn(index, "val"), thing_ids, ground_ids))


@pytest.mark.parametrize("kind", WRITERS)
def test_writing_again_changes_nothing(worlds: dict[str, Path], kind: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in worlds[kind].rglob("*")}
    seen: list[tuple[int, int]] = []
    WRITERS[kind](worlds[kind], SMALL, progress=lambda done, total: seen.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in worlds[kind].rglob("*")} == before
    assert seen == [(79, 79)]


@pytest.mark.parametrize("kind", ["lvis", "sem_seg"])
def test_an_interrupted_run_continues_and_ends_the_same(
    worlds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls = 0

    def fail_later(*args: object) -> Scene:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return render_scene(*args)

    monkeypatch.setattr(scene_files, "render_scene", fail_later)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[kind](tmp_path / kind, SMALL)
    assert not (tmp_path / kind).exists()
    WRITERS[kind](tmp_path / kind, SMALL)
    assert calls == 40 + 79 - 32  # the first block is not drawn again
    assert contents(tmp_path / kind) == contents(worlds[kind])
    assert not (tmp_path / f"{kind}.partial").exists()


def test_a_killed_run_continues_and_ends_the_same(worlds: dict[str, Path], tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STALLING, str(tmp_path / "coco")], cwd=ROOT)
    partial = tmp_path / "coco.partial"
    deadline = time.monotonic() + 60
    while not (partial / "coco/train2017/000000000040.jpg").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert [path.name for path in (partial / "unfinished").iterdir()] == ["train_0000000.json"]
    assert not (tmp_path / "coco").exists()
    write_coco(tmp_path / "coco", SMALL)
    assert contents(tmp_path / "coco") == contents(worlds["coco"])


def test_processes_share_the_work(worlds: dict[str, Path], tmp_path: Path) -> None:
    write_lvis(tmp_path / "lvis", SMALL, workers=2)
    assert contents(tmp_path / "lvis") == contents(worlds["lvis"])


def test_another_recipe_kind_or_foreign_files_are_refused(worlds: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a ShapeWorld with kind lvis instead of coco; choose another folder"):
        write_coco(worlds["lvis"], SMALL)
    with pytest.raises(InputError, match="seed 0 instead of 1"):
        write_lvis(worlds["lvis"], SceneRecipe(12, 6, 70, 9, 64, seed=1))
    shutil.copytree(worlds["coco"] / "coco", tmp_path / "new.partial")
    with pytest.raises(InputError, match="holds no unfinished ShapeWorld; move it away"):
        write_coco(tmp_path / "new", SMALL)
    with pytest.raises(InputError, match="train_images must be 1 to 1000000, found 0"):
        SceneRecipe(train_images=0)
    with pytest.raises(InputError, match="label maps have room for 243 classes of things, found 300; lower"):
        write_sem_seg(tmp_path / "many", SceneRecipe(num_classes=280, num_novel=20))


def test_without_novel_classes_nothing_is_rare(tmp_path: Path) -> None:
    write_lvis(tmp_path / "lvis", SceneRecipe(num_classes=3, num_novel=0, train_images=8, val_images=1, size=32))
    content = json.loads((tmp_path / "lvis/lvis/lvis_v1_train.json").read_text())
    assert sorted(category["frequency"] for category in content["categories"]) == ["c", "f", "f"]
    assert (tmp_path / "lvis/lvis/lvis_v1_train_norare.json").read_text() == json.dumps(content, separators=(",", ":"))
