import json
import re

import pytest

from prompt_pretrain import grids
from prompt_pretrain.command_line import run_command
from prompt_pretrain.grids import SCALES, Grid, GridRow, Scale, grid_names, paper_grid
from tools import run_grid

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def small(scale: Scale) -> Grid:
    rows = (
        GridRow("hard prompt", texts="a photo of a {}.", paper="21.8"),
        scale.baseline("linear probe", "linear_probe"),
        scale.baseline("VPT", "vpt_shallow"),
        scale.row("K = 4", 4, series="K = 4", x=1.0),
        scale.row("K = all", "all", series="K = all", x=1.0),
    )
    return Grid("small", "Small", rows, "top-1", costs=True)


def curves(scale: Scale) -> Grid:
    return Grid("curves", "Curves", (scale.row("the same", 4, series="K = 4", x=1.0),), xlabel="x")


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "_GRIDS", {"small": small, "curves": curves})
    (tmp_path / "clip.json").write_text(json.dumps(CLIP))
    return [
        *(
            "all",
            "--seeds",
            "1",
            "2",
            "--output",
            str(tmp_path / "out"),
            "--document",
            str(tmp_path / "docs" / "RESULTS.md"),
        ),
        *("--num-classes", "6", "--novel-classes", "3", "--images-per-class", "2", "--val-per-class", "2"),
        *("MODEL.BACKBONE.NAME", str(tmp_path / "clip.json"), "OPTIM.MAX_EPOCH", "1"),
    ]


def test_a_grid_is_made_once_and_leaves_a_table_a_plot_and_the_numbers(arguments, tmp_path, monkeypatch):
    assert run_command(run_grid.main, arguments) == 0
    out, document = tmp_path / "out", tmp_path / "docs" / "RESULTS.md"
    for file in (out / "small.png", out / "curves.png", tmp_path / "docs" / "images" / "grid_small.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    assert len(list((out / "results").glob("*.json"))) == 1 + 2 * 4  # the row of both grids counts once
    text = document.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    lines = {line.split("|")[1].strip(): line for line in reversed(rows)}  # of the first table
    assert [cell.strip() for cell in lines[""].split("|")[2:-1]] == [
        *("base", "novel", "harmonic mean", "seconds", "memory, MB", "paper")
    ]
    assert re.search(r"\| \d+\.\d\d ± \d+\.\d\d \| – \| – \|", lines["linear probe"])
    assert lines["hard prompt"].rstrip().endswith("| – | – | 21.8 |")
    numbers = json.loads((out / "small.json").read_text())["results"]
    assert [len(rows) for rows in numbers.values()] == [1, 2, 2, 2, 2]
    assert all(row["seconds"] > 0 for row in numbers["VPT"])
    monkeypatch.setattr("prompt_pretrain.grid_runner.train", lambda *_, **__: pytest.fail("again"))
    assert run_command(run_grid.main, arguments) == 0
    assert document.read_text() == text


def test_an_interrupted_grid_goes_on(arguments, tmp_path, monkeypatch):
    from prompt_pretrain import grid_runner

    train, calls = grid_runner.train, []

    def stop_at_the_third(cfg, **options):
        calls.append(cfg.OUTPUT_DIR)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(cfg, **options)

    monkeypatch.setattr(grid_runner, "train", stop_at_the_third)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_grid.main(arguments)
    assert run_command(run_grid.main, arguments) == 0
    assert len(calls) == 3 + 6 and calls[2] == calls[3]


@pytest.mark.parametrize("name", SCALES)
def test_every_grid_of_the_paper_has_readable_configs_and_a_row_with_all_classes(name, tmp_path):
    from prompt_pretrain.grid_runner import GridRunner

    scale = SCALES[name]
    runner = GridRunner(
        tmp_path, config_folder=run_grid.ROOT / "configs" / "prompt_pretrain", data_root="x", evaluation={}, seeds=[1]
    )
    for key in grid_names():
        rows = paper_grid(key, scale).rows
        trained = [runner.cfg(row, 1) for row in rows if row.config]
        assert any(cfg.TRAINER.POMP.UPDATE_CLASS_NUM == "all" for cfg in trained), key
    methods = {runner.cfg(row, 1).TRAINER.NAME for row in paper_grid("table1", scale).rows if row.config}
    assert methods == {"POMP", "CoOp", "CoCoOp", "VPT", "MaPLe", "LASP", "LinearProbe"}


def test_the_paper_s_numbers_stand_beside_its_settings():
    table8 = {row.name: row.paper for row in paper_grid("table8", SCALES["published"]).rows}
    assert table8["K = 1000"] == "25.3 / 67.0 / 60.8"
    assert table8["K = 1000, no correction"] == "25.0 / 65.8 / 59.8"
    assert not any(row.paper for row in paper_grid("table9", SCALES["shapeworld"]).rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2"], "there is no grid 'table2'; choose one of table1"),
        (["OPTIM.LR", "1"], "no grid given; name table1"),
        (["table8", "OPTIM.LRR", "1"], "there is no config key OPTIM.LRR"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(words, message, tmp_path, capsys):
    world = ["--num-classes", "2", "--novel-classes", "1", "--images-per-class", "2", "--val-per-class", "1"]
    assert run_command(run_grid.main, [*words, "--output", str(tmp_path), *world]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
