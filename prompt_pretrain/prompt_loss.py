"""The loss of a batch of image features as a function of the context vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain import distributed
from prompt_pretrain.class_sampling import ClassSampler
from prompt_pretrain.label_hierarchy import LabelHierarchy, cross_entropy
from prompt_pretrain.local_contrast import full_contrast_logits, local_contrast_logits
from prompt_pretrain.prompt_tokens import PromptTokens
from prompt_pretrain.text_encoder import TextEncoder


@dataclass(frozen=True)
class StepRows:
    """The rows (views of images) of one training step over all processes, in an order that no process count changes.

    Attributes:
        labels: (world * R,) int64 class of every row: all images' first views, then all second views, …
        own: (R,) int64 positions of this process's rows, view-major like its image features.
    """

    labels: Tensor
    own: Tensor

    @classmethod
    def deal(cls, labels: np.ndarray, batches: Sequence[np.ndarray], views: int) -> "StepRows":
        """Rows of a step of which process r takes the images ``batches[r]``, each in ``views`` views.

        Args:
            labels: (n,) class of every training image.
        """
        world, size = len(batches), len(batches[0])
        images = np.stack(batches, axis=1).reshape(-1)  # image i of the step goes to process i % world
        positions = np.arange(views * size * world).reshape(views, size, world)
        own = positions[:, :, distributed.rank()].reshape(-1)
        return cls(torch.from_numpy(np.tile(labels[images], views)), torch.from_numpy(own))


@dataclass(frozen=True)
class BatchLoss:
    """Outcome of one step on one process.

    Attributes:
        loss: scalar whose gradient, averaged over processes, is that of the mean loss of all images of the step.
        loss_sum: scalar, sum of this process's images' losses. num_correct: images whose own class scored highest.
        num_rows: images counted in both. All on the device and without gradients, except ``loss``.
    """

    loss: Tensor
    loss_sum: Tensor
    num_correct: Tensor
    num_rows: Tensor


class PromptLoss:
    """Local contrast over sampled classes, or the softmax over all of them, for a fixed vocabulary.

    Args:
        encoder: the text tower.
        prompts: the N classes' prompts.
        sampler: draws the K - 1 negatives; None contrasts all classes.
        logit_scale: 1 / temperature.
        margin: see :func:`~prompt_pretrain.local_contrast.local_correction`.
        negatives: ``shared``: one list for the images of all processes; ``per_rank``: one list per process;
            ``per_image``: the sampler's scope is ``per_image``.
        memory_budget: bytes of saved activations beyond which classes are recomputed in backward.
        hierarchy: targets of the softmax over all classes; ``prompts`` then end with its extra names.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompts: PromptTokens,
        sampler: ClassSampler | None,
        *,
        logit_scale: float,
        margin: str | float = "log10",
        negatives: str = "shared",
        memory_budget: int | None = None,
        hierarchy: LabelHierarchy | None = None,
    ) -> None:
        self.encoder, self.prompts, self.sampler = encoder, prompts, sampler
        self.logit_scale, self.margin, self.negatives = logit_scale, margin, negatives
        self.memory_budget = memory_budget
        self.hierarchy = hierarchy
        assert hierarchy is None or sampler is None

    def __call__(
        self, ctx: Tensor, image_features: Tensor, rows: StepRows, step: int, *, ok: Tensor | None = None
    ) -> BatchLoss:
        """The loss of this process's part of a step.

        Args:
            ctx: (M, W) or (N, M, W), fp32.
            image_features: (R, D), not normalised, of the rows ``rows.own``; on the device.
            step: counts all steps of the run; draws depend on it.
            ok: (R,) bool, False leaves a row out; None takes all.
        """
        if self.sampler is None:
            classes = self._encode(self.prompts, ctx, shard=True)
            logits = full_contrast_logits(image_features, classes, self.logit_scale)
            targets = rows.labels[rows.own].to(logits.device)
        else:
            logits = self._sampled_logits(self.sampler, ctx, image_features, rows, step)
            targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        losses, correct = cross_entropy(logits, targets, self.hierarchy)
        return summarize(losses, correct, ok)

    def _sampled_logits(self, sampler: ClassSampler, ctx: Tensor, images: Tensor, rows: StepRows, step: int) -> Tensor:
        """(R, K) logits, the rows' own classes in column 0."""
        device = images.device
        own_labels = rows.labels[rows.own]
        alone = self.negatives == "per_rank"
        labels, own = (own_labels, torch.arange(len(own_labels))) if alone else (rows.labels, rows.own)
        looks = sampler.mode in ("similarity", "easy")
        seen = _gather_rows(images, rows) if looks and not alone else images
        rank = distributed.rank() if alone else 0
        sample = sampler.draw(step, rank=rank, labels=labels, image_features=seen.detach())
        # Every class is encoded once, however many images and lists it occurs in.
        ids, place = torch.unique(torch.cat([labels, sample.ids.reshape(-1)]), return_inverse=True)
        class_ctx = ctx if ctx.ndim == 2 else ctx.index_select(0, ids.to(ctx.device))
        classes = self._encode(self.prompts.select(ids), class_ctx, shard=not alone)
        negative_ids, negative_place = sample.ids, place[len(labels) :].reshape(sample.ids.shape)
        log_q = sample.log_q
        if negative_ids.ndim == 2:
            negative_ids, negative_place = negative_ids[own], negative_place[own]
        if log_q is not None and log_q.ndim == 2:
            log_q = log_q[own]
        negatives = classes.index_select(0, negative_place.reshape(-1).to(device))
        return local_contrast_logits(
            images,
            classes.index_select(0, place[own].to(device)),
            negatives.reshape(*negative_place.shape, -1),
            own_labels.to(device),
            negative_ids.to(device),
            self.logit_scale,
            num_classes=len(self.prompts),
            margin=self.margin,
            log_q=None if log_q is None else log_q.to(device),
        )

    def _encode(self, prompts: PromptTokens, ctx: Tensor, *, shard: bool) -> Tensor:
        return self.encoder(prompts, ctx, memory_budget=self.memory_budget, shard=shard)


def _gather_rows(features: Tensor, rows: StepRows) -> Tensor:
    """Every process's (R, D) features in the order of ``rows.labels``, (world * R, D), without gradients."""
    world, rank = distributed.world_size(), distributed.rank()
    with torch.no_grad():
        gathered = distributed.gather_rows(features.contiguous(), len(features) * world)
    positions = torch.cat([rows.own - rank + other for other in range(world)])
    return gathered[torch.argsort(positions).to(gathered.device)]


def summarize(losses: Tensor, correct: Tensor, ok: Tensor | None) -> BatchLoss:
    """The outcome of a step from this process's (R,) losses and hits; rows that are not ``ok`` are left out."""
    if ok is None:
        count = torch.full((), len(losses), device=losses.device)
        return BatchLoss(losses.mean(), losses.detach().sum(), correct.sum(), count)
    count = ok.sum()
    # Rows left out differ in number between processes: every image of the step weighs the same all the same.
    total = distributed.sum_(count.clone()).clamp(min=1)
    loss_sum = torch.where(ok, losses, 0.0).sum()
    return BatchLoss(loss_sum * distributed.world_size() / total, loss_sum.detach(), (correct & ok).sum(), count)
