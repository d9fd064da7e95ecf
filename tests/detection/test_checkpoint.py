"""Checkpoints: other vocabularies, entries that may differ, safetensors, damaged and dangerous files."""

import argparse
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detection.checkpoint import DeticCheckpointer, has_own_classes, read_checkpoint, weights_of
from prompt_pretrain.errors import InputError
from prompt_pretrain.strict_loading import CLASS_NAMES, names_in
from tests.detection.released_models import released_config
from third_party import detectron2_source


class Small(nn.Module):
    """Entries as a detector has them, for some number of classes."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Linear(2, 4)
        self.cls_score = nn.Linear(2, 2)
        self.cls_score.register_buffer("zs_weight", torch.ones(2, num_classes + 1))
        self.register_buffer("freq_weight", torch.ones(num_classes))


def save(path: Path, model: nn.Module, **changes: torch.Tensor | None) -> str:
    state = {**model.state_dict(), **changes}
    torch.save({"model": {name: value for name, value in state.items() if value is not None}, "iteration": 7}, path)
    return str(path)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_embeddings_of_other_classes_stay_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, model = Small(5), Small(3)
    stored.cls_score.zs_weight.fill_(9)
    rest = DeticCheckpointer(model).load_all(save(tmp_path / "five.pth", stored))
    assert rest["iteration"] == 7
    assert torch.equal(model.cls_score.weight, stored.cls_score.weight)
    assert torch.equal(model.cls_score.zs_weight, torch.ones(2, 4))
    assert sorted(warnings(caplog)) == [
        "cls_score.zs_weight: 5 classes in the checkpoint, 3 in the model, whose own stay",
        "freq_weight: 5 classes in the checkpoint, 3 in the model, whose own stay",
    ]


def test_the_config_s_classes_can_win_over_as_many_of_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored, model = Small(), Small()
    stored.cls_score.zs_weight.fill_(9)
    stored.freq_weight.fill_(9)
    path = save(tmp_path / "a.pth", stored)
    DeticCheckpointer(model, keep_class_embeddings=True).load_all(path)
    assert torch.equal(model.cls_score.weight, stored.cls_score.weight)
    assert (model.cls_score.zs_weight == 1).all() and (model.freq_weight == 1).all()
    DeticCheckpointer(model).load_all(path)  # as published
    assert (model.cls_score.zs_weight == 9).all() and (model.freq_weight == 9).all()
    assert warnings(caplog) == []


def test_the_config_names_its_classes_by_any_of_its_keys() -> None:
    cfg = released_config("BoxSup-C2_L_CLIP_R5021k_640b64_4x_pomp")
    assert not has_own_classes(cfg)
    cfg.MODEL.CLASS_EMBEDDINGS.VOCABULARY = "red car,cone"
    assert has_own_classes(cfg)


def test_harmless_differences_pass_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    surplus = {
        "backbone.bottom_up.base.fc.weight": torch.zeros(1),
        "bn1.num_batches_tracked": torch.zeros(()),
        "text_encoder.ln_final.weight": torch.zeros(1),
        "pixel_mean": torch.zeros(1),
        "freq_weight": None,
        "cls_score.zs_weight": None,
    }
    DeticCheckpointer(Small()).load_all(save(tmp_path / "a.pth", Small(), **surplus))
    assert warnings(caplog) == []


def test_incomplete_weights_are_a_warning_in_training_and_an_error_in_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "a.pth", Small(), **{"cls_score.bias": None, "cls_score.weight": torch.zeros(3, 2)})
    DeticCheckpointer(Small()).load(path)
    assert "cls_score.bias" in " ".join(warnings(caplog))
    with pytest.raises(
        InputError,
        match=r"cls_score\.weight has shape \(3, 2\), the model \(2, 2\); cls_score\.bias is missing; give the check",
    ):
        DeticCheckpointer(Small()).load_all(path)


def test_the_checkpoint_of_another_model_is_an_error_in_training_too(tmp_path: Path) -> None:
    torch.save({"model": {"sem_seg_head.a": torch.zeros(1), "criterion.b": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(
        InputError,
        match=r"a\.pth is the checkpoint of another model: it has 0 of the 4 entries .* holds sem_seg_head\.a, "
        r"criterion\.b, the model backbone\.conv1\.weight, cls_score\.weight, …; give",
    ):
        DeticCheckpointer(Small()).load(str(tmp_path / "a.pth"))


def test_names_of_classes_travel_with_the_weights(tmp_path: Path) -> None:
    checkpointer = DeticCheckpointer(Small(), str(tmp_path))
    checkpointer.notes = {CLASS_NAMES: ["a", "b", "c"]}
    checkpointer.save("a", iteration=3)
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["model"].keys() == Small().state_dict().keys() and content["iteration"] == 3
    again = DeticCheckpointer(Small())
    assert names_in(again.load_all(str(tmp_path / "a.pth")), CLASS_NAMES) == ("a", "b", "c")
    assert again.stored_classifier is not None and again.stored_classifier.shape == (2, 4)
    assert names_in({CLASS_NAMES: "red"}, CLASS_NAMES) == names_in({}, CLASS_NAMES) == ()
    save_file(Small().state_dict(), tmp_path / "b.safetensors", {CLASS_NAMES: "nonsense"})
    with pytest.raises(InputError, match="b.safetensors: class_names of its metadata is no json list"):
        read_checkpoint(str(tmp_path / "b.safetensors"))


def test_safetensors_load_and_a_backbone_finds_its_place(tmp_path: Path) -> None:
    stored, model = Small(), Small()
    save_file(stored.state_dict(), tmp_path / "whole.safetensors")
    DeticCheckpointer(model).load_all(str(tmp_path / "whole.safetensors"))
    assert torch.equal(model.cls_score.weight, stored.cls_score.weight)
    metadata = {"matching_heuristics": "true", "author": "third_party"}
    save_file({"conv1.weight": torch.full((4, 2), 5.0)}, tmp_path / "backbone.safetensors", metadata)
    DeticCheckpointer(model).load(str(tmp_path / "backbone.safetensors"))
    assert (model.backbone.conv1.weight == 5).all()


def test_objects_beside_the_weights_are_neither_run_nor_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, model = Small(), Small()
    torch.save({"model": stored.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    rest = DeticCheckpointer(model).load_all(str(tmp_path / "a.pth"))
    assert torch.equal(model.cls_score.weight, stored.cls_score.weight) and "args" not in rest
    assert "holds more than data" in warnings(caplog)[0]


class Dangerous:
    def __reduce__(self) -> tuple:
        import os

        return os.system, ("echo",)


def test_dangerous_and_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "args": Dangerous()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="which weights never need"):
        read_checkpoint(str(tmp_path / "a.pth"))
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.safetensors is cut off or no safetensors file"):
        read_checkpoint(str(tmp_path / "b.safetensors"))
    (tmp_path / "c.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"c\.pth"):
        read_checkpoint(str(tmp_path / "c.pth"))
    with pytest.raises(InputError, match=r"no checkpoint .*d\.pth; check the path"):
        read_checkpoint(str(tmp_path / "d.pth"))


@pytest.mark.skipif(detectron2_source() != "bundled", reason="the real detectron2 reads .pkl with pickle")
def test_a_dangerous_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {}, "__author__": Dangerous()}))
    with pytest.raises(InputError, match=r"a\.pkl: refuses to load .*system"):
        read_checkpoint(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": {"state_dict": w}}])
def test_weights_are_found_in_any_wrapping(wrap) -> None:
    weights = {"a": torch.zeros(1)}
    assert weights_of(wrap(weights)) is weights


def test_no_weights_are_an_error() -> None:
    with pytest.raises(ValueError, match="it holds no weights"):
        weights_of({"epoch": 3})
