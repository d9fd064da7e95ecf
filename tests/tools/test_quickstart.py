import json

import pytest
from PIL import Image

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
        *("--readme-picture", str(root / "readme.png"), "--classification-only"),
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
    assert Image.open(root / "readme.png").width > 1000
    for path in [*content["prompts"].values(), *content["class_embeddings"]]:
        assert root.joinpath(path).is_file()


def test_a_second_start_repeats_nothing_and_tells_the_same(finished, monkeypatch):
    root, arguments = finished
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
