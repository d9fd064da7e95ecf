"""Batch normalisation over two processes equals that over the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from detectron2.layers import get_norm

SPLITS = {"naiveSyncBN": (2, 2), "naiveSyncBN_N": (3, 1), "naiveSyncBN_N, one without images": (4, 0)}


def images() -> Tensor:
    return torch.randn(4, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


def normalise(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and new mean after one step in training mode."""
    x = x.clone().requires_grad_()
    result = norm.train()(x)
    (result**2 * (x.detach() + 1)).sum().backward()
    return {
        "output": result.detach(),
        "input gradient": x.grad,
        "weight gradient": norm.weight.grad,
        "bias gradient": norm.bias.grad,
        "running mean": norm.running_mean,
    }


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    results = {}
    for name, split in SPLITS.items():
        part = images().split(split)[rank]
        results[name] = normalise(get_norm(name.split(",")[0], 3), part)
    torch.save(results, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_normalise_like_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    whole = normalise(nn.BatchNorm2d(3), images())
    for name in SPLITS:
        first, second = (rank[name] for rank in ranks)
        for part in ("output", "input gradient"):
            assert_close(torch.cat((first[part], second[part])), whole[part], rtol=1e-4, atol=1e-4)
        for part in ("weight gradient", "bias gradient"):
            assert_close(first[part] + second[part], whole[part], rtol=1e-4, atol=1e-4)
        for rank in (first, second):
            assert_close(rank["running mean"], whole["running mean"], rtol=1e-4, atol=1e-5)
