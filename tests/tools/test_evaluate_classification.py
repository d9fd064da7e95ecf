import json

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_pretrain.command_line import run_command
from prompt_pretrain.prompt import SoftPrompt, save_prompt
from tests.classification_recipes import write_all
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


def test_ctrl_c_says_what_is_kept(world, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("prompt_pretrain.clip.Clip.encode_image", interrupted)
    assert run_command(main, [*arguments(world), "--cache-dir", str(world / "other_cache")]) == 130
    stopped = f"interrupted; image features so far are kept in {world / 'other_cache'}, the same command goes on"
    assert capsys.readouterr().err.splitlines()[-1] == stopped


def test_all_data_sets_give_the_papers_table(world, tmp_path, capsys):
    write_all(tmp_path / "data")
    prompt = SoftPrompt.random(4, 32, seed=1)
    prompt.metadata["dataset"] = "ImageNet21K"
    save_prompt(tmp_path / "pomp.pth", prompt)
    command = [
        *arguments(world, "--datasets", "all", "--data-root", str(tmp_path / "data")),
        *("--prompt", f"POMP={tmp_path / 'pomp.pth'}", "--template", "own", "--template", "ensemble"),
        *("--json", str(tmp_path / "t.json"), "--text", str(tmp_path / "t.txt")),
    ]
    assert run_command(main, command) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "t.txt").read_text() in printed.replace("\n\ncross-dataset", "\ncross-dataset", 1)
    lines = printed[printed.index("cross-dataset, top-1") :].splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == [
        *("ours: POMP", "ours: own templates", "ours: ensemble templates", "paper: hard prompt")
    ]
    assert lines[2].split()[2] == "ImageNet-21K"
    content = json.loads((tmp_path / "t.json").read_text())
    assert [one["data_set"] for one in content["data_sets"]] == [
        name for group in content["table"]["groups"].values() for name in group
    ]
    for index, row in enumerate(content["table"]["ours"]):
        metrics = {one["data_set"]: one["results"][index]["metrics"] for one in content["data_sets"]}
        for metric in ("accuracy", "perclass_accuracy"):
            assert row[metric] == {name: values[metric] for name, values in metrics.items()}


def test_missing_data_sets_stop_the_table_or_are_listed_in_it(world, tmp_path, capsys):
    write_all(tmp_path / "data")
    (tmp_path / "data/imagenet-rendition/imagenet-r").rename(tmp_path / "elsewhere")
    command = arguments(world, "--datasets", "cross-domain", "--data-root", str(tmp_path / "data"))
    assert run_command(main, command) == 2
    assert "1 of 4 data sets are not there: ImageNetR (" in capsys.readouterr().err
    assert run_command(main, [*command, "--skip-missing"]) == 0
    printed = capsys.readouterr().out
    assert "avg of 3" in printed
    assert f"missing: ImageNetR, expected in {tmp_path}/data/imagenet-rendition/imagenet-r" in printed
