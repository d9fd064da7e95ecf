"""Frozen, synchronised and channels-first normalisation."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm


def trained_norm(channels: int = 4, eps: float = 1e-3) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(channels, eps=eps)
    for entry in (norm.weight.data, norm.bias.data, norm.running_mean):
        entry.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    norm.num_batches_tracked.fill_(7)
    return norm


def some_input(channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, 5, 6, generator=torch.Generator().manual_seed(1))


def test_a_fresh_frozen_norm_changes_nothing():
    norm = FrozenBatchNorm2d(4)
    assert_close(norm(some_input()), some_input())
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(norm.parameters())


def test_frozen_norm_equals_evaluation_in_both_modes_and_both_paths():
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    expected = norm.eval()(some_input()).detach()
    for training in (True, False):
        frozen.train(training)
        assert_close(frozen(some_input()), expected)
        assert_close(frozen(some_input().requires_grad_()).detach(), expected)
    assert_close(frozen.running_mean, norm.running_mean)


def test_the_gradient_passes_through_a_frozen_norm():
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    first, second = some_input().requires_grad_(), some_input().requires_grad_()
    (frozen(first) ** 2).sum().backward()
    (norm.eval()(second) ** 2).sum().backward()
    assert_close(first.grad, second.grad)


def test_half_precision_input_gives_half_precision_output():
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(trained_norm())
    x = some_input().bfloat16().requires_grad_()
    assert frozen(x).dtype == torch.bfloat16


def test_conversion_reaches_everything_and_copies():
    norm = trained_norm()
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(norm, nn.ReLU()), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4))
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert converted is model
    frozen = model[1][0]
    assert isinstance(frozen, FrozenBatchNorm2d) and isinstance(model[2], FrozenBatchNorm2d)
    assert isinstance(model[3], nn.GroupNorm)
    assert frozen.eps == norm.eps and frozen.num_batches_tracked == 7
    assert "1.0.num_batches_tracked" in model.state_dict()


def test_norms_without_affine_parameters_freeze_too():
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.fill_(2)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert_close(frozen(some_input()), norm.eval()(some_input()))


@pytest.mark.parametrize("tracked", [True, False])
def test_a_counter_too_many_or_too_few_is_no_error(tracked):
    state = {name: value for name, value in trained_norm().state_dict().items() if tracked or "tracked" not in name}
    for norm in (FrozenBatchNorm2d(4), FrozenBatchNorm2d.convert_frozen_batchnorm(trained_norm())):
        result = norm.load_state_dict(state, strict=False)
        assert not [key for key in result.missing_keys if "tracked" not in key]
        assert_close(norm.running_mean, state["running_mean"])


def test_old_checkpoints_without_statistics_get_zeros_and_ones():
    norm = FrozenBatchNorm2d.convert_frozen_batchnorm(trained_norm())
    norm.load_state_dict({"weight": torch.full((4,), 2.0), "bias": torch.zeros(4)}, strict=False)
    assert norm.running_mean.tolist() == [0] * 4 and norm.running_var.tolist() == [1] * 4
    assert norm.weight.tolist() == [2] * 4


def test_layer_norm_works_over_channels():
    norm = get_norm("LN", 4)
    x = some_input()
    expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (4,), eps=1e-6).permute(0, 3, 1, 2)
    assert_close(norm(x).detach(), expected)
    assert {name: tuple(value.shape) for name, value in norm.state_dict().items()} == {"weight": (4,), "bias": (4,)}


def test_norms_by_name():
    assert get_norm("", 32) is None and get_norm(None, 32) is None
    assert type(get_norm("BN", 32)) is nn.BatchNorm2d
    assert isinstance(get_norm("SyncBN", 32), nn.SyncBatchNorm)
    assert isinstance(get_norm("nnSyncBN", 32), nn.SyncBatchNorm)
    assert isinstance(get_norm("FrozenBN", 32), FrozenBatchNorm2d)
    assert get_norm("GN", 64).num_groups == 32
    assert isinstance(get_norm("naiveSyncBN", 32), NaiveSyncBatchNorm)
    assert isinstance(get_norm("naiveSyncBN_N", 32), NaiveSyncBatchNorm)
    assert isinstance(get_norm(nn.InstanceNorm2d, 8), nn.InstanceNorm2d)
    with pytest.raises((KeyError, ValueError)):
        get_norm("BatchNorm", 32)


def test_a_single_process_synchronises_with_nobody():
    plain, naive = nn.BatchNorm2d(4), NaiveSyncBatchNorm(4)
    assert_close(naive(some_input()), plain(some_input()))
    assert_close(naive.running_mean, plain.running_mean)


def test_freezing_a_block_stops_its_training():
    class Block(CNNBlockBase):
        def __init__(self) -> None:
            super().__init__(4, 8, 2)
            self.conv = nn.Conv2d(4, 8, 3, stride=2)
            self.norm = nn.BatchNorm2d(8)

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (4, 8, 2)
    assert block.freeze() is block
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert isinstance(block.norm, FrozenBatchNorm2d)
