import json

import numpy as np
import pytest
from PIL import Image

from prompt_pretrain.command_line import run_command
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from tools.analyse_prompt import main

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    rng = np.random.RandomState(0)
    for name in ("red star", "blue fish", "green leaf"):
        folder = root / "data" / "val" / name
        folder.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.randint(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    (root / "clip.json").write_text(json.dumps(CONFIG))
    save_prompt(root / "prompt.pth", SoftPrompt.random(3, 32, seed=1))
    save_prompt(root / "csc.pth", SoftPrompt.random(3, 32, num_classes=3, seed=1))
    return root


def run(world, *more, prompt="prompt.pth"):
    return run_command(main, ["--prompt", str(world / prompt), "--clip", str(world / "clip.json"), *map(str, more)])


def test_a_prompt_alone_shows_its_words(world, capsys):
    assert run(world, "--words", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ctx (3, 32), class name at the end" in lines[0]
    vectors = [line for line in lines if line.startswith("  v")]
    assert [line.split()[0] for line in vectors] == ["v1", "v2", "v3"]
    assert all(len(line.split(": ", 1)[1].split(", ")) == 2 for line in vectors)


def test_words_of_an_initialised_prompt_are_its_words(world, tmp_path, capsys):
    from prompt_pretrain.clip import load_clip

    clip = load_clip(world / "clip.json")
    save_prompt(tmp_path / "words.pth", SoftPrompt.from_words("a photo", clip))
    assert run(tmp_path, "--clip", world / "clip.json", prompt="words.pth") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "'a' 0.000" in next(line for line in lines if line.startswith("  v1"))
    assert "'photo' 0.000" in next(line for line in lines if line.startswith("  v2"))


def test_with_images_there_are_alignment_and_pictures(world, capsys):
    data = ("--dataset", "ImageFolder", "--data-root", world / "data", "--cache-dir", world / "cache")
    assert run(world, *data, "--num-workers", 0, "--device", "cpu", "--output", world / "out") == 0
    content = json.loads((world / "out" / "analysis.json").read_text())
    assert set(content["numbers"]) == {"a photo of a {}.", "learned prompt"}
    for values in content["numbers"].values():
        assert 0 < values["alignment"] < 4
        assert -8 < values["uniformity"] < 0
    assert len(content["nearest_words"]) == 3
    for name in ("hand_written", "learned"):
        assert Image.open(world / "out" / f"{name}.png").format == "PNG"


def test_a_class_specific_prompt_shows_one_class(world, capsys):
    assert run(world, prompt="csc.pth") == 0
    assert "choose a class with --class-index" in capsys.readouterr().out
    assert run(world, "--class-index", 2, "--vocabulary", "a,b,c", prompt="csc.pth") == 0
    assert "  v3 (norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--words", 0], "--words must be at least 1"),
        (["--vocabulary", "a,b,c", "--highlight", "d"], "no class 'd' to highlight"),
        (["--vocabulary", "a,b"], "at least 3 features, got 2"),
        (["--vocabulary", "a,b,c", "--method", "tsne"], "scikit-learn"),
    ],
)
def test_unusable_options_end_in_one_line(world, more, message, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    assert run(world, *more) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
