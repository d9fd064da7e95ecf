"""Inference with batch norms folded into the convolutions: the same numbers up to rounding, in fewer passes."""

import copy
import itertools
import logging

import torch
from torch import Tensor, nn

from detectron2.layers import FrozenBatchNorm2d

__all__ = ["FoldedNetwork", "fold_batch_norms"]

logger = logging.getLogger(__name__)

_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)  # these very types: subclasses may do more, such as activate
_PROBE_SIDE = 64  # pixels of the image that the folded copy is tried on
_TOLERANCE = 1e-3  # of the largest value; rounding differs by some 1e-6


class FoldedNetwork:
    """Runs a network in evaluation mode through a copy without batch norms, which is made anew when weights change.

    It is no module, so that the copy is in no state dict. On the CPU the copy works channels-last, the layout in which
    its convolutions are fastest. The network itself runs where the copy would not do the same: in training, with
    gradients, with hooks, while a graph is made of it, and where it is not a sequence of convolutions each followed by
    its norm.
    """

    def __init__(self) -> None:
        self._copy: nn.Module | None = None
        self._key: tuple[tuple[int, int], ...] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> "FoldedNetwork":
        return FoldedNetwork()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FoldedNetwork, ()

    def __call__(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """What ``network(images)`` returns, a list of feature maps."""
        if network.training or torch.is_grad_enabled():
            return network(images)
        if torch.compiler.is_compiling():
            return network(images)
        if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
            return network(images)
        key = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in _tensors(network))
        if key != self._key:
            with torch.autocast(images.device.type, enabled=False):
                self._copy, self._key = _folded_copy(network), key
        if self._copy is None:
            return network(images)
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        return self._copy(images)


def fold_batch_norms(network: nn.Module) -> int:
    """Fold in place each norm that follows a convolution among the children of a module; returns how many."""
    count = 0
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if type(conv) is nn.Conv2d and type(norm) in _NORMS and _channels(norm) == conv.out_channels:
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())
                count += 1
    return count


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _channels(norm: nn.Module) -> int:
    return len(norm.running_var)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = conv.weight
    conv.weight = nn.Parameter((weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


@torch.no_grad()
def _folded_copy(network: nn.Module) -> nn.Module | None:
    """None where nothing can be folded, or where the children do not run in the order in which they are listed."""
    folded = copy.deepcopy(network)
    if not fold_batch_norms(folded):
        return None
    first = next(network.parameters())
    if first.device.type == "cpu":
        folded = folded.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=generator).to(first)
    for ours, theirs in zip(folded(probe), network(probe), strict=True):
        if not torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * theirs.abs().max().item() + 1e-12):
            logger.warning("batch norms of %s stay: its layers do not run in their order", type(network).__name__)
            return None
    return folded
