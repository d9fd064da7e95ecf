import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from prompt_pretrain.classification.registry import load_classification_data
from prompt_pretrain.errors import InputError
from prompt_pretrain.shapeworld import things, writers
from prompt_pretrain.shapeworld.images import render_image
from prompt_pretrain.shapeworld.writers import Recipe, class_id, write_imagenet21k

SMALL = Recipe(num_classes=6, num_novel=2, images_per_class=4, val_per_class=2, size=24)


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapeworld"
    write_imagenet21k(root, SMALL)
    return root


def test_it_reads_back_as_imagenet21k(world):
    data = load_classification_data("ShapeWorld", world.parent)
    assert [name.replace("_", " ") for name in data.class_names] == [thing.name for thing in things("base")[:6]]
    assert sum(data.class_counts) == len(data.train)
    assert len(data.train) == pytest.approx(24, abs=3)
    assert len(data.val) == 12
    assert load_classification_data("ImageNet21K", world).class_names == data.class_names


def test_novel_classes_are_a_test_set_of_their_own(world):
    data = load_classification_data("ImageFolder", world / "novel")
    assert data.class_names == tuple(thing.name for thing in things("novel")[:2])
    assert len(data.test) == 4
    assert not set(data.class_names) & {thing.name for thing in things("base")}


def test_the_tree_leads_from_things_over_shapes_to_the_root(world):
    path = world / "imagenet21k_resized" / "imagenet21k_miil_tree.pth"
    tree = torch.load(path, weights_only=True)
    names = [tree["class_description"][wnid] for wnid in tree["class_list"]]
    for label, thing in enumerate(things("base")[:6]):
        chain = tree["class_tree_list"][label]
        assert chain[0] == label
        assert [names[node] for node in chain] == [thing.name.replace(" ", "_"), thing.shape, "shape"]
        assert tree["class_list"][label] == class_id(label)
    assert tree["class_tree_list"][-1] == [len(names) - 1]


def test_files_hold_the_pictures_of_their_class(world):
    path = world / "imagenet21k_resized" / "imagenet21k_val" / class_id(3) / f"{class_id(3)}_00001.jpg"
    written = cv2.imread(str(path))[..., ::-1].astype(int)
    drawn = render_image(things("base")[3], 1, split="val", size=24)
    assert np.abs(written - drawn).mean() < 6  # JPEG


def test_writing_again_changes_nothing(world):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    seen = []
    write_imagenet21k(world, SMALL, progress=lambda done, total: seen.append((done, total)))
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    assert seen[-1][0] == seen[-1][1]


def test_an_interrupted_run_continues_and_ends_the_same(world, tmp_path, monkeypatch):
    calls = 0

    def fail_later(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 21:
            raise KeyboardInterrupt
        return render_image(*args, **kwargs)

    root = tmp_path / "shapeworld"
    root.mkdir()  # empty: as good as new
    monkeypatch.setattr(writers, "render_image", fail_later)
    with pytest.raises(KeyboardInterrupt):
        write_imagenet21k(root, SMALL)
    assert not any(root.iterdir())
    write_imagenet21k(root, SMALL)
    assert calls < 2 * 40  # classes that were done are not drawn again
    assert contents(root) == contents(world)
    assert not root.with_name("shapeworld.partial").exists()


def test_processes_share_the_work(world, tmp_path):
    write_imagenet21k(tmp_path / "other", SMALL, workers=2)
    assert contents(tmp_path / "other") == contents(world)


def test_another_recipe_or_foreign_files_are_refused(world, tmp_path):
    with pytest.raises(InputError, match="size 24 instead of 32; choose another folder or delete this one"):
        write_imagenet21k(world, Recipe(6, 2, 4, 2, size=32))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and holds no ShapeWorld"):
        write_imagenet21k(tmp_path / "mine", SMALL)
    shutil.copytree(tmp_path / "mine", tmp_path / "new.partial")
    with pytest.raises(InputError, match="holds no unfinished ShapeWorld; move it away"):
        write_imagenet21k(tmp_path / "new", SMALL)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "shapeworld.json").write_text("{")
    with pytest.raises(InputError, match=r"shapeworld.json is damaged"):
        write_imagenet21k(tmp_path / "broken", SMALL)
    with pytest.raises(InputError, match="num_classes must be 1 to 1600, found 2000"):
        Recipe(num_classes=2000)


def test_the_recipe_is_written_down(world):
    assert json.loads((world / "shapeworld.json").read_text()) == {
        "format": 1, "kind": "imagenet21k", "num_classes": 6, "num_novel": 2, "images_per_class": 4,
        "val_per_class": 2, "size": 24, "seed": 0,
    }  # fmt: skip
