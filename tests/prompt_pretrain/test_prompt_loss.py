from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain import distributed
from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.clip import Clip, clip_from_config
from prompt_pretrain.prompt import SoftPrompt
from prompt_pretrain.prompt_loss import PromptLoss, StepRows
from prompt_pretrain.prompt_tokens import tokenize_prompts
from prompt_pretrain.text_encoder import TextEncoder
from tests.prompt_pretrain import processes, tiny_run

NAMES = tiny_run.CLASS_NAMES
LABELS = np.array([3, 0, 5, 5, 7, 1, 2, 0, 4, 6, 3, 3])


@pytest.fixture(scope="module")
def clip() -> Clip:
    return clip_from_config(tiny_run.CLIP_CONFIG)


def make_loss(clip, num_sampled=None, *, mode="uniform", negatives="shared", margin="log10", **options) -> PromptLoss:
    prompts = tokenize_prompts(NAMES, clip.tokenizer, 4)
    sampler = None
    if num_sampled is not None:
        sampler = ClassSampler(
            len(NAMES),
            num_sampled,
            mode,
            scope="per_image" if negatives == "per_image" else "shared",
            seed=3,
            frequencies=torch.arange(1.0, 9.0),
            class_features=torch.randn(8, 16, generator=torch.Generator().manual_seed(1)),
            logit_scale=10.0,
        )
    return PromptLoss(
        TextEncoder(clip), prompts, sampler, logit_scale=10.0, margin=margin, negatives=negatives, **options
    )


def step_inputs(views: int = 1, images: int = 4):
    """Features of every row in global order, and the rows of one process."""
    rows = StepRows.deal(LABELS, [np.arange(images)], views)
    return torch.randn(views * images, 16, generator=torch.Generator().manual_seed(0)), rows


def start() -> torch.Tensor:
    return SoftPrompt.random(4, 16, seed=1).ctx.detach().requires_grad_()


def test_rows_are_view_major_and_every_second_image_goes_to_the_second_process(monkeypatch):
    batches = [np.array([0, 2]), np.array([1, 4])]
    assert StepRows.deal(LABELS, batches, 2).labels.tolist() == [3, 0, 5, 7] * 2
    assert StepRows.deal(LABELS, batches, 2).own.tolist() == [0, 2, 4, 6]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert StepRows.deal(LABELS, batches, 2).own.tolist() == [1, 3, 5, 7]


def test_sampled_loss_matches_the_definition_written_out(clip):
    features, rows = step_inputs(views=2)
    loss, ctx = make_loss(clip, 5), start()
    outcome = loss(ctx, features, rows, step=6)
    weights = F.normalize(TextEncoder(clip)(loss.prompts, ctx), dim=1)
    negatives = loss.sampler.draw(6).ids.tolist()
    losses, correct = [], 0
    for row, label in enumerate([3, 0, 5, 5] * 2):
        x = F.normalize(features[row], dim=0)
        others = [j for j in negatives if j != label]
        margin = np.log10((len(NAMES) - 1) / len(others))
        logits = torch.stack([10 * x @ weights[label], *(10 * x @ weights[j] + margin for j in others)])
        losses.append(-F.log_softmax(logits, dim=0)[0])
        correct += int(logits.argmax() == 0)
    expected = torch.stack(losses).mean()
    assert_close(outcome.loss, expected)
    assert_close(outcome.loss_sum, expected * 8)
    assert int(outcome.num_correct) == correct and int(outcome.num_rows) == 8
    (grad,) = torch.autograd.grad(outcome.loss, ctx)
    (expected_grad,) = torch.autograd.grad(expected, ctx)
    assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_all_classes_give_plain_cross_entropy(clip):
    features, rows = step_inputs()
    loss, ctx = make_loss(clip), start()
    weights = F.normalize(TextEncoder(clip)(loss.prompts, ctx), dim=1)
    expected = F.cross_entropy(10 * F.normalize(features, dim=1) @ weights.T, rows.labels)
    assert_close(loss(ctx, features, rows, step=0).loss, expected)


