import json
import runpy
from pathlib import Path

import pytest

from prompt_pretrain.command_line import run_command

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_shapeworld.py"), run_name="tool")


def run(*arguments: object) -> int:
    return run_command(TOOL["main"], [str(argument) for argument in arguments])


def small(output: Path, *more: object) -> int:
    counts = ["--num-classes", 4, "--novel-classes", 2, "--images-per-class", 3, "--val-per-class", 1]
    return run("--output", output, *counts, "--size", 16, "--workers", 1, *more)


def test_it_writes_a_world_and_leaves_a_finished_one_alone(tmp_path):
    assert small(tmp_path / "shapeworld") == 0
    recipe = json.loads((tmp_path / "shapeworld" / "shapeworld.json").read_text())
    assert (recipe["num_classes"], recipe["num_novel"], recipe["size"], recipe["seed"]) == (4, 2, 16, 0)
    pictures = sorted((tmp_path / "shapeworld").rglob("*.jpg"))
    assert len(pictures) == pytest.approx(4 * 3 + 4 + 2, abs=1)
    times = [path.stat().st_mtime_ns for path in pictures]
    assert small(tmp_path / "shapeworld") == 0
    assert [path.stat().st_mtime_ns for path in pictures] == times


def test_ctrl_c_keeps_what_is_drawn(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prompt_pretrain.shapeworld.world_folder.WorldFolder.publish", interrupted)
        assert small(tmp_path / "world") == 130
    kept = tmp_path / "world.partial"
    assert f"interrupted; what is drawn is kept in {kept}, the same command goes on" in capsys.readouterr().err
    assert small(tmp_path / "world") == 0 and not kept.exists()


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    assert small(tmp_path / "world", "--quiet") == 0
    capsys.readouterr()
    assert small(tmp_path / "world", "--seed", 1, "--quiet") == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err
    assert run("--output", tmp_path / "other", "--num-classes", 1601) == 2
    error = capsys.readouterr().err
    assert error == "error: ShapeWorld: num_classes must be 1 to 1600, found 1601\n"
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("coco", "coco/annotations/instances_train2017.json"),
        ("lvis", "lvis/lvis_v1_train.json"),
        ("sem_seg", "labels/train/000000000001.png"),
    ],
)
def test_it_writes_scenes(tmp_path, kind, expected):
    counts = ["--num-classes", 4, "--novel-classes", 2, "--train-images", 3, "--val-images", 1, "--size", 48]
    for _ in range(2):
        assert run("--kind", kind, "--output", tmp_path / "world", *counts, "--workers", 1, "--quiet") == 0
    assert (tmp_path / "world" / expected).is_file()
    assert len(list((tmp_path / "world").rglob("*.jpg"))) == 4
    recipe = json.loads((tmp_path / "world" / "shapeworld.json").read_text())
    assert recipe == {
        "format": 1, "kind": kind, "num_classes": 4, "num_novel": 2, "train_images": 3, "val_images": 1, "size": 48,
        "seed": 0,
    }  # fmt: skip


def test_options_of_other_kinds_are_refused(tmp_path, capsys):
    assert run("--kind", "coco", "--output", tmp_path / "world", "--val-per-class", 3) == 2
    assert capsys.readouterr().err == "error: --val-per-class does not apply to --kind coco; leave it out\n"
    assert run("--output", tmp_path / "world", "--train-images", 3) == 2
    assert capsys.readouterr().err == "error: --train-images does not apply to --kind imagenet21k; leave it out\n"
    assert not (tmp_path / "world").exists()
