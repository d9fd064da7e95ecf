import json

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_pretrain.command_line import run_command
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from tools.evaluate_classification import main

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
    for name in ("red star", "blue fish", "Red_star", "green leaf"):
        folder = root / "data" / "val" / name
        folder.mkdir(parents=True)
        for index in range(3):
            Image.fromarray(rng.randint(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    (root / "clip.json").write_text(json.dumps(CONFIG))
    save_prompt(root / "prompt.pth", SoftPrompt.random(4, 32, seed=1))
    return root


def arguments(world, *more):
    return [
        *("--datasets", "ImageFolder", "--data-root", str(world / "data"), "--clip", str(world / "clip.json")),
        *("--cache-dir", str(world / "cache"), "--num-workers", "0", "--device", "cpu", *more),
    ]


def test_prompts_are_compared_in_a_table_and_a_json(world, capsys):
    out = world / "out" / "numbers.json"
    code = run_command(
        main,
        arguments(
            *(world, "--prompt", f"POMP={world / 'prompt.pth'}", "--template", "a photo of a {}."),
            *("--templates", "imagenet_select_7", "--per-class", "--json", str(out)),
        ),
    )
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("ImageFolder test: 12 images, 4 classes; repeated class names: 1, so top-1 cannot exceed 75.0")
    assert lines[1].split() == ["top-1", "top-5", "per", "class", "macro", "F1", "alignment", "uniformity"]
    assert [line.split("  ")[0] for line in lines[2:]] == ["POMP", "a photo of a {}.", "imagenet_select_7"]
    (content,) = json.loads(out.read_text())
    assert (content["data_set"], content["split"]) == ("ImageFolder", "test")
    for row, line in zip(content["results"], lines[2:], strict=True):
        assert f"{row['metrics']['accuracy']:.2f}" == line.split()[-6]
        assert row["metrics"]["tie_ceiling"] == 75.0
        assert sum(record["images"] for record in row["per_class"]) == 12


def test_without_a_source_the_generic_template_is_evaluated_and_images_are_not_encoded_again(
    world, capsys, monkeypatch
):
    assert run_command(main, arguments(world)) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("prompt_pretrain.clip.Clip.encode_image", lambda *_: pytest.fail("encoded again"))
    assert run_command(main, arguments(world)) == 0
    assert capsys.readouterr().out == first
    assert "a photo of a {}." in first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", "missing.pth"], "no prompt file missing.pth"),
        (["--datasets", "ImageNet22K"], "unknown data set 'ImageNet22K'"),
        (["--data-root", "/nowhere"], "/nowhere"),
    ],
)
def test_unusable_options_end_in_one_line(world, more, message, capsys):
    assert run_command(main, arguments(world, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_a_prompt_of_another_clip_is_named(world, tmp_path, capsys):
    torch.save({"state_dict": {"ctx": torch.zeros(4, 8)}}, tmp_path / "other.pth")
    assert run_command(main, arguments(world, "--prompt", str(tmp_path / "other.pth"))) == 2
    assert "width 8" in capsys.readouterr().err
