"""Test-time augmentation of segmenters: several sizes, flips and sliding windows (``TEST.AUG``, ``TEST.SLIDING_*``)."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA

__all__ = ["SemanticSegmentorWithTTA", "tile_starts"]

# Tile by the short side of the image, for TEST.SLIDING_TILE_SIZE <= 0.
_TILES = {256: 224, 512: 256, 768: 512, 896: 512}
_GROUND_TRUTH = ("instances", "sem_seg")  # has the size of the image before augmentation


class SemanticSegmentorWithTTA(nn.Module):
    """Averages a model's maps over augmented versions of each image, one at a time.

    With sliding windows each version is cut into overlapping tiles; the model then sees nothing but its tile.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, tta_mapper: Callable[..., Any] | None = None, batch_size: int = 1
    ) -> None:
        """Wrap a model.

        Args:
            cfg: sizes and flip in TEST.AUG, tiles in TEST.SLIDING_WINDOW, _TILE_SIZE and _OVERLAP.
            model: returns ``{"sem_seg": (K, height, width)}`` per image.
            tta_mapper: from an input to augmented ones with ``transforms``; by default that of ``cfg``.
            batch_size: 1, the only one; part of detectron2's interface.
        """
        super().__init__()
        if batch_size != 1:
            raise ValueError(f"SemanticSegmentorWithTTA got batch_size {batch_size}; it augments one image at a time")
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.sliding = cfg.TEST.SLIDING_WINDOW
        self.tile_size = cfg.TEST.SLIDING_TILE_SIZE
        self.overlap = cfg.TEST.SLIDING_OVERLAP

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Per image ``{"sem_seg": (K, height, width)}``; inputs as of the model."""
        return [{"sem_seg": self._average(record)} for record in batched_inputs]

    def _average(self, record: dict[str, Any]) -> Tensor:
        size = tuple(record["image"].shape[-2:])
        record = {"height": size[0], "width": size[1], **record}
        versions = self.tta_mapper({key: value for key, value in record.items() if key not in _GROUND_TRUTH})
        total: Tensor | None = None
        for version in versions:
            flipped = any(isinstance(step, HFlipTransform) for step in version.pop("transforms").transforms)
            found = self._slide(version) if self.sliding else self.model([version])[0]["sem_seg"]
            found = found.flip(2) if flipped else found
            total = found if total is None else total + found
        assert total is not None
        return total / len(versions)

    def _slide(self, record: dict[str, Any]) -> Tensor:
        """(K, height, width) mean over the tiles of one version."""
        image = record["image"]
        height, width = image.shape[-2:]
        tile = self.tile_size if self.tile_size > 0 else _tile_for(min(height, width))
        padded = F.pad(image, (0, max(tile - width, 0), 0, max(tile - height, 0)))
        meta = {key: value for key, value in record.items() if key not in ("image", "height", "width")}
        total: Tensor | None = None
        counts = torch.zeros(padded.shape[-2:])
        for top, left in _tiles(padded.shape[-2], padded.shape[-1], tile, self.overlap):
            rows, columns = slice(top, top + tile), slice(left, left + tile)
            found = self.model([copy.copy(meta) | {"image": padded[:, rows, columns]}])[0]["sem_seg"]
            if total is None:
                total = found.new_zeros(len(found), *padded.shape[-2:])
            total[:, rows, columns] += found
            counts[rows, columns] += 1
        assert total is not None
        mean = (total / counts.to(total))[:, :height, :width]
        return F.interpolate(mean[None], (record["height"], record["width"]), mode="bilinear", align_corners=False)[0]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Starts of tiles that cover a line of at least one tile, each sharing about ``overlap`` with the next."""
    stride = math.ceil(tile * (1 - overlap))
    count = math.ceil(max(length - tile, 0) / stride) + 1
    return [max(min(index * stride, length - tile), 0) for index in range(count)]


def _tiles(height: int, width: int, tile: int, overlap: float) -> Iterator[tuple[int, int]]:
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            yield top, left


def _tile_for(short_side: int) -> int:
    if short_side not in _TILES:
        raise ValueError(
            "TEST.SLIDING_TILE_SIZE is not positive, which chooses tiles for short sides of "
            f"{', '.join(map(str, _TILES))} pixels only, not {short_side}; set it"
        )
    return _TILES[short_side]
