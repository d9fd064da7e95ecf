"""The loss of a batch of image features as a function of the context vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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

    def parts(self, count: int, views: int) -> list[Tensor]:
        """Positions in ``own`` of the rows of each of ``count`` parts; none for a single one.

        Part a of process r on W processes holds the rows that process r + a * W of ``count`` * W processes would have.
        """
        positions = torch.arange(len(self.own)).reshape(views, -1)
        return [positions[:, part::count].reshape(-1) for part in range(count)] if count > 1 else []


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
        self,
        ctx: Tensor,
        image_features: Tensor,
        rows: StepRows,
        step: int,
        *,
        ok: Tensor | None = None,
        parts: Sequence[Tensor] = (),
    ) -> BatchLoss:
        """The loss of this process's share of a step.

        Args:
            ctx: (M, W) or (N, M, W), fp32.
            image_features: (R, D), not normalised, of the rows ``rows.own``; on the device.
            step: counts all steps of the run; draws depend on it.
            ok: (R,) bool, False leaves a row out; None takes all.
            parts: positions of rows that are worked off together, one part after the other: each is computed again in
                backward, so that memory is that of one. With ``per_rank`` each part has its list, that of the process
                whose work it is (:mod:`prompt_pretrain.accumulation`).
        """
        if not parts:
            everything = torch.arange(len(image_features))
            losses, correct = self._contrast(ctx, image_features, rows, step, everything, 0)(everything)
            return summarize(losses, correct, ok)
        contrast = None
        if self.sampler is None or self.negatives != "per_rank":  # one list of classes for all parts, encoded once
            contrast = self._contrast(ctx, image_features, rows, step, torch.arange(len(image_features)), 0)
        results = []
        for number, part in enumerate(parts):

            def run(part: Tensor, number: int = number) -> tuple[Tensor, Tensor]:
                own = contrast or self._contrast(ctx, image_features, rows, step, part, number)
                return own(part)

            results.append(checkpoint(run, part, use_reentrant=False, preserve_rng_state=False))
        order = torch.cat(list(parts))
        return summarize(
            torch.cat([losses for losses, _ in results]),
            torch.cat([correct for _, correct in results]),
            None if ok is None else ok[order.to(ok.device)],
        )

    def _contrast(
        self, ctx: Tensor, images: Tensor, rows: StepRows, step: int, drawn_for: Tensor, number: int
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """A function from positions of rows to their losses and whether the own class scored highest.

        Args:
            drawn_for, number: positions of the rows and number of the part that ``per_rank`` draws classes for.
        """
        if self.sampler is None:
            classes = self._encode(self.prompts, ctx, shard=True)
            own_labels = rows.labels[rows.own]

            def logits_and_targets(index: Tensor) -> tuple[Tensor, Tensor]:
                logits = full_contrast_logits(_rows_at(images, index), classes, self.logit_scale)
                return logits, own_labels[index].to(logits.device)
        else:
            logits_of = self._sampled_logits(self.sampler, ctx, images, rows, step, drawn_for, number)

            def logits_and_targets(index: Tensor) -> tuple[Tensor, Tensor]:
                logits = logits_of(index)
                return logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)

        def contrast(index: Tensor) -> tuple[Tensor, Tensor]:
            logits, targets = logits_and_targets(index)
            return cross_entropy(logits, targets, self.hierarchy)

        return contrast

    def _sampled_logits(
        self,
        sampler: ClassSampler,
        ctx: Tensor,
        images: Tensor,
        rows: StepRows,
        step: int,
        drawn_for: Tensor,
        number: int,
    ) -> Callable[[Tensor], Tensor]:
        """A function from positions of rows to their (n, K) logits, own classes in column 0."""
        device = images.device
        own_labels = rows.labels[rows.own]
        alone = self.negatives == "per_rank"
        # With lists per process a row is found among those that its list is drawn for.
        place_of_row = torch.empty(len(own_labels), dtype=torch.int64)
        place_of_row[drawn_for] = torch.arange(len(drawn_for))
        labels, own = (own_labels[drawn_for], place_of_row) if alone else (rows.labels, rows.own)
        looks = sampler.mode in ("similarity", "easy")
        seen = _gather_rows(images, rows) if looks and not alone else _rows_at(images, drawn_for)
        rank = distributed.rank() + number * distributed.world_size() if alone else 0
        sample = sampler.draw(step, rank=rank, labels=labels, image_features=seen.detach())
        # Every class is encoded once, however many images and lists it occurs in.
        ids, place = torch.unique(torch.cat([labels, sample.ids.reshape(-1)]), return_inverse=True)
        class_ctx = ctx if ctx.ndim == 2 else ctx.index_select(0, ids.to(ctx.device))
        classes = self._encode(self.prompts.select(ids), class_ctx, shard=not alone)
        all_places = place[len(labels) :].reshape(sample.ids.shape)

        def logits_of(index: Tensor) -> Tensor:
            drawn = own[index]
            negative_ids, negative_place, log_q = sample.ids, all_places, sample.log_q
            if negative_ids.ndim == 2:
                negative_ids, negative_place = negative_ids[drawn], negative_place[drawn]
            if log_q is not None and log_q.ndim == 2:
                log_q = log_q[drawn]
            negatives = classes.index_select(0, negative_place.reshape(-1).to(device))
            return local_contrast_logits(
                _rows_at(images, index),
                classes.index_select(0, place[drawn].to(device)),
                negatives.reshape(*negative_place.shape, -1),
                own_labels[index].to(device),
                negative_ids.to(device),
                self.logit_scale,
                num_classes=len(self.prompts),
                margin=self.margin,
                log_q=None if log_q is None else log_q.to(device),
            )

        return logits_of

    def _encode(self, prompts: PromptTokens, ctx: Tensor, *, shard: bool) -> Tensor:
        return self.encoder(prompts, ctx, memory_budget=self.memory_budget, shard=shard)


def _rows_at(features: Tensor, index: Tensor) -> Tensor:
    return features if len(index) == len(features) else features[index.to(features.device)]


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
