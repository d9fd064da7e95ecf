"""The ensemble of query classifier and CLIP (ZSSeg, section 3.3)."""

import torch
from torch import Tensor

__all__ = ["blend", "ensemble_scores", "semantic_map"]


def semantic_map(
    query_logits: Tensor,
    masks: Tensor,
    clip_logits: Tensor | None,
    valid: Tensor | None,
    seen: Tensor,
    weight: float,
) -> Tensor:
    """(K, H, W) scores: those of the masks' classes, weighed by the masks.

    Args:
        query_logits: (Q, K + 1); the last class is "no object".
        masks: (Q, H, W) probabilities.
        clip_logits: (n, K + 1) of the valid masks; None for n = 0.
        valid: (Q,) bool, the masks that CLIP has seen; None to leave CLIP out.
        seen: (K,) 1 for classes with training masks, 0 for others.
        weight: of the query classifier for seen classes and of CLIP for unseen ones; not positive: CLIP alone, which
            leaves invalid masks out.
    """
    scores = query_logits.float().softmax(-1)[:, :-1]
    if valid is not None:
        if weight <= 0:
            found = scores[:0] if clip_logits is None else clip_logits.float()[:, :-1].softmax(-1)
            scores, masks = found, masks[valid]
        else:
            scores = ensemble_scores(scores, clip_logits, valid, seen, weight)
    return torch.einsum("qc,qhw->chw", scores.to(masks.dtype), masks)


def ensemble_scores(scores: Tensor, clip_logits: Tensor | None, valid: Tensor, seen: Tensor, weight: float) -> Tensor:
    """(Q, K) geometric means of query probabilities (Q, K) and CLIP's, which are 1 for masks that it has not seen."""
    clip_scores = torch.ones_like(scores)
    if clip_logits is not None:
        clip_scores[valid] = clip_logits.float()[:, :-1].softmax(-1)
    return blend(scores, clip_scores, seen, weight)


def blend(scores: Tensor, clip_scores: Tensor, seen: Tensor, weight: float) -> Tensor:
    """Geometric means of probabilities (…, K), where CLIP's have ``weight`` for unseen classes, the rest for others."""
    seen = seen.to(scores)
    power = seen * weight + (1 - seen) * (1 - weight)  # of the learned classifier, per class
    return scores**power * clip_scores ** (1 - power)
