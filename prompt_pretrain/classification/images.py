"""Images as tensors: a data set that survives damaged files, and loaders whose output no worker count changes."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prompt_pretrain.classification.decoding import ImageError, StorageError, open_image
from prompt_pretrain.classification.items import ImageItem, labels_of
from prompt_pretrain.classification.randomness import make_generator
from prompt_pretrain.classification.transforms import ImageTransform
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

__all__ = ["ImageBatch", "ImageDataset", "ImageError", "make_loader", "open_image"]


class ImageBatch(NamedTuple):
    """Some images of a data set, each in k views.

    Attributes:
        images: (k, B, 3, S, S) float32; ``images.flatten(0, 1)`` is the published view-major order. Rows of images
            that could not be read are zero.
        labels: (B,) int64, one per image; ``labels.repeat(k)`` matches the view-major order.
        indices: (B,) int64, positions in the data set.
        ok: (B,) bool, False where the image could not be read: leave those rows out.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    ok: Tensor

    def readable(self) -> "ImageBatch":
        """The batch without the images that could not be read; itself when all could."""
        if bool(self.ok.all()):
            return self
        return ImageBatch(self.images[:, self.ok], self.labels[self.ok], self.indices[self.ok], self.ok[self.ok])


class ImageDataset(Dataset):
    """Images of ``items``, each in ``views`` independently drawn transforms.

    The random numbers of a view depend on ``seed``, the epoch, the image's index and the view alone.

    Args:
        transform: e.g. of :func:`~prompt_pretrain.classification.transforms.train_transform`.
        views: k, transformed copies of each image.
        on_corrupt: what an unusable image does: ``skip`` gives ``ok = False`` and zeros, ``raise`` an error.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        transform: ImageTransform,
        *,
        views: int = 1,
        seed: int = 0,
        on_corrupt: str = "skip",
    ) -> None:
        if views < 1:
            raise InputError(f"every image needs at least 1 view, got {views}; see DATALOADER.K_TRANSFORMS")
        if on_corrupt not in ("skip", "raise"):
            raise ValueError(f"on_corrupt must be 'skip' or 'raise', got {on_corrupt!r}")
        self.items = items
        self.labels = labels_of(items)
        self.transform = transform
        self.views = views
        self.seed = seed
        self.on_corrupt = on_corrupt
        self.epoch = 0
        self.corrupt: dict[int, str] = {}  # index -> reason, of the images that loaders came across so far

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Draw other views from now on; loaders made before do not notice."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int, int, bool]:
        """``(views (k, 3, S, S), label, index, ok)`` of one image.

        Raises:
            ImageError: the image is unusable and ``on_corrupt`` is ``raise``.
        """
        views, reason = self.load(index)
        return views, int(self.labels[index]), index, reason is None

    def load(self, index: int) -> tuple[Tensor, str | None]:
        """(k, 3, S, S) views of one image and None, or zeros and why it is unusable.

        Raises:
            StorageError: whatever ``on_corrupt`` says.
        """
        try:
            image = open_image(self.items[index].path)
        except ImageError as error:
            if self.on_corrupt == "raise" or isinstance(error, StorageError):
                raise
            return self._blank(), error.reason
        generators = [make_generator("view", self.seed, self.epoch, index, view) for view in range(self.views)]
        return torch.stack([self.transform(image, generator) for generator in generators]), None

    def note_corrupt(self, index: int, reason: str) -> None:
        """Log an unusable image, the first time only, and remember it in ``corrupt``."""
        if index not in self.corrupt:
            self.corrupt[index] = reason
            logger.warning("skipped %s: %s (%d skipped so far)", self.items[index].path, reason, len(self.corrupt))

    def _blank(self) -> Tensor:
        return torch.zeros(self.views, 3, self.transform.size, self.transform.size)


def make_loader(
    dataset: ImageDataset,
    batches: Iterable[Sequence[int] | np.ndarray],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[ImageBatch]:
    """Load the given batches of indices, in that order, with worker processes if asked for.

    What comes out depends on the data set's seed and epoch and on ``batches`` only, and no global random state is
    touched. Unusable images are logged once per path and collected in ``dataset.corrupt``.

    Args:
        batches: e.g. of :func:`~prompt_pretrain.classification.samplers.train_batches`.

    Raises:
        ImageError: an image is unusable and the data set's ``on_corrupt`` is ``raise``.
    """
    rows = [np.asarray(batch, dtype=np.int64).tolist() for batch in batches]
    loader = DataLoader(
        _Outcomes(dataset),
        batch_sampler=rows,
        collate_fn=_collate,
        num_workers=min(num_workers, len(rows)),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else torch draws the workers' seeds from the global generator
    )
    for outcome in loader:
        if isinstance(outcome, ImageError):
            raise outcome
        batch, reasons = outcome
        for index, reason in reasons.items():
            dataset.note_corrupt(index, reason)
        yield ImageBatch(*batch)


class _Outcomes(Dataset):
    """What workers fetch: a sample of the data set together with what went wrong."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> "tuple[Tensor, int, int, str | None] | ImageError":
        try:
            views, reason = self.dataset.load(index)
        except ImageError as error:
            return error  # raised in the main process: torch would bury it in a worker's traceback
        return views, int(self.dataset.labels[index]), index, reason


def _collate(samples: list) -> tuple[tuple[Tensor, ...], dict[int, str]] | ImageError:
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
    views, labels, indices, reasons = zip(*samples, strict=True)
    ok = torch.tensor([reason is None for reason in reasons])
    batch = (torch.stack(views, dim=1), torch.tensor(labels), torch.tensor(indices), ok)
    return batch, {index: reason for index, reason in zip(indices, reasons, strict=True) if reason is not None}
