import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detection.backbones.folded import FoldedNetwork, fold_batch_norms
from detection.backbones.timm_backbone import TimmBackbone
from tests.golden.fill import fill


@pytest.fixture
def backbone():
    backbone = TimmBackbone(base_name="resnet18", out_levels=(4, 5), norm="FrozenBN")
    fill(backbone)
    return backbone.eval()


IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def with_norms(backbone: TimmBackbone, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(("layer4", "layer5"), backbone.base(images), strict=True))


def test_inference_gives_the_numbers_of_the_network(backbone):
    with torch.no_grad():
        found, expected = backbone(IMAGES), with_norms(backbone, IMAGES)
    assert backbone._inference._copy is not None
    for name, feature in expected.items():
        assert_close(found[name], feature, rtol=1e-4, atol=1e-4 * feature.abs().max().item())


def test_no_batch_norm_is_left(backbone):
    network = copy.deepcopy(backbone.base)
    assert fold_batch_norms(network) == 20
    assert not any("BatchNorm" in type(module).__name__ for module in network.modules())


def test_changed_weights_and_statistics_count_at_once(backbone):
    with torch.no_grad():
        backbone(IMAGES)
        backbone.base.conv1.weight.mul_(1.5)
        backbone.base.bn1.running_mean.add_(0.2)
        found, expected = backbone(IMAGES), with_norms(backbone, IMAGES)
    assert_close(found["layer4"], expected["layer4"], rtol=1e-4, atol=1e-3)


def test_the_copy_is_no_part_of_the_model(backbone):
    names = set(backbone.state_dict())
    with torch.no_grad():
        backbone(IMAGES)
    assert set(backbone.state_dict()) == names
    assert copy.deepcopy(backbone)._inference._copy is None


def test_training_and_gradients_use_the_network_itself(backbone):
    backbone(IMAGES)["layer5"].sum().backward()
    assert backbone.base.conv1.weight.grad.abs().sum() > 0
    assert backbone._inference._copy is None
    with torch.no_grad():
        backbone.train()(IMAGES)
    assert backbone._inference._copy is None


def test_hooks_are_called(backbone):
    calls = []
    backbone.base.layer1.register_forward_hook(lambda *arguments: calls.append(1))
    with torch.no_grad():
        backbone(IMAGES)
    assert calls == [1]


class OutOfOrder(nn.Module):
    """Its norm is listed after the convolution, but runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return [self.conv(self.norm(x))]


def test_a_network_of_another_order_runs_as_it_is(caplog):
    network = OutOfOrder().eval()
    network.norm.running_mean.fill_(1.0)
    with torch.no_grad():
        assert_close(FoldedNetwork()(network, IMAGES)[0], network(IMAGES)[0])
    assert "OutOfOrder stay" in caplog.text


def test_weights_made_in_inference_mode_work():
    with torch.inference_mode():
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        assert_close(FoldedNetwork()(network, IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
