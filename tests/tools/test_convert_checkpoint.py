import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detection  # noqa: F401
from detection.checkpoint import DeticCheckpointer, read_checkpoint
from prompt_pretrain.command_line import run_command

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
MAIN = runpy.run_path(str(TOOL), run_name="tool")["main"]


def run(*arguments: object) -> int:
    return run_command(MAIN, [str(argument) for argument in arguments])


def test_weights_of_a_training_state_become_safetensors(tmp_path, capsys):
    shared = torch.rand(2, 3)
    weights = {"module.a": shared, "module.b": shared[:, :2], "module.n": torch.tensor(3)}
    torch.save({"model": weights, "optimizer": {"lr": 1.0}, "iteration": 5}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "new" / "a.safetensors") == 0
    assert "3 entries" in (out := capsys.readouterr().out) and "left out: iteration, optimizer" in out
    content = read_checkpoint(str(tmp_path / "new" / "a.safetensors"))
    assert content.keys() == {"model"}
    assert {name: value.tolist() for name, value in content["model"].items()} == {
        "a": shared.tolist(),
        "b": shared[:, :2].tolist(),
        "n": 3,
    }


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_class_names_stay(tmp_path, capsys, suffix):
    torch.save({"model": {"a": torch.zeros(1)}, "class_names": ["Bär", "b"], "iteration": 5}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / f"b{suffix}") == 0
    assert "left out: iteration\n" in capsys.readouterr().out
    assert read_checkpoint(str(tmp_path / f"b{suffix}"))["class_names"] == ["Bär", "b"]


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_backbone_finds_its_place_in_a_model(tmp_path, suffix):
    backbone = nn.Linear(2, 3)
    torch.save(
        {"state_dict": {f"conv1.{name}": value for name, value in backbone.state_dict().items()}}, tmp_path / "m.pth"
    )
    output = tmp_path / f"m{suffix}"
    assert run(tmp_path / "m.pth", output, "--backbone") == 0
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.conv1 = nn.Linear(2, 3)
    DeticCheckpointer(model).load_all(str(output))
    assert torch.equal(model.backbone.conv1.weight, backbone.weight)
    if suffix == ".pkl":
        content = pickle.loads(output.read_bytes())
        assert content["__author__"] == "third_party" and content["matching_heuristics"] is True
        assert isinstance(content["model"]["conv1.weight"], np.ndarray)


def test_a_wrapped_pickle_keeps_how_its_names_are_matched(tmp_path):
    content = {
        "model": {"conv1.weight": np.ones((3, 2), np.float32)},
        "__author__": "MIIL",
        "matching_heuristics": True,
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    assert run(tmp_path / "m.pkl", tmp_path / "m.safetensors") == 0
    content = read_checkpoint(str(tmp_path / "m.safetensors"))
    assert content["matching_heuristics"] is True and content["__author__"] == "MIIL"


def test_bad_input_ends_in_one_line(tmp_path, capsys):
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    torch.save({"a": torch.zeros(1), "b": "text"}, tmp_path / "text.pth")
    cases = [
        ((tmp_path / "missing.pth", tmp_path / "o.pkl"), "no checkpoint"),
        ((tmp_path / "none.pth", tmp_path / "o.pth"), "must end in .safetensors or .pkl"),
        ((tmp_path / "none.pth", tmp_path / "o.pkl"), "it holds no weights"),
        ((tmp_path / "cut.pth", tmp_path / "o.pkl"), "cut.pth"),
        ((tmp_path / "text.pth", tmp_path / "o.pkl"), "b is a str, expected a tensor"),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "o.pkl").exists()
    (tmp_path / "same.pkl").write_bytes(pickle.dumps({}))
    assert run(tmp_path / "same.pkl", tmp_path / "same.pkl") == 2
    assert "is INPUT itself" in capsys.readouterr().err
    assert run(tmp_path / "same.pkl", tmp_path / "same.pkl" / "o.pkl") == 2
    assert "cannot write" in capsys.readouterr().err
