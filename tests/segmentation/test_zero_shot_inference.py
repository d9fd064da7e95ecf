"""The ensemble of queries and CLIP against the formula, pixel by pixel."""

import pytest
import torch
from torch.testing import assert_close

from segmentation.zero_shot_inference import semantic_map

Q, K = 4, 3
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(Q, K + 1, generator=GENERATOR)
CLIP_LOGITS = torch.randn(2, K + 1, generator=GENERATOR)
MASKS = torch.rand(Q, 2, 3, generator=GENERATOR)
VALID = torch.tensor([True, False, True, False])
SEEN = torch.tensor([1.0, 0.0, 1.0])


@pytest.mark.parametrize("weight", [0.8, 0.3, 1.0])
def test_seen_classes_trust_queries_and_unseen_ones_trust_clip(weight: float) -> None:
    found = semantic_map(LOGITS, MASKS, CLIP_LOGITS, VALID, SEEN, weight)
    expected = torch.zeros(K, 2, 3)
    for query in range(Q):
        p = LOGITS[query].softmax(0)[:K]
        a = CLIP_LOGITS[[0, None, 1, None][query], :K].softmax(0) if VALID[query] else torch.ones(K)
        for label in range(K):
            w = weight if SEEN[label] else 1 - weight
            expected[label] += p[label] ** w * a[label] ** (1 - w) * MASKS[query]
    assert_close(found, expected)


def test_without_flags_every_class_is_unseen() -> None:
    found = semantic_map(LOGITS, MASKS, CLIP_LOGITS, VALID, torch.zeros(K), 0.8)
    assert_close(found, semantic_map(LOGITS, MASKS, CLIP_LOGITS, VALID, torch.ones(K), 0.2))


def test_queries_alone() -> None:
    found = semantic_map(LOGITS, MASKS, None, None, SEEN, 0.8)
    assert_close(found, torch.einsum("qc,qhw->chw", LOGITS.softmax(1)[:, :K], MASKS))


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_clip_alone_keeps_valid_masks_only(weight: float) -> None:
    found = semantic_map(LOGITS, MASKS, CLIP_LOGITS, VALID, SEEN, weight)
    assert_close(found, torch.einsum("qc,qhw->chw", CLIP_LOGITS[:, :K].softmax(1), MASKS[VALID]))
    nothing = semantic_map(LOGITS, MASKS, None, torch.zeros(Q, dtype=torch.bool), SEEN, weight)
    assert_close(nothing, torch.zeros(K, 2, 3))


def test_masks_that_clip_has_not_seen_count_as_one() -> None:
    found = semantic_map(LOGITS, MASKS, None, torch.zeros(Q, dtype=torch.bool), SEEN, 0.8)
    p = LOGITS.softmax(1)[:, :K]
    assert_close(found, torch.einsum("qc,qhw->chw", torch.where(SEEN > 0, p**0.8, p**0.2), MASKS))
