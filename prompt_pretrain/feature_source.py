"""Image features for training and for choosing an epoch: from the cache, or from the image tower in every step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prompt_pretrain import distributed
from prompt_pretrain.classification.evaluation import feature_batches
from prompt_pretrain.classification.images import ImageDataset, make_loader
from prompt_pretrain.classification.samplers import evaluation_batches
from prompt_pretrain.clip import Clip

Autocast = Callable[[], AbstractContextManager]


class FeatureSource(Protocol):
    """Training images as features.

    Attributes:
        labels: (n,) class of every usable image.
        views: k, rows that each image of a batch becomes.
    """

    labels: np.ndarray
    views: int

    def batches(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Features of each batch of image indices, (k * B, D) view-major, not normalised, on the training device.

        The second value is None, or (k * B,) bool with False where an image could not be read.
        """
        ...


class CachedFeatures:
    """Features computed before training; epoch e takes the views ``e * k, e * k + 1, …`` of the stored ones in turn.

    Args:
        features: (n, V, D) array, e.g. memory-mapped. labels: (n,). valid: (n,) bool, False for unreadable images.
        views: k.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, valid: np.ndarray, *, views: int, device: torch.device
    ) -> None:
        self._features = features
        self._rows = np.flatnonzero(valid)
        self.labels = np.asarray(labels, dtype=np.int64)[self._rows]
        self.views = views
        self._device = device

    def batches(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor | None]]:
        columns = (epoch * self.views + np.arange(self.views)) % self._features.shape[1]
        for batch in batches:
            found = self._features[self._rows[batch][None, :], columns[:, None]]  # (k, B, D)
            rows = torch.from_numpy(np.ascontiguousarray(found)).flatten(0, 1)
            yield rows.to(self._device, non_blocking=True).float(), None


class OnlineFeatures:
    """The image tower runs on freshly augmented images in every step, as released.

    Args:
        dataset: yields k views per image.
        autocast: context that the tower runs in.
        parts: passes in which it encodes a batch.
    """

    def __init__(
        self,
        clip: Clip,
        dataset: ImageDataset,
        *,
        num_workers: int,
        device: torch.device,
        autocast: Autocast,
        parts: int = 1,
    ) -> None:
        self._clip, self._dataset, self._num_workers = clip, dataset, num_workers
        self._device, self._autocast, self._parts = device, autocast, parts
        self.labels = np.asarray(dataset.labels, dtype=np.int64)
        self.views = dataset.views

    def batches(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor | None]]:
        self._dataset.set_epoch(epoch)
        pin = self._device.type == "cuda"
        for batch in make_loader(self._dataset, batches, num_workers=self._num_workers, pin_memory=pin):
            parts = batch.images.flatten(0, 1).chunk(self._parts)
            features = torch.cat([self._encode(part.to(self._device, non_blocking=True)) for part in parts]).float()
            # Every process must say the same: counting rows is a collective call.
            whole = distributed.world_size() == 1 and bool(batch.ok.all())
            ok = None if whole else batch.ok.repeat(self.views).to(self._device)
            yield features, ok

    def _encode(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._clip.encode_image(images)


class OnlineImages(OnlineFeatures):
    """The images themselves, (k * B, 3, S, S): for learners that change what the image tower computes."""

    def _encode(self, images: Tensor) -> Tensor:
        return images


class EvaluationFeatures:
    """Features and labels to classify: this process's share of them, of ``num_images`` in all."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_images: int) -> None:
        self._features, self._labels, self.num_images = features, labels, num_images

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return feature_batches(self._features, self._labels)

    @classmethod
    def from_cache(
        cls, features: np.ndarray, labels: np.ndarray, valid: np.ndarray, *, batch_size: int
    ) -> "EvaluationFeatures":
        """From stored (n, V, D) features, of which the first view counts."""
        rows = np.flatnonzero(valid)
        share = rows[_share(len(rows), batch_size)]
        return cls(np.asarray(features[share, 0]), np.asarray(labels)[share], len(rows))

    @classmethod
    def encode(
        cls,
        clip: Clip,
        dataset: ImageDataset,
        *,
        batch_size: int,
        num_workers: int,
        autocast: Autocast,
        progress: Callable[[int, int], None] | None = None,
    ) -> "EvaluationFeatures":
        """From images, each encoded once by the process whose share it is in."""
        batches = evaluation_batches(len(dataset), batch_size, rank=distributed.rank(), world=distributed.world_size())
        features, labels, done = [], [], 0
        for batch in make_loader(dataset, batches, num_workers=num_workers):
            with autocast():
                found = clip.encode_image(batch.images[0].to(clip.device)).cpu()
            features.append(found[batch.ok].half())
            labels.append(batch.labels[batch.ok])
            done += len(batch.labels)
            if progress is not None:
                progress(done, sum(map(len, batches)))
        own_features = torch.cat(features).numpy() if features else np.zeros((0, clip.embed_dim), np.float16)
        own_labels = torch.cat(labels).numpy() if labels else np.zeros(0, np.int64)
        return cls(own_features, own_labels, sum(distributed.gather_objects(len(own_labels))))


class EvaluationImages:
    """Images and labels to classify: this process's share of them, of ``num_images`` in all, read anew each time."""

    def __init__(self, dataset: ImageDataset, *, batch_size: int, num_workers: int, device: torch.device) -> None:
        self._dataset, self._batch_size, self._num_workers = dataset, batch_size, num_workers
        self._device = device
        self.num_images = len(dataset)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, 3, S, S) images on the device and their labels; images that cannot be read are left out."""
        size, world = self._batch_size, distributed.world_size()
        rows = evaluation_batches(len(self._dataset), size, rank=distributed.rank(), world=world)
        for batch in make_loader(self._dataset, rows, num_workers=self._num_workers):
            whole = batch.readable()
            yield whole.images[0].to(self._device), whole.labels


def _share(length: int, batch_size: int) -> np.ndarray:
    parts = evaluation_batches(length, batch_size, rank=distributed.rank(), world=distributed.world_size())
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
