"""Local contrast and local correction: the loss over a sampled part of the classes (POMP, arXiv 2304.04704)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_pretrain.errors import InputError

_MASKED = 1e6  # taken off the logit of a negative that is the image's own class
_LOGARITHMS = {"log10": math.log(10), "ln": 1.0}


def local_correction(
    collides: Tensor, num_classes: int, margin: str | float = "log10", log_proposal: Tensor | None = None
) -> Tensor:
    """Margin added to each image's negative logits: ``log((N - 1) / n_b)``.

    ``n_b`` counts the sampled negatives left for image b once those equal to its own label are masked. The margin is
    zero when every other class was sampled and grows the fewer were (POMP, eq. 5). For a proposal ``q`` that is not
    uniform it is ``-log(n_b q_j)`` with ``q`` over the classes other than the image's own, which is the same for a
    uniform one.

    Args:
        collides: (B, K-1) bool, True where a sampled negative is the image's own label.
        num_classes: N, size of the full label set.
        margin: ``log10`` (as released: the paper's values, 1.0 at K = 1000 and 1.5 at K = 319 of 10,450, fit no other
            base), ``ln`` (estimates the full softmax without bias), ``none``, or a fixed number.
        log_proposal: (B, K-1) natural logarithm of each negative's probability among the other classes.
    Returns:
        (B, 1), or (B, K-1) with a proposal; float32 in logit units: add it after the temperature.
    Raises:
        InputError: an unknown margin, or fewer than 2 or more than N sampled negatives.
    """
    count = collides.shape[1]
    if not 2 <= count <= num_classes:
        raise InputError(
            f"local correction over {num_classes} classes needs 2 to {num_classes - 1} sampled negatives, got {count}; "
            f"set TRAINER.POMP.UPDATE_CLASS_NUM to 3..{num_classes}"
        )
    rows = len(collides)
    if margin == "none":
        return torch.zeros(rows, 1, device=collides.device)
    fixed = _as_number(margin)
    if fixed is not None:
        return torch.full((rows, 1), fixed, device=collides.device)
    if margin not in _LOGARITHMS:
        raise InputError(f"margin is {margin!r}; expected log10, ln, none or a number")
    # A proposal can draw an image's own class alone; its row is masked entirely, so the floor of 1 changes nothing.
    remaining = (~collides).sum(dim=1, keepdim=True).clamp(min=1)
    log_sampled = remaining.log() + (-math.log(num_classes - 1) if log_proposal is None else log_proposal)
    return -log_sampled.float() / _LOGARITHMS[str(margin)]


def local_contrast_logits(
    image_features: Tensor,
    positive_features: Tensor,
    negative_features: Tensor,
    labels: Tensor,
    negative_ids: Tensor,
    logit_scale: float,
    *,
    num_classes: int,
    margin: str | float = "log10",
    log_q: Tensor | None = None,
) -> Tensor:
    """Logits of each image's own class, in column 0, and of its sampled negatives.

    Features are normalised here; a negative equal to the image's own label gets 1e6 taken off its logit.

    Args:
        image_features: (B, D). positive_features: (B, D), the class features of ``labels`` (B,).
        negative_features: (K-1, D), or (B, K-1, D) with lists per image; ``negative_ids`` likewise without D.
        logit_scale: 1 / temperature.
        num_classes, margin: see :func:`local_correction`.
        log_q: (N,) or (B, N) log probabilities of the proposal the negatives came from; None when uniform.
    Returns:
        (B, K) float32.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images = F.normalize(image_features.float(), dim=-1)
        positives = F.normalize(positive_features.float(), dim=-1)
        negatives = F.normalize(negative_features.float(), dim=-1)
        positive_logits = (images * positives).sum(dim=-1, keepdim=True)
        if negatives.ndim == 2:
            negative_logits = images @ negatives.T
        else:
            negative_logits = torch.bmm(negatives, images.unsqueeze(2)).squeeze(2)
        collides = negative_ids == labels.unsqueeze(1)  # (B, K-1)
        log_proposal = None if log_q is None else _proposal_of_negatives(log_q, labels, negative_ids)
        correction = local_correction(collides, num_classes, margin, log_proposal)
        negative_logits = logit_scale * negative_logits + correction - _MASKED * collides
        return torch.cat([logit_scale * positive_logits, negative_logits], dim=1)


def local_contrast_loss(logits: Tensor) -> Tensor:
    """Mean cross entropy of (B, K) logits whose column 0 is each image's own class."""
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def full_contrast_logits(image_features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
    """Logits (B, N) float32 of all classes from features (B, D) and (N, D), normalised here."""
    with torch.autocast(image_features.device.type, enabled=False):
        images = F.normalize(image_features.float(), dim=-1)
        return logit_scale * images @ F.normalize(class_features.float(), dim=-1).T


def full_contrast_loss(image_features: Tensor, class_features: Tensor, labels: Tensor, logit_scale: float) -> Tensor:
    """Mean cross entropy over all N classes: what K = N means, without sampling or correction."""
    return F.cross_entropy(full_contrast_logits(image_features, class_features, logit_scale), labels)


def _proposal_of_negatives(log_q: Tensor, labels: Tensor, negative_ids: Tensor) -> Tensor:
    """(B, K-1) log probability of each negative among the classes other than the image's own."""
    log_q = log_q.to(labels.device).expand(len(labels), -1).double()
    own = log_q.gather(1, labels.unsqueeze(1)).exp().clamp(max=1 - 1e-12)
    ids = negative_ids.expand(len(labels), -1)
    return (log_q.gather(1, ids) - torch.log1p(-own)).float()


def _as_number(margin: str | float) -> float | None:
    try:
        return float(margin)
    except ValueError:
        return None
