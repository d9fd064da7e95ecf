import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from prompt_pretrain.errors import InputError
from prompt_pretrain.local_contrast import (
    full_contrast_loss,
    local_contrast_logits,
    local_contrast_loss,
    local_correction,
)


def problem(num_classes: int = 12, batch: int = 5, dim: int = 8) -> tuple:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, dim, generator=generator)
    classes = torch.randn(num_classes, dim, generator=generator)
    labels = torch.randint(num_classes, (batch,), generator=generator)
    return images, classes, labels


def logits_of(images, classes, labels, negatives, **options):
    negative_features = classes[negatives]
    return local_contrast_logits(
        images, classes[labels], negative_features, labels, negatives, 4.0, num_classes=len(classes), **options
    )


def test_margin_vanishes_when_nothing_is_left_out() -> None:
    assert_close(local_correction(torch.zeros(2, 49, dtype=torch.bool), num_classes=50), torch.zeros(2, 1))


@pytest.mark.parametrize(("sampled", "log10", "ln"), [(100, 2.023, 4.659), (319, 1.517, 3.492), (1000, 1.020, 2.348)])
def test_margins_of_the_paper(sampled: int, log10: float, ln: float) -> None:
    nobody = torch.zeros(1, sampled - 1, dtype=torch.bool)
    assert local_correction(nobody, 10450).item() == pytest.approx(log10, abs=6e-4)
    assert local_correction(nobody, 10450, "ln").item() == pytest.approx(ln, abs=6e-4)


def test_margin_counts_only_negatives_that_are_not_the_own_class() -> None:
    collides = torch.tensor([[True, False, False, False], [False, False, False, False]])
    expected = torch.tensor([[math.log10(9 / 3)], [math.log10(9 / 4)]])
    assert_close(local_correction(collides, num_classes=10), expected)


def test_other_margins() -> None:
    nobody = torch.zeros(2, 4, dtype=torch.bool)
    assert_close(local_correction(nobody, 10, "none"), torch.zeros(2, 1))
    assert_close(local_correction(nobody, 10, 1.5), torch.full((2, 1), 1.5))
    assert_close(local_correction(nobody, 10, "0.5"), torch.full((2, 1), 0.5))


def test_a_uniform_proposal_gives_the_uniform_margin() -> None:
    images, classes, labels = problem()
    negatives = torch.tensor([3, 7, int(labels[0]), 1])
    log_q = torch.full((12,), -math.log(12))
    assert_close(
        logits_of(images, classes, labels, negatives, log_q=log_q),
        logits_of(images, classes, labels, negatives),
        atol=1e-5,
        rtol=0,
    )


def test_natural_logarithm_estimates_the_full_denominator_without_bias() -> None:
    """Mean over many draws of sum(exp(negative logits)) equals the sum over all other classes."""
    images, classes, labels = problem(batch=2)
    generator = torch.Generator().manual_seed(1)
    q = torch.rand(12, generator=generator) + 0.2
    log_q = (q / q.sum()).log()
    scores = F.normalize(images, dim=1) @ F.normalize(classes, dim=1).T * 4.0
    exact = scores.exp().sum(1) - scores.gather(1, labels.unsqueeze(1)).exp().squeeze(1)
    for proposal in (None, log_q):
        total = torch.zeros(2, dtype=torch.float64)
        for _ in range(3000):
            if proposal is None:
                negatives = torch.randperm(12, generator=generator)[:6]
            else:
                negatives = torch.multinomial(log_q.exp(), 6, replacement=True, generator=generator)
            total += logits_of(images, classes, labels, negatives, margin="ln", log_q=proposal)[:, 1:].exp().sum(1)
        assert_close((total / 3000).float(), exact, rtol=0.06, atol=0)


def test_accidental_hits_do_not_count() -> None:
    images, classes, labels = problem(batch=1)
    own = int(labels[0])
    others = torch.tensor([index for index in range(12) if index != own][:4])
    with_hit = torch.cat([others, torch.tensor([own])])
    plain = logits_of(images, classes, labels, others, margin="none")
    masked = logits_of(images, classes, labels, with_hit, margin="none")
    assert_close(masked[:, :-1], plain)
    assert masked[0, -1] < -9e5
    assert_close(local_contrast_loss(masked), local_contrast_loss(plain))


@pytest.mark.parametrize("margin", ["none", "log10", "ln"])
def test_every_class_sampled_equals_plain_cross_entropy(margin: str) -> None:
    images, classes, labels = problem()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    sampled = local_contrast_loss(logits_of(images, classes, labels, order, margin=margin))
    assert_close(sampled, full_contrast_loss(images, classes, labels, 4.0))


def test_lists_per_image_equal_one_image_at_a_time() -> None:
    images, classes, labels = problem()
    generator = torch.Generator().manual_seed(2)
    negatives = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in labels])
    together = logits_of(images, classes, labels, negatives)
    alone = [logits_of(images[i : i + 1], classes, labels[i : i + 1], negatives[i]) for i in range(len(labels))]
    assert_close(together, torch.cat(alone))


def test_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    images, classes, labels = problem(batch=6)
    negatives = torch.tensor([0, 5, 9, 2])
    whole = local_contrast_loss(logits_of(images, classes, labels, negatives))
    parts = [
        local_contrast_loss(logits_of(images[rows], classes, labels[rows], negatives))
        for rows in (slice(0, 3), slice(3, 6))
    ]
    assert_close(whole, (parts[0] + parts[1]) / 2)


def test_bad_margins_and_counts_are_errors() -> None:
    with pytest.raises(InputError, match="margin is 'log2'; expected log10, ln, none or a number"):
        local_correction(torch.zeros(1, 3, dtype=torch.bool), 10, "log2")
    with pytest.raises(InputError, match=r"needs 2 to 9 sampled negatives, got 1; set TRAINER.POMP.UPDATE_CLASS_NUM"):
        local_correction(torch.zeros(1, 1, dtype=torch.bool), 10)
