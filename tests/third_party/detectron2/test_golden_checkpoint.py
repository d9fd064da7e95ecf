"""Names and formats of checkpoints against the recorded behaviour of detectron2."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_c2_detectron_names


@pytest.mark.golden("d2_checkpoint")
def test_checkpoint(golden, tmp_path):
    meta = golden.meta
    check_caffe2_names(meta["caffe2_names"], meta["background_moves"])
    for case in meta["align"]:
        check_alignment(case)
    check_ambiguity(meta["align_ambiguous"])
    write_formats(tmp_path)
    for name, expected in meta["file_formats"]["cases"].items():
        check_format(tmp_path, name, expected)
    check_saving(meta["save"], tmp_path / "saved")


def check_caffe2_names(names, moves):
    weights = {}
    for index, (original, renamed) in enumerate(names.items()):
        first = moves[renamed]["first_in"] if renamed in moves else index
        weights[original] = torch.arange(12.0)[:, None] + first
    converted, originals = convert_c2_detectron_names(weights)
    assert {originals[renamed]: renamed for renamed in converted} == names
    for renamed, values in converted.items():
        rows = values.flatten().tolist()
        assert rows == (moves[renamed]["out"] if renamed in moves else weights[originals[renamed]].flatten().tolist())


def zeros(shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def check_alignment(case):
    aligned = align_and_update_state_dicts(zeros(case["model"]), zeros(case["checkpoint"]), c2_conversion=case["c2"])
    assert {name: list(value.shape) for name, value in aligned.items()} == case["result"], case["case"]


def check_ambiguity(case):
    model, checkpoint = ({name: torch.zeros(2) for name in case[side]} for side in ("model", "checkpoint"))
    with pytest.raises(ValueError) as caught:
        align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    assert caught.type.__name__ == case["outcome"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2))


def write_formats(folder):
    ones = torch.ones(2, 2)
    full, short = {"backbone.0.weight": ones}, {"0.weight": ones}
    torch.save({"model": full, "iteration": 3}, folder / "model.pth")
    torch.save(full, folder / "bare.pth")
    torch.save({"model": {f"module.{name}": value for name, value in full.items()}}, folder / "ddp.pth")
    torch.save({"model": short}, folder / "short.pth")
    torch.save({"model": full, "x": np.float64(1)}, folder / "np_scalar.pth")
    pickles = {
        "author": {"model": {"backbone.0.weight": np.ones((2, 2), np.float32)}, "__author__": "me"},
        "author_heur": {"model": {"0.weight": ones.numpy()}, "__author__": "me", "matching_heuristics": True},
        "raw": {"0_w": ones.numpy(), "0_w_momentum": ones.numpy()},
        "blobs": {"blobs": {"0_w": ones.numpy(), "0_w_momentum": ones.numpy()}},
    }
    for name, content in pickles.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))


def check_format(folder, name, expected):
    model = Model()
    checkpointer = DetectionCheckpointer(model)
    if "error" in expected:
        with pytest.raises((ValueError, pickle.UnpicklingError)) as caught:
            checkpointer.load(str(folder / name))
        assert caught.type.__name__ == expected["error"]
        return
    rest = checkpointer.load(str(folder / name))
    assert bool((model.backbone[0].weight == 1).all()) is expected["loaded"], name
    assert sorted(rest) == expected["returned_keys"], name


def check_saving(expected, folder):
    folder.mkdir()
    iteration = int(expected["last_checkpoint"].rpartition("_")[2].partition(".")[0])
    checkpointer = DetectionCheckpointer(Model(), str(folder))
    PeriodicCheckpointer(checkpointer, period=iteration + 1).step(iteration)
    assert sorted(file.name for file in folder.iterdir()) == expected["files"]
    assert (folder / "last_checkpoint").read_text() == expected["last_checkpoint"]
    assert sorted(torch.load(folder / expected["last_checkpoint"], weights_only=True)) == expected["keys"]
