import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.command_line import run_command
from prompt_pretrain.prompt import SoftPrompt, save_prompt

TOOL = Path(__file__).parents[2] / "tools" / "export_class_embeddings.py"
TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TOOL_NAMES = runpy.run_path(str(TOOL), run_name="tool")


@pytest.fixture
def clip_file(tmp_path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return str(tmp_path / "tiny.json")


def run(*arguments: object) -> int:
    return run_command(TOOL_NAMES["main"], [str(argument) for argument in arguments])


def test_prompt_file_gives_the_library_s_embeddings(tmp_path, clip_file, capsys):
    prompt = SoftPrompt.random(4, 16)
    save_prompt(tmp_path / "p.pth", prompt)
    output = tmp_path / "new" / "pets.safetensors"
    assert run("--prompt", tmp_path / "p.pth", "--vocabulary", "pets", "--clip", clip_file, "--output", output) == 0
    found = ClassEmbeddings.load(output)
    expected = ClassEmbeddings.make(load_clip(clip_file), found.class_names, prompt)
    assert torch.equal(found.embeddings, expected.embeddings) and len(found) == 37
    text = capsys.readouterr().out
    norms = expected.embeddings.norm(dim=1)
    assert "37 class embeddings of width 12, file:tiny#" in text and "ties: none" in text
    assert f"row norms: min {norms.min():.3f}, mean {norms.mean():.3f}, max {norms.max():.3f}" in text
    assert f"written to {output}" in text


def test_template_and_ties(tmp_path, clip_file, capsys):
    output = tmp_path / "x.npy"
    assert run("--template", "my {}", "--vocabulary", "dog,cat,Dog", "--clip", clip_file, "--output", output) == 0
    array = np.load(output)
    assert array.dtype == np.float16 and array.shape == (3, 12) and (array[0] == array[2]).all()
    assert (
        "ties: 1 names repeat an earlier one, so that the earlier class always wins: 'dog'" in capsys.readouterr().out
    )


def test_detection_flags_reach_the_texts(tmp_path, clip_file):
    categories = [
        {"id": 2, "name": "car", "synonyms": ["car", "auto"]},
        {"id": 1, "name": "traffic_light", "synonyms": ["traffic_light"]},
    ]
    (tmp_path / "lvis.json").write_text(json.dumps({"categories": categories}))

    def export(*flags: str) -> np.ndarray:
        arguments = ["--prompt", "a", "--vocabulary", tmp_path / "lvis.json", "--clip", clip_file]
        assert run(*arguments, "--output", tmp_path / "x.npy", *flags) == 0
        return np.load(tmp_path / "x.npy").astype(np.float32)

    plain, fixed, averaged = export(), export("--fix_space"), export("--fix-space", "--avg_synonyms")
    with torch.no_grad():
        clip = load_clip(clip_file)
        texts = clip.tokenizer(["a traffic_light", "a traffic light", "a car", "a auto"])
        verbatim, clean, car, auto = clip.model.encode_text(texts).numpy()
    assert plain == pytest.approx(np.stack([verbatim, car]), abs=2e-3)
    assert fixed == pytest.approx(np.stack([clean, car]), abs=2e-3)
    assert averaged == pytest.approx(np.stack([clean, (car + auto) / 2]), abs=2e-3)
    assert export("--use_underscore") == pytest.approx(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "x.pth"}, "written as .npy (for Detic) or .safetensors (with names), not to x.pth"),
        ({"--vocabulary": "lviss"}, "unknown vocabulary 'lviss'; nearest names:"),
        ({"--template": "photo"}, ""),
        ({"--template": "pictures"}, "unknown template 'pictures'"),
        ({"--device": "tpu9"}, "unknown --device 'tpu9'"),
        ({"--clip": "ViT-B/17"}, "unknown CLIP 'ViT-B/17'"),
        ({"--output": "."}, "written as .npy"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path, clip_file, change, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"--template": "a {}", "--vocabulary": "a,b", "--clip": clip_file, "--output": "x.npy"} | change
    code = run(*(part for pair in arguments.items() for part in pair))
    errors = capsys.readouterr().err
    assert (code, errors.count("\n")) == ((2, 1) if message else (0, 0))
    assert message in errors
    assert (tmp_path / "x.npy").exists() == (not message)


def test_inputs_are_checked_before_the_model_is_loaded(tmp_path, capsys):
    save_prompt(tmp_path / "p.pth", SoftPrompt.random(4, 16, num_classes=5))
    arguments = ["--prompt", tmp_path / "p.pth", "--vocabulary", "coco", "--output", tmp_path / "x.npy"]
    assert run(*arguments, "--clip", "not a clip") == 2
    assert "contexts of 5 classes but vocabulary coco has 80" in capsys.readouterr().err
    (tmp_path / "folder.npy").mkdir()
    assert (
        run("--prompt", "a", "--vocabulary", "coco", "--output", tmp_path / "folder.npy", "--clip", "not a clip") == 2
    )
    assert "is a folder; give a file name" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_from_any_folder(tmp_path, clip_file):
    command = [
        sys.executable,
        TOOL,
        "--template",
        "a {}",
        "--vocabulary",
        "a,b",
        "--clip",
        clip_file,
        "--output",
        "x.npy",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    assert np.load(tmp_path / "x.npy").shape == (2, 12)
