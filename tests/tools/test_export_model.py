import json
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from prompt_pretrain import model_export
from prompt_pretrain.class_embeddings import ClassEmbeddings
from prompt_pretrain.clip import load_clip
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import onnx_outputs, program_outputs
from prompt_pretrain.prompt import SoftPrompt, load_prompt, save_prompt
from tests.export_packages import needs_onnx
from tests.segmentation.test_api import tiny_config

TOOL = Path(__file__).parents[2] / "tools" / "export_model.py"
TOOL_NAMES = runpy.run_path(str(TOOL), run_name="tool")
TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def clip_file(tmp_path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return tmp_path / "tiny.json"


def run(*arguments: object) -> int:
    return run_command(TOOL_NAMES["main"], [str(argument) for argument in arguments])


def check_vocabularies(outputs, path: Path, clip_file: Path) -> None:
    """One file, two vocabularies of different sizes: the logits of the library."""
    clip = load_clip(str(clip_file))
    images = torch.rand(3, 3, 16, 16) * 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    with torch.no_grad():
        features = F.normalize(clip.encode_image((images / 255 - mean) / std), dim=1)
    for names in (["dog", "cat"], ["sea lion", "traffic light", "red car", "sky", "bus"]):
        rows = ClassEmbeddings.make(clip, names, "a {}.").embeddings.float()
        (logits,) = outputs(path, {"images": images, "class_embeddings": rows})
        expected = clip.logit_scale * features @ F.normalize(rows, dim=1).t()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_one_program_classifies_with_any_vocabulary(tmp_path, clip_file, capsys):
    output = tmp_path / "new" / "classifier"
    assert run("classifier", "--clip", clip_file, "--output", output, "--formats", "torch") == 0
    assert "differs from the model by 0.0e+00" in capsys.readouterr().out
    check_vocabularies(program_outputs, Path(f"{output}.pt2"), clip_file)
    found = json.loads(Path(f"{output}.json").read_text())
    assert [each["name"] for each in found["inputs"]] == ["images", "class_embeddings"]
    assert found["outputs"] == [{"name": "logits", "shape": ["images", "classes"]}]
    assert found["embedding_width"] == 12 and found["differences"] == {"torch": 0.0}
    assert sorted(path.name for path in output.parent.iterdir()) == ["classifier.json", "classifier.pt2"]


@needs_onnx
@pytest.mark.slow
def test_so_does_one_onnx_file(tmp_path, clip_file):
    output = tmp_path / "classifier"
    assert run("classifier", "--clip", clip_file, "--output", output, "--formats", "onnx") == 0
    check_vocabularies(onnx_outputs, Path(f"{output}.onnx"), clip_file)


@needs_onnx
@pytest.mark.slow
def test_text_tower_with_a_prompt(tmp_path, clip_file):
    save_prompt(tmp_path / "p.pth", SoftPrompt.random(3, 16))
    output = tmp_path / "text"
    prompt = ("--prompt", tmp_path / "p.pth")
    assert run("text-tower", "--clip", clip_file, *prompt, "--output", output, "--formats", "onnx") == 0
    facts = json.loads(Path(f"{output}.json").read_text())
    (features,) = onnx_outputs(f"{output}.onnx", {"tokens": torch.tensor(facts["example"]["tokens"])})
    expected = ClassEmbeddings.make(load_clip(str(clip_file)), facts["example"]["texts"], load_prompt(prompt[1]))
    torch.testing.assert_close(F.normalize(features, dim=1), F.normalize(expected.embeddings.float(), dim=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "setting", "value", "outputs"),
    [
        ("detector", "MODEL.CENTERNET.POST_NMS_TOPK_TEST", 8, ["boxes", "scores", "classes"]),
        ("segmenter", "MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", False, ["sem_seg"]),
    ],
)
def test_models_are_exported_by_their_configs(part, setting, value, outputs, tmp_path):
    config, output = "shapeworld_boxsup", tmp_path / part
    if part == "segmenter":
        config = tmp_path / "config.yaml"
        config.write_text(tiny_config().dump())
    model = ("--config-file", config, "--weights", "", "--image-size", 64, 96)
    assert run(part, *model, "--output", output, "--formats", "torch", "--opts", setting, value) == 0
    facts = json.loads(Path(f"{output}.json").read_text())
    assert [each["name"] for each in facts["outputs"]][: len(outputs)] == outputs
    assert facts["image"].endswith("64 x 96 pixels")


def test_a_difference_above_the_tolerance_is_no_success(tmp_path, clip_file, capsys, monkeypatch):
    monkeypatch.setattr(model_export, "difference", lambda found, expected: float("nan"))
    command = ("image-tower", "--clip", clip_file, "--output", tmp_path / "tower", "--formats", "torch")
    assert run(*command) == 1
    assert "error: torch differ by more than --tolerance 0.0001: do not use" in capsys.readouterr().err
    assert json.loads((tmp_path / "tower.json").read_text())["differences"] == {"torch": None}


def test_missing_packages_are_noticed_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    def missing() -> None:
        raise InputError("ONNX needs the package onnx")

    monkeypatch.setattr(model_export, "need_onnx", missing)
    assert run("classifier", "--clip", "no-such-clip", "--output", tmp_path / "c") == 2
    assert capsys.readouterr().err == "error: ONNX needs the package onnx\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("classifier --output OUT", "the classifier needs --clip, such as --clip ViT-B/16"),
        ("detector --output OUT", "the detector needs --config-file, such as"),
        ("detector --clip RN50 --config-file shapeworld_boxsup --output OUT", "the detector has no --clip; leave"),
        ("classifier --clip RN50 --image-size 3 3 --output OUT", "the classifier has no --image-size; leave it out"),
        ("classifier --clip RN50 --output OUT --prompt p.pth", "takes class embeddings, so that any prompt will do"),
        ("detector --config-file a --image-size 0 9 --output OUT", "--image-size [0, 9]: sides must lie between 1"),
        ("classifier --clip RN50 --output OUT --tolerance 0", "--tolerance 0.0: it must be positive"),
        ("classifier --clip RN50 --output DIR", "DIR is a folder; give the files' path without suffix, such as"),
        ("classifier --clip RN50 --output OUT.onnx", "leave out .onnx, each file gets its own suffix"),
        ("classifier --clip RN50 --output CLIP/out", "cannot write below CLIP; choose another --output"),
        ("classifier --clip CLIP --output DIR/tiny", "DIR/tiny would replace CLIP; choose another --output"),
        ("text-tower --clip CLIP --prompt DIR/wide.pth --output OUT --formats torch", "vectors of width 8, file:tiny"),
        ("detector --config-file no_such --output OUT --formats torch", "no_such"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, clip_file, capsys):
    save_prompt(tmp_path / "wide.pth", SoftPrompt.random(2, 8))
    places = {"OUT": str(tmp_path / "out"), "CLIP": str(clip_file), "DIR": str(tmp_path)}
    for name, place in places.items():
        arguments, message = arguments.replace(name, place), message.replace(name, place)
    assert run(*arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        run("tracker", "--output", "a")
    assert "invalid choice: 'tracker'" in capsys.readouterr().err
