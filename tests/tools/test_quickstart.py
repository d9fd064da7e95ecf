import json
import re
import subprocess
import sys
import time

import pytest

from prompt_pretrain.command_line import run_command
from prompt_pretrain.quickstart import steps
from prompt_pretrain.quickstart.steps import Plan
from prompt_pretrain.shapeworld.writers import Recipe
from tools.quickstart import ROOT, main

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PLAN = Plan(
    Recipe(num_classes=32, num_novel=16, images_per_class=6, val_per_class=2),
    (16, None),
    (1.0,) * 6,
    ("OPTIM.MAX_EPOCH", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "64"),
)


@pytest.fixture(scope="module", autouse=True)
def prepared():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        patch.setattr(steps, "FAST_PLAN", PLAN)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("quickstart")
    (root / "clip.json").write_text(json.dumps(CONFIG))
    arguments = [
        *("--fast", "--output", str(root / "out"), "--clip", str(root / "clip.json"), "--workers", "1"),
        "--classification-only",
    ]
    assert run_command(main, arguments) == 0
    return root, arguments


def test_page_text_json_pictures_prompts_and_embeddings_are_written(finished):
    root, _ = finished
    out = root / "out"
    page = (out / "report.html").read_text()
    content = json.loads((out / "report.json").read_text())
    rows = ["shuffled embeddings", "hard prompt", "80 templates", "POMP, K = 16", "POMP, K = all"]
    assert list(content["scores"]) == rows
    for name, score in content["scores"].items():
        assert f"<td>{name}</td><td>{score['base']:.1f}</td><td>{score['novel']:.1f}</td>" in page
    assert content["images"] == {"training": 161, "base test": 64, "novel test": 32}
    assert (out / "report.md").read_text().startswith("# Prompt pre-training on ShapeWorld")
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert {"accuracy", "accuracy_by_k", "samples_base", "samples_novel", "loss", "held_out"} < figures
    assert len(list((out / "class_embeddings" / "cache").glob("*.safetensors"))) == 1  # the 80 templates, encoded once
    for path in [*content["prompts"].values(), *content["class_embeddings"]]:
        assert root.joinpath(path).is_file()


def test_a_second_start_says_the_same_at_once(finished, monkeypatch, capsys):
    root, arguments = finished
    monkeypatch.setattr(steps, "Quickstart", lambda *_, **__: pytest.fail("started"))
    assert run_command(main, arguments) == 0
    said = capsys.readouterr().out
    assert "hard prompt" in said and said.rstrip().endswith(f"report: {root / 'out' / 'report.html'}")


def test_a_report_is_written_again_without_repeating_a_step(finished, monkeypatch):
    root, arguments = finished
    (root / "out" / "finished.json").unlink()
    before = json.loads((root / "out" / "report.json").read_text())
    monkeypatch.setattr("prompt_pretrain.clip.Clip.encode_image", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr("prompt_pretrain.pretrain.PromptPretrainer._take_step", lambda *_: pytest.fail("trained again"))
    assert run_command(main, arguments) == 0
    assert json.loads((root / "out" / "report.json").read_text()) == before


def test_another_world_in_the_folder_is_named(finished, capsys):
    _, arguments = finished
    assert run_command(main, arguments[1:]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds a ShapeWorld with" in error


@pytest.mark.slow
def test_the_whole_story_goes_on_after_a_kill(tmp_path, monkeypatch):
    """In a process of its own: killed while the detector trains, then run to the end."""
    code = f"""
import sys
sys.path[:0] = {[str(ROOT / "tools"), str(ROOT)]!r}
from quickstart_parts import scenes
from prompt_pretrain.quickstart import steps
from tests.tools.test_quickstart import PLAN
from tools.quickstart import main
steps.FAST_PLAN = PLAN
worlds = scenes._worlds(6, 3, 8, 8, 4)
scenes.FAST_SCENES = scenes.ScenePlan(*worlds, detector_steps=30, segmenter_steps=25, pictures=2)
sys.exit(main(["--fast", "--output", {str(tmp_path / "out")!r}, "--workers", "1"]))
"""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [sys.executable, "-c", code]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    log = tmp_path / "out" / "runs" / "detector" / "metrics.json"
    while not (log.is_file() and log.read_text()):
        assert first.poll() is None
        time.sleep(0.2)
    first.kill()
    first.wait()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "report: " in done.stdout and "novel AP" in done.stdout
    log_text = (tmp_path / "out" / "runs" / "detector" / "output.txt").read_text()
    started = [int(number) for number in re.findall(r"training from iteration (\d+) to 30", log_text)]
    assert len(started) == 2 and started[0] == 0 and started[1] >= 20
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Open-vocabulary segmentation" in page and page.count("data:image/jpeg") >= 6
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_an_unknown_clip_is_found_before_anything_is_drawn(tmp_path, capsys):
    assert run_command(main, ["--fast", "--output", str(tmp_path / "out"), "--clip", "nosuch"]) == 2
    said = capsys.readouterr()
    assert "unknown CLIP 'nosuch'" in said.err and "[1/" not in said.out
