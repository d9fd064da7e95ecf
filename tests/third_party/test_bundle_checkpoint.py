"""What the bundled checkpointer does beyond detectron2's: safety, whole files, torchvision's names and safetensors."""

import os
import pickle
import signal

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_torchvision_names
from detectron2.checkpoint.safe_pickle import load_pickle


def make_checkpointer(folder, value=0.0, **checkpointables):
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, value)
    return DetectionCheckpointer(model, str(folder), **checkpointables)


def save(folder, iteration):
    PeriodicCheckpointer(make_checkpointer(folder, float(iteration)), period=1).step(iteration)


def weight(checkpointer):
    return checkpointer.model.weight[0, 0].item()


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-60] + b"x" * 60]
)
def test_resuming_falls_back_to_the_newest_complete_checkpoint(tmp_path, damage):
    for iteration in range(3):
        save(tmp_path, iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (iteration, iteration))
    torch.save({"model": {"weight": torch.ones(2, 2)}}, tmp_path / "backbone.pth")  # newer, but not of this run
    last = tmp_path / "model_0000002.pth"
    last.write_bytes(damage(last.read_bytes()))
    checkpointer = make_checkpointer(tmp_path)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 1}
    assert weight(checkpointer) == 1


def test_resuming_without_any_complete_checkpoint_is_an_error(tmp_path):
    save(tmp_path, 0)
    (tmp_path / "model_0000000.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*; remove .*last_checkpoint to start anew"):
        make_checkpointer(tmp_path).resume_or_load("", resume=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(tmp_path, where, call):
    save(tmp_path, 0)
    child = os.fork()
    if child == 0:
        calls = iter(range(1, 9))
        original = getattr(os, where)

        def die(*arguments):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        setattr(os, where, die)
        save(tmp_path, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    checkpointer = make_checkpointer(tmp_path)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 0}
    save(tmp_path, 2)
    leftovers = [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")]
    assert leftovers in ([], ["last_checkpoint.tmp"])
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


class State:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_numpy_scalars_are_saved_as_plain_numbers(tmp_path):
    state = {"best": np.float64(0.5), "counts": [np.int64(3), (np.float32(1),)]}
    make_checkpointer(tmp_path, hook=State(state)).save("x", score=np.float32(2))
    loaded = State({})
    rest = make_checkpointer(tmp_path, hook=loaded).load(str(tmp_path / "x.pth"))
    assert loaded.state == {"best": 0.5, "counts": [3, (1.0,)]}
    assert rest == {"score": 2.0}


def test_what_would_not_load_again_is_not_saved(tmp_path):
    checkpointer = make_checkpointer(tmp_path, hook=State({"made by": State({})}))
    with pytest.raises(ValueError, match=r"x\.pth would not load again: .* found .*State"):
        checkpointer.save("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'a/b' is no file name"):
        checkpointer.save("a/b")


def test_safetensors_and_torch_archives_named_pkl(tmp_path):
    save_file({"weight": torch.full((2, 2), 3.0)}, tmp_path / "x.safetensors")
    torch.save({"model": {"weight": torch.full((2, 2), 4.0)}}, tmp_path / "x.pkl")
    checkpointer = make_checkpointer(tmp_path)
    assert checkpointer.load(f"{tmp_path}/x.safetensors") == {}
    assert weight(checkpointer) == 3
    checkpointer.load(f"{tmp_path}/x.pkl")
    assert weight(checkpointer) == 4


def test_names_of_torchvision_are_those_of_our_resnet(tmp_path):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    theirs = torchvision.models.resnet18().state_dict()
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    torch.save(theirs, tmp_path / "resnet18.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "resnet18.pth"))
    renamed = {f"backbone.{name}": value for name, value in convert_torchvision_names(theirs).items()}
    own = model.state_dict()
    assert own.keys() <= renamed.keys()
    assert all(torch.equal(own[name], renamed[name]) for name in own)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"x\.pth holds a list, expected a dict of weights"),
        ({"model": [1]}, '"model" of the checkpoint is a list, expected names to tensors'),
        (
            {"state_dict": {"weight": torch.ones(1)}},
            "Unsupported type found in checkpoint! state_dict: .*expected arrays",
        ),
        ({"model": {3: torch.ones(1)}}, "Unsupported type found in checkpoint! 3: "),
    ],
)
def test_files_without_weights_are_errors(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        make_checkpointer(tmp_path).load(str(tmp_path / "x.pth"))


def test_names_of_weights_in_a_pickle_are_text(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"weight": np.ones(1), "b_momentum": np.ones(1)}))
    with pytest.raises(ValueError, match=r"Unsupported type found in checkpoint! b'weight'"):
        make_checkpointer(tmp_path).load(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_cut_off_files_are_named(tmp_path, name):
    tensors = {"weight": torch.ones(9999)}
    if name.endswith(".pth"):
        torch.save(tensors, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for length in (0, 5, len(data) // 2):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises((ValueError, pickle.UnpicklingError), match=name):
            make_checkpointer(tmp_path).load(str(tmp_path / name))


def test_refused_objects_are_named(tmp_path):
    torch.save({"model": {}, "x": State({})}, tmp_path / "x.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"x\.pth holds .*State, .*torch\.serialization\.add_safe_globals"):
        make_checkpointer(tmp_path).load(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array(["a", "bc"]),
        np.array([b"a"]),
        np.zeros((0, 4), np.uint8),
        np.array(True),
        np.array([1 + 2j]),
        np.arange(10)[::3],
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_survive_safe_unpickling(tmp_path, array, protocol):
    content = {
        "a": array,
        "items": [1, 2.5, None, "x", b"\xff", {3}, (True, 1j)],
        "scalar": array.sum(dtype="f8") if array.dtype.kind in "biuf" else np.bool_(1),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = load_pickle(str(tmp_path / "x.pkl"))
    np.testing.assert_array_equal(loaded["a"], array)
    assert loaded["a"].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert loaded["items"] == content["items"]
    assert loaded["scalar"] == content["scalar"]


class Call:
    """Pickles as a call of ``function``, or as an object whose state is set."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Call(os.system, ("true",)), "refuses to load posix.system|refuses to load nt.system"),
        (print, "refuses to load builtins.print"),
        (Call(eval, ("1",)), "refuses to load builtins.eval"),
        (np.array([print], dtype=object), "refuses an array of 'O8'"),
        (np.zeros(2, "f4,i4"), "refuses an array of"),
        (Call(np.ndarray, ((1,), np.dtype("f4"), b"\x01" * 8)), "not callable"),
        (Call(torch._utils._rebuild_tensor, (1, 2), {"__defaults__": ()}), "cut off or no pickle|refuses"),
        (Call(slice, (1,), {"x": 1}), "refuses to set the state of a slice"),
    ],
)
def test_unsafe_pickles_are_refused(tmp_path, content, message):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"weight": content}))
    with pytest.raises(pickle.UnpicklingError, match=message) as caught:
        load_pickle(str(tmp_path / "x.pkl"))
    assert "x.pkl" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_failed_assertions_about_a_pickle_are_errors(tmp_path, monkeypatch):
    def refuse(*_, **__):
        assert not "storage key not found"

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"other": torch.ones(2)}, protocol=2))
    monkeypatch.setattr("torch.serialization._legacy_load", refuse)
    with pytest.raises(pickle.UnpicklingError, match="x.pkl is cut off or no pickle .AssertionError"):
        load_pickle(str(tmp_path / "x.pkl"))


def test_random_damage_to_a_pickle_is_an_error_or_harmless(tmp_path):
    data = pickle.dumps({"weight": np.arange(4.0), "other": torch.ones(2)}, protocol=2)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            damaged[position] = generator.integers(0, 256)
        (tmp_path / "x.pkl").write_bytes(damaged)
        try:
            load_pickle(str(tmp_path / "x.pkl"))
        except pickle.UnpicklingError as error:
            assert "x.pkl" in str(error)
