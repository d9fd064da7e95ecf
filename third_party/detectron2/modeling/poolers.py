"""Features of fixed size for regions of a feature pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detectron2.layers.roi_align import ROIAlign
from detectron2.layers.wrappers import cat, full_precision, nonzero_tuple
from detectron2.structures.boxes import Boxes


def assign_boxes_to_levels(
    box_lists: Sequence[Boxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> Tensor:
    """(M,) int64 position of the pyramid level of each box, 0 for ``min_level`` (FPN, arXiv 1612.03144, eq. 1).

    A box of ``canonical_box_size``² pixels belongs to ``canonical_level``, one of twice the side to the next level.
    """
    sides = cat([boxes.area() for boxes in box_lists]).sqrt()
    levels = torch.floor(canonical_level + torch.log2(sides / canonical_box_size + 1e-8))
    return levels.clamp(min=min_level, max=max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: Sequence[Boxes]) -> Tensor:
    """(M, 5) boxes of all images, each with the index of its image in front."""
    boxes = cat([each.tensor for each in box_lists])
    index = torch.repeat_interleave(
        torch.arange(len(box_lists), device=boxes.device),
        torch.tensor([len(each) for each in box_lists], device=boxes.device),
        output_size=len(boxes),
    )
    return cat([index.to(boxes.dtype)[:, None], boxes], dim=1)


class ROIPooler(nn.Module):
    """Pools every box from the pyramid level that fits its size."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """
        Args:
            output_size: (height, width) of the pooled features.
            scales: 1 / stride of each feature map, finest first; consecutive powers of two.
            sampling_ratio: see ``ROIAlign``.
            pooler_type: ROIAlignV2 (exact positions), ROIAlign (first version, shifted) or ROIPool.
            canonical_box_size: side in pixels of the boxes that belong to ``canonical_level``.
            canonical_level: a level as log2 of its stride.
        """
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if len(self.output_size) != 2:
            raise ValueError(f"POOLER_RESOLUTION must be one or two numbers, got {output_size}")
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size must be positive, got {canonical_box_size}")
        self.min_level, self.max_level = _levels(scales)
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size
        self.level_poolers = nn.ModuleList(
            _level_pooler(pooler_type, self.output_size, scale, sampling_ratio) for scale in scales
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """(M, C, *output_size) features of all boxes, image after image.

        Args:
            x: one feature map (N, C, H, W) per level, finest first.
            box_lists: the boxes of each of the N images, in image pixels.
        """
        assert isinstance(x, list) and isinstance(box_lists, list), "ROIPooler takes lists of features and of Boxes"
        assert len(x) == len(self.level_poolers), f"{len(x)} feature maps for {len(self.level_poolers)} levels"
        assert len(box_lists) == x[0].shape[0], f"boxes of {len(box_lists)} images, features of {x[0].shape[0]}"
        if len(box_lists) == 0:
            return x[0].new_zeros(0, x[0].shape[1], *self.output_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return _pool(self.level_poolers[0], x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        pooled = x[0].new_zeros(len(rois), x[0].shape[1], *self.output_size)
        for level, (features, pooler) in enumerate(zip(x, self.level_poolers, strict=True)):
            chosen = nonzero_tuple(levels == level)[0]
            pooled.index_put_((chosen,), _pool(pooler, features, rois[chosen]).to(pooled.dtype))
        return pooled


def _pool(pooler: nn.Module, features: Tensor, rois: Tensor) -> Tensor:
    exact = full_precision(features)  # RoIPool, other than ROIAlign, takes features and regions of one type only
    return pooler(exact, rois.to(exact.dtype)).to(features.dtype)


def _levels(scales: Sequence[float]) -> tuple[int, int]:
    """log2 of the stride of the first and of the last level."""
    exact = [-math.log2(scale) for scale in scales]
    levels = [round(level) for level in exact]
    consecutive = bool(levels) and levels == list(range(levels[0], levels[0] + len(levels)))
    if not consecutive or levels[0] < 0 or any(abs(a - b) > 1e-6 for a, b in zip(exact, levels, strict=True)):
        strides = ", ".join(f"{1 / scale:g}" for scale in scales)
        raise ValueError(f"ROIPooler needs feature strides that double from level to level, got {strides or 'none'}")
    return levels[0], levels[-1]


def _level_pooler(pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type == "ROIAlignV2":
        return ROIAlign(output_size, scale, sampling_ratio, aligned=True)
    if pooler_type == "ROIAlign":
        return ROIAlign(output_size, scale, sampling_ratio, aligned=False)
    if pooler_type == "ROIPool":
        return RoIPool(output_size, scale)
    if pooler_type == "ROIAlignRotated":
        raise NotImplementedError("POOLER_TYPE ROIAlignRotated is not provided here; it needs the real detectron2")
    raise ValueError(f"POOLER_TYPE is {pooler_type!r}; expected ROIAlignV2, ROIAlign or ROIPool")
