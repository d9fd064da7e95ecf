"""What a learned prompt does to the joint space: alignment, uniformity, nearest words, two-dimensional pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_pretrain.errors import InputError

if TYPE_CHECKING:
    from prompt_pretrain.clip import Clip

_ROWS_AT_ONCE = 1024


@torch.no_grad()
def alignment(image_features: Tensor, class_features: Tensor, labels: Tensor) -> float:
    """Mean over images of ``‖x − w_y‖²`` on the unit sphere, 0 to 4; lower is better (POMP, arXiv 2304.04704).

    The mean is over images; the release averages the means of batches, the last of which is smaller.

    Args:
        image_features: (n, D). class_features: (N, D). Both are normalised here.
        labels: (n,) class ids.
    Raises:
        InputError: no image.
    """
    if not len(image_features):
        raise InputError("alignment needs at least one image, got none")
    weights = F.normalize(class_features.float(), dim=1)
    total = 0.0
    for rows, ids in zip(image_features.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
        images = F.normalize(rows.float(), dim=1)
        total += float((images - weights[ids.to(weights.device)].to(images.device)).square().sum().double())
    return total / len(image_features)


@torch.no_grad()
def uniformity(class_features: Tensor, *, temperature: float = 2.0) -> float:
    """``log mean exp(−t ‖w_i − w_j‖²)`` over pairs i < j on the unit sphere; lower is better.

    Rows are compared in chunks, so that 21,841 classes need some hundred megabytes and not four gigabytes.

    Args:
        class_features: (N, D), normalised here.
        temperature: t.
    Raises:
        InputError: fewer than two classes.
    """
    count = len(class_features)
    if count < 2:
        raise InputError(f"uniformity compares pairs of classes, got {count} class")
    weights = F.normalize(class_features.float(), dim=1)
    total = torch.zeros((), dtype=torch.float64, device=weights.device)
    for start in range(0, count, _ROWS_AT_ONCE):
        block = weights[start : start + _ROWS_AT_ONCE]
        later = weights[start:]  # pairs i < j only: columns from the block's own first row on
        squared = (2.0 - 2.0 * (block @ later.T)).clamp_min(0.0)  # (b, N - start)
        total += torch.exp(-temperature * squared).triu(diagonal=1).sum(dtype=torch.float64)
    return float(torch.log(total / (count * (count - 1) / 2)))


@dataclass(frozen=True)
class NearestWord:
    """A vocabulary entry and its Euclidean distance to a context vector."""

    word: str
    token_id: int
    distance: float


@torch.no_grad()
def nearest_words(
    ctx: Tensor, clip: "Clip", *, count: int = 5, token_ids: Sequence[int] | None = None
) -> list[list[NearestWord]]:
    """For each context vector the vocabulary entries whose token embeddings lie nearest, nearest first.

    Words say what a vector is near to, not what it means: learned vectors often lie far from every word.

    Args:
        ctx: (M, W); for a class-specific prompt give the vectors of one class.
        count: words per vector.
        token_ids: the entries to look among; default all. A tiny CLIP has learned few of its tokens.
    Returns:
        M lists of ``count`` words, fewer where there are not as many.
    Raises:
        InputError: ``ctx`` is class specific or of another width than the CLIP's text tower.
    """
    embedding = getattr(clip.model, "text", clip.model).token_embedding.weight.detach().float().cpu()  # (V, W)
    if ctx.ndim != 2:
        raise InputError(
            f"nearest words need the (M, W) context of one class, got shape {tuple(ctx.shape)}; "
            "of a class-specific prompt choose a class"
        )
    if ctx.shape[1] != embedding.shape[1]:
        raise InputError(
            f"the prompt has width {ctx.shape[1]} but the text tower of {clip.clip_id} has {embedding.shape[1]}; "
            "use the CLIP that the prompt was trained with"
        )
    ids = torch.arange(len(embedding)) if token_ids is None else torch.as_tensor(list(token_ids))
    # Exact differences: the product form loses small distances.
    distances = torch.cdist(ctx.detach().float().cpu(), embedding[ids], compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.sort(distances, dim=1, stable=True).indices[:, :count]
    return [
        [NearestWord(_spelled(clip, int(ids[i])), int(ids[i]), float(row[i])) for i in order]
        for row, order in zip(distances, nearest.tolist(), strict=True)
    ]


def _spelled(clip: "Clip", token_id: int) -> str:
    """The token as text; a token of half a character shows a replacement mark."""
    return clip.tokenizer.decode([token_id]).strip()


@dataclass(frozen=True)
class Projection:
    """Points in the plane. ``explained``: share of the variance on each axis for PCA, empty for t-SNE."""

    method: str
    points: np.ndarray  # (n, 2) float64
    explained: tuple[float, ...] = ()


def project(features: Tensor | np.ndarray, method: str = "pca", *, seed: int = 0) -> Projection:
    """Normalised features in two dimensions.

    Args:
        features: (n, D) with n ≥ 3.
        method: ``pca``, or ``tsne`` which needs scikit-learn.
        seed: of t-SNE.
    Raises:
        InputError: another method, too few points, or scikit-learn missing.
    """
    return _plane(F.normalize(torch.as_tensor(features).double(), dim=1), method, seed)


def project_classes_and_images(
    class_features: Tensor, image_features: Tensor, method: str = "pca", *, seed: int = 0
) -> tuple[Projection, Projection]:
    """Classes and images in one plane each, classes first.

    Each kind is centred on its own mean first: the offset between a CLIP's texts and images is larger than what
    separates the classes, and would be all there is to see.
    """
    texts = F.normalize(class_features.double(), dim=1)
    images = F.normalize(image_features.double(), dim=1)
    both = torch.cat([texts - texts.mean(dim=0), images - images.mean(dim=0)])
    joint = _plane(both, method, seed)
    split = len(texts)
    return (
        Projection(joint.method, joint.points[:split], joint.explained),
        Projection(joint.method, joint.points[split:], joint.explained),
    )


def confused_pairs(ranked: np.ndarray, labels: np.ndarray, class_names: Sequence[str], count: int = 10) -> list[dict]:
    """The most frequent confusions: records ``label``, ``predicted``, ``images``, most frequent first."""
    wrong = ranked[:, 0] != labels
    pairs, times = np.unique(np.stack([labels[wrong], ranked[wrong, 0]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [
        {"label": class_names[pairs[i, 0]], "predicted": class_names[pairs[i, 1]], "images": int(times[i])}
        for i in order
    ]


def _plane(rows: Tensor, method: str, seed: int) -> Projection:
    array = rows.cpu().numpy()
    if len(array) < 3:
        raise InputError(f"a picture needs at least 3 features, got {len(array)}")
    if method == "pca":
        left, singular, right = np.linalg.svd(array - array.mean(axis=0), full_matrices=False)
        # The sign of a component is arbitrary: fix it, so that pictures do not flip from run to run.
        signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])
        share = singular**2 / max(float((singular**2).sum()), np.finfo(float).tiny)
        return Projection("pca", left[:, :2] * singular[:2] * signs, (float(share[0]), float(share[1])))
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise InputError("t-SNE needs scikit-learn: pip install scikit-learn, or choose the method pca") from error
        perplexity = min(30.0, (len(array) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(array)
        return Projection("tsne", np.asarray(points, dtype=np.float64))
    raise InputError(f"unknown projection {method!r}; expected pca or tsne")
