"""Published weights of backbones, under their own names in a pickle, find their places in a detector."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from detection.backbones.swin import swin_backbone
from detection.checkpoint import DeticCheckpointer
from detectron2.modeling.backbone import FPN
from tests.detection.backbones.test_swin import TINY
from tests.detection.small_rcnn import small_model


def write(path: Path, weights: Mapping[str, Tensor]) -> str:
    """As the published files are: arrays under the names of the classification model."""
    arrays = {name: value.numpy() for name, value in weights.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}))
    return str(path)


def test_a_resnet_of_timm_fills_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    resnet = timm.create_model("resnet18", pretrained=False)
    with torch.no_grad():
        for buffer in resnet.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    model = small_model(tmp_path)
    others = {name: value.clone() for name, value in model.state_dict().items() if ".base." not in name}
    DeticCheckpointer(model).load(write(tmp_path / "resnet.pkl", resnet.state_dict()))
    state = resnet.state_dict()
    for name, value in model.backbone.bottom_up.base.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in others.items())


def test_a_swin_classifier_fills_all_but_the_norms_of_the_outputs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = swin_backbone(TINY, (3,))
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("norm")}
    foreign = {
        "norm.weight": torch.full((64,), 7.0),
        "head.weight": torch.ones(10, 64),
        "layers.0.blocks.0.attn_mask": torch.ones(1),
    }
    model = nn.Module()
    model.backbone = FPN(swin_backbone(TINY, (1, 2, 3)), ["swin1", "swin2", "swin3"], 8)
    DeticCheckpointer(model).load(write(tmp_path / "swin.pkl", state | foreign))
    found = model.backbone.bottom_up.state_dict()
    for name, value in state.items():
        assert torch.equal(found[name], value), name
    assert all((found[f"norm{stage}.weight"] == 1).all() for stage in (1, 2, 3))
