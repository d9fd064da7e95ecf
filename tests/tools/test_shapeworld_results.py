import json
import re

import pytest

from prompt_pretrain import shapeworld_results
from prompt_pretrain.command_line import run_command
from prompt_pretrain.shapeworld_results import BEGIN, END, Cell, grid, write_section
from tools.shapeworld_results import main

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CELLS = [
    Cell("prompts", "hard prompt", texts="a photo of a {}."),
    Cell("contrast", "K = 64, log10 correction", ("TRAINER.POMP.UPDATE_CLASS_NUM", "8")),
    Cell("contrast", "K = all", ("TRAINER.POMP.UPDATE_CLASS_NUM", "all")),
    Cell("sampling", "similarity", ("TRAINER.POMP.UPDATE_CLASS_NUM", "8", "TRAINER.POMP.NEG_SAMPLING_MODE", "easy")),
]


def test_the_grid_has_every_k_correction_and_sampling_once():
    names = [cell.name for cell in grid()]
    assert len(names) == len(set(names)) == 13
    assert {"K = all", "K = 64, no correction", "K = 64, ln correction", "frequency", "similarity", "easy"} < set(names)


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(shapeworld_results, "grid", lambda: CELLS)
    (tmp_path / "clip.json").write_text(json.dumps(CONFIG))
    return [
        *("--output", str(tmp_path / "out"), "--document", str(tmp_path / "RESULTS.md"), "--seeds", "1", "2"),
        *("--num-classes", "12", "--novel-classes", "5", "--images-per-class", "4", "--val-per-class", "2"),
        *("--clip", str(tmp_path / "clip.json"), "--workers", "1", "OPTIM.MAX_EPOCH", "2"),
    ]


def test_results_are_made_once_and_rendered_into_the_document(arguments, tmp_path, monkeypatch):
    document = tmp_path / "RESULTS.md"
    document.write_text("# Results\n\nBefore.\n")
    assert run_command(main, arguments) == 0
    text = document.read_text()
    assert text.startswith("# Results\n\nBefore.\n\n" + BEGIN)
    assert "12 base classes with " in text
    assert "Guessing at random gives 8.33 and 20.00." in text
    files = sorted((tmp_path / "out" / "cells").glob("*.json"))
    assert len(files) == 1 + 3 * 2
    hard, *trained = [line for line in text.splitlines() if re.match(r"\| (hard|K|POMP|uniform|similarity)", line)]
    base = json.loads(files[[f.name for f in files].index("prompts_hard_prompt-seed0.json")].read_text())["score"][
        "base"
    ]
    assert hard.split("|")[2].strip() == f"{base:.2f}"
    assert len(trained) == 6
    assert all(re.search(r"\d+\.\d\d ± \d+\.\d\d", line) for line in trained)
    monkeypatch.setattr("prompt_pretrain.shapeworld_study.pretrain_prompt", lambda *_, **__: pytest.fail("again"))
    assert run_command(main, arguments) == 0
    assert document.read_text() == text


def test_a_changed_setting_makes_results_again(arguments, tmp_path):
    assert run_command(main, [*arguments[:5], *arguments[6:]]) == 0  # one seed
    files = sorted((tmp_path / "out" / "cells").glob("contrast*seed1.json"))
    before = [json.loads(file.read_text())["settings"] for file in files]
    fresh = [*arguments[:5], *arguments[6:], "TRAINER.POMP.N_CTX", "2"]
    assert run_command(main, fresh) == 0
    after = [json.loads(file.read_text())["settings"] for file in files]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_the_section_is_replaced_and_what_stands_around_it_stays(tmp_path):
    path = tmp_path / "R.md"
    path.write_text(f"# A\n\n{BEGIN}\nold\n{END}\n\nTail.\n")
    write_section(path, "# New\n\n## Part\n")
    assert path.read_text() == f"# A\n\n{BEGIN}\n## New\n\n### Part\n{END}\n\nTail.\n"
