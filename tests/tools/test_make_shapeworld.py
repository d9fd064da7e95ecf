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


def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    assert small(tmp_path / "world", "--quiet") == 0
    capsys.readouterr()
    assert small(tmp_path / "world", "--seed", 1, "--quiet") == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err
    assert run("--output", tmp_path / "other", "--num-classes", 1601) == 2
    error = capsys.readouterr().err
    assert error == "error: ShapeWorld: num_classes must be 1 to 1600, found 1601\n"
    assert not (tmp_path / "other").exists()
