"""Saving, resuming and loading of checkpoints."""

import logging
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts


class Counter:
    """Something with a state beside the model."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_resuming_restores_everything_and_loading_the_model_alone(tmp_path):
    model, counter = make_model(0), Counter(7)
    PeriodicCheckpointer(DetectionCheckpointer(model, str(tmp_path), counter=counter), period=5, max_iter=20).step(4)
    other, blank = make_model(1), Counter()
    checkpointer = DetectionCheckpointer(other, str(tmp_path), counter=blank)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 4}
    assert blank.count == 7
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    blank.count = 0
    rest = checkpointer.resume_or_load(str(tmp_path / "model_0000004.pth"), resume=False)
    assert blank.count == 0
    assert rest["counter"] == {"count": 7}


def test_nothing_to_resume_from_loads_the_given_file(tmp_path):
    torch.save({"model": make_model(0).state_dict(), "counter": {"count": 3}}, tmp_path / "start.pth")
    counter = Counter()
    checkpointer = DetectionCheckpointer(make_model(1), str(tmp_path / "out"), counter=counter)
    checkpointer.resume_or_load(str(tmp_path / "start.pth"), resume=True)
    assert counter.count == 0
    assert checkpointer.load("") == {}


def test_only_some_checkpointables_are_loaded_on_request(tmp_path):
    torch.save({"model": {}, "a": {"count": 1}, "b": {"count": 2}}, tmp_path / "x.pth")
    a, b = Counter(), Counter()
    rest = DetectionCheckpointer(make_model(), a=a, b=b).load(str(tmp_path / "x.pth"), checkpointables=["b"])
    assert (a.count, b.count) == (0, 2)
    assert rest == {"a": {"count": 1}}


def test_old_checkpoints_are_removed_and_the_final_one_stays(tmp_path):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(make_model(), str(tmp_path)), 2, max_iter=8, max_to_keep=2)
    for iteration in range(8):
        periodic.step(iteration)
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == [
        "model_0000005.pth",
        "model_0000007.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_other_processes_do_not_write(tmp_path):
    DetectionCheckpointer(make_model(), str(tmp_path), save_to_disk=False).save("x")
    assert list(tmp_path.iterdir()) == []


def test_entries_of_another_shape_or_name_are_reported_and_skipped(tmp_path, caplog, monkeypatch):
    for name in ("detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)  # other tests set loggers up
    torch.save(
        {"model": {"0.weight": torch.ones(9, 9), "0.bias": torch.ones(4), "x": torch.ones(1)}}, tmp_path / "x.pth"
    )
    model = make_model()
    before = model[0].weight.clone()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "x.pth"))
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model[0].bias, torch.ones(4))
    assert "0.weight" in caplog.text
    assert "running_mean" in caplog.text
    assert "x" in caplog.text


def test_pixel_statistics_and_anchors_are_not_reported(tmp_path, caplog, monkeypatch):
    for name in ("detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    model = nn.Module()
    model.register_buffer("pixel_mean", torch.zeros(3))
    model.register_buffer("pixel_std", torch.ones(3))
    weights = {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(1)}
    torch.save({"model": weights}, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "x.pth"))
    assert caplog.text == ""


def test_tensors_and_arrays_in_pickles(tmp_path):
    weights = {"0.weight": torch.full((4, 3, 1, 1), 2.0), "0.bias": np.full(4, 3.0, np.float32)}
    content = {"model": weights, "__author__": "third_party", "matching_heuristics": True}
    for protocol in (2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        model = make_model()
        DetectionCheckpointer(model).load(str(tmp_path / "x.pkl"))
        assert (model[0].weight == 2).all()
        assert (model[0].bias == 3).all()


def test_strings_of_python_2(tmp_path):
    # What Python 2 writes for {"0_b": array("\x00\x00\x80?" * 4)}: byte strings, which latin-1 decodes.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I4\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\n"
        b"tR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'" + rb"\x00\x00\x80?" * 4 + b"'\ntb"
    )
    (tmp_path / "x.pkl").write_bytes(b"(dS'0_b'\n" + array + b"s.")
    model = make_model()
    DetectionCheckpointer(model).load(str(tmp_path / "x.pkl"))
    assert (model[0].bias == 1).all()


def test_matching_prefers_the_longest_suffix_and_never_part_of_a_name():
    model = {"backbone.conv.weight": torch.zeros(1), "head.myconv.weight": torch.zeros(1)}
    checkpoint = {"conv.weight": torch.ones(1), "weight": torch.ones(2)}
    aligned = align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    assert sorted(aligned) == ["backbone.conv.weight", "weight"]


def test_an_unknown_query_is_an_error(tmp_path):
    torch.save({"model": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="query"):
        DetectionCheckpointer(make_model()).load(f"{tmp_path}/x.pth?heuristics=1")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises((AssertionError, FileNotFoundError), match="nowhere.pth not found"):
        DetectionCheckpointer(make_model()).load(str(tmp_path / "nowhere.pth"))


def test_a_name_is_used_once():
    checkpointer = DetectionCheckpointer(make_model(), counter=Counter())
    with pytest.raises(KeyError, match="counter"):
        checkpointer.add_checkpointable("counter", Counter())