def test_class_specific_contexts_touch_only_the_classes_of_the_step(clip):
    features, rows = step_inputs(images=2)  # labels 3 and 0
    loss = make_loss(clip, 3)
    ctx = SoftPrompt.random(4, 16, num_classes=8, seed=1).ctx.detach().requires_grad_()
    loss(ctx, features, rows, step=2).loss.backward()
    touched = set(torch.nonzero(ctx.grad.abs().sum((1, 2))).flatten().tolist())
    assert touched == {3, 0, *loss.sampler.draw(2).ids.tolist()}


@pytest.mark.parametrize("num_sampled", [None, 5])
def test_rows_left_out_count_for_nothing(clip, num_sampled):
    features, rows = step_inputs()
    ok = torch.tensor([True, False, True, True])
    loss, ctx = make_loss(clip, num_sampled), start()
    outcome = loss(ctx, features, rows, step=0, ok=ok)
    kept = StepRows(rows.labels[ok], torch.arange(3))
    expected = loss(ctx, features[ok], kept, step=0)
    assert_close(outcome.loss, expected.loss)
    assert int(outcome.num_rows) == 3 and int(outcome.num_correct) == int(expected.num_correct)


def test_each_image_has_its_own_list_without_its_own_class(clip):
    features, rows = step_inputs()
    loss, ctx = make_loss(clip, 4, negatives="per_image"), start()
    weights = F.normalize(TextEncoder(clip)(loss.prompts, ctx), dim=1)
    lists = loss.sampler.draw(1, labels=rows.labels).ids
    images = F.normalize(features, dim=1)
    logits = torch.stack([
        torch.cat([10 * (x @ weights[y])[None], 10 * weights[ids] @ x + np.log10(7 / 3)])
        for x, y, ids in zip(images, rows.labels, lists, strict=True)
    ])  # fmt: skip
    assert not (lists == rows.labels[:, None]).any()
    assert_close(loss(ctx, features, rows, step=1).loss, F.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))


# -- several processes -------------------------------------------------------------------------------------------

CASES = {
    "all": {},
    "shared": {"num_sampled": 5},
    "per_image": {"num_sampled": 5, "negatives": "per_image"},
    "frequency": {"num_sampled": 5, "mode": "frequency"},
    "similarity": {"num_sampled": 5, "mode": "similarity"},
    "similarity_per_image": {"num_sampled": 5, "mode": "similarity", "negatives": "per_image"},
    "budget": {"num_sampled": 5, "memory_budget": 10_000_000},
}


def run_case(clip: Clip, case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and averaged gradient of one step, over all processes."""
    world, views = distributed.world_size(), 2
    rows = StepRows.deal(LABELS, [np.arange(8)[r::world] for r in range(world)], views)
    features = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    ctx = start()
    ok = torch.ones(16, dtype=torch.bool)
    ok[[3, 4, 9]] = False  # the processes keep different numbers of rows
    outcome = make_loss(clip, **case)(ctx, features[rows.own], rows, step=4, ok=ok[rows.own])
    outcome.loss.backward()
    return distributed.average_(outcome.loss.detach().clone()), distributed.average_(ctx.grad)


def work(rank: int, folder: Path) -> None:
    clip = clip_from_config(tiny_run.CLIP_CONFIG)
    found = {name: run_case(clip, case) for name, case in CASES.items()}
    # Negatives of their own: the mean over processes of what each computes from its own list.
    own = make_loss(clip, 5, negatives="per_rank")
    rows = StepRows.deal(LABELS, [np.arange(4), np.arange(4, 8)], 1)
    features = torch.ones(4, 16)
    found["per_rank"] = own(start(), features, rows, step=0).loss.detach()
    alone = StepRows(rows.labels[rows.own], torch.arange(4))
    own.sampler.draw = lambda step, **options: ClassSampler.draw(own.sampler, step, **(options | {"rank": rank}))
    found["per_rank_expected"] = own(start(), features, alone, step=0).loss.detach()
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    processes.run_ranks(work, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_give_the_loss_and_gradient_of_one(clip, two_processes, name):
    loss, grad = run_case(clip, CASES[name])
    for found in two_processes:
        assert_close(found[name][0], loss, rtol=0, atol=1e-5)
        assert_close(found[name][1], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lists_per_process_differ(two_processes):
    first, second = two_processes
    assert_close(first["per_rank"], first["per_rank_expected"])
    assert not torch.equal(second["per_rank"], first["per_rank"])
