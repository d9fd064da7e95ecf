"""Two gloo processes: rows gathered in order, and gradients of sharded class features equal to one process's."""

import os
import socket
from pathlib import Path

import open_clip
import pytest
import torch
import torch.multiprocessing as mp
from torch.testing import assert_close

from prompt_pretrain import distributed
from prompt_pretrain.clip import clip_from_config
from prompt_pretrain.local_contrast import full_contrast_loss
from prompt_pretrain.prompt_tokens import tokenize_prompts
from prompt_pretrain.text_encoder import TextEncoder
from tests.golden.fill import fill

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    "quick_gelu": True,
}
CASES = {"shared_prefix": 7, "plain": 7, "auto": 1}  # method: number of classes; one class leaves a process without
NAMES = ["sea lion", "sea urchin", "lion", "dog", "dog", "cat", "red panda"]  # an odd number, one name twice


def loss_and_grad(method: str, images: slice, shard: bool, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss over some of six images against all classes, and the gradient to the contexts."""
    clip = clip_from_config(CONFIG)
    fill(clip.model, skip=("logit_scale",))
    generator = torch.Generator().manual_seed(0)
    ctx = torch.randn(3, 16, generator=generator).mul_(0.2).requires_grad_()
    features, labels = torch.randn(6, 12, generator=generator), torch.tensor([0, 3, 6, 2, 4, 5]) % count
    prompts = tokenize_prompts(NAMES[:count], open_clip.get_tokenizer("ViT-B-16"), 3)
    classes = TextEncoder(clip, method)(prompts, ctx, shard=shard)
    # The features themselves too: a softmax over one class has no gradient.
    loss = full_contrast_loss(features[images], classes, labels[images], 10.0) + classes.square().mean()
    loss.backward()
    assert ctx.grad is not None
    return loss.detach(), ctx.grad


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.initialize()
    assert (distributed.rank(), distributed.world_size()) == (rank, 2)
    assert distributed.gather_objects(rank * 10) == [0, 10]
    assert distributed.broadcast_object("main" if rank == 0 else None) == "main"
    start, stop = distributed.shard_bounds(5)
    rows = distributed.gather_rows(torch.arange(start, stop).float().unsqueeze(1), 5)
    assert rows.flatten().tolist() == [0, 1, 2, 3, 4]
    results = {}
    for method, count in CASES.items():
        loss, grad = loss_and_grad(method, slice(3 * rank, 3 * rank + 3), True, count)
        results[method] = (distributed.average_(loss), distributed.average_(grad))
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.shutdown()


def test_class_shards_over_two_processes_are_exact(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method, count in CASES.items():
        loss, grad = loss_and_grad(method, slice(0, 6), False, count)
        for rank in ranks:
            assert_close(rank[method][0], loss, atol=1e-5, rtol=1e-5)
            assert_close(rank[method][1], grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "parts"), [(10, 3), (2, 4), (0, 2)])
def test_shards_cover_everything_once_and_evenly(length: int, parts: int) -> None:
    bounds = [distributed.shard_bounds(length, index, parts) for index in range(parts)]
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(length))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_one_process_needs_no_group() -> None:
    assert distributed.world_size() == 1 and distributed.is_main_process()
    rows = torch.ones(2, 3)
    assert distributed.gather_rows(rows, 2) is rows
    assert_close(distributed.average_(rows.clone()), rows)
    distributed.barrier()
