"""Stretching small masks over their boxes in the image."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_BYTES = 1 << 30  # largest intermediate result on accelerators
_BYTES_PER_PIXEL = 3 * 4  # float32 x and y of the sampling grid and the sampled value


def paste_masks_in_image(masks: Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks of the whole image from masks relative to boxes, by bilinear interpolation.

    Values beyond a mask's border are 0. On the CPU pixels further than about one from the box stay 0; elsewhere all
    pixels are computed, which makes no difference for thresholds of 0.5 and more.

    Args:
        masks: (N, M, M) values in [0, 1], integers included.
        boxes: Boxes or (N, 4) tensor, XYXY.
        image_shape: (H, W).
        threshold: of the value from which on a pixel is inside. Negative asks for the values themselves.
    Returns:
        (N, H, W) bool; with a negative threshold uint8 of 255 times the value, rounded down. No masks give uint8.
    """
    assert masks.dim() == 3 and masks.shape[1] == masks.shape[2], f"masks must be (N, M, M), got {tuple(masks.shape)}"
    corners: Tensor = getattr(boxes, "tensor", boxes)
    assert len(corners) == len(masks), f"{len(corners)} boxes for {len(masks)} masks"
    height, width = image_shape
    if len(masks) == 0:
        return masks.new_empty((0, height, width), dtype=torch.uint8)
    masks, corners = masks.float(), corners.float()
    pasted = masks.new_zeros((len(masks), height, width), dtype=torch.bool if threshold >= 0 else torch.uint8)
    if masks.device.type == "cpu":
        _paste_one_by_one(masks, corners, pasted, threshold)
    else:
        _paste_whole_images(masks, corners, pasted, threshold)
    return pasted


def _paste_one_by_one(masks: Tensor, corners: Tensor, pasted: Tensor, threshold: float) -> None:
    """Fill ``pasted``, computing only the pixels near each box.

    Bilinear interpolation on a grid parallel to the axes is a linear interpolation of columns, then one of rows.
    """
    height, width = pasted.shape[1:]
    size = masks.shape[1]
    padded = F.pad(masks.transpose(1, 2), (1, 1, 1, 1))  # (N, columns, rows), zeros around
    for mask, corner, target in zip(padded, corners.tolist(), pasted, strict=True):
        x0, y0, x1, y1 = corner
        left, right = max(math.floor(min(x0, x1)) - 1, 0), min(math.ceil(max(x0, x1)) + 1, width)
        top, bottom = max(math.floor(min(y0, y1)) - 1, 0), min(math.ceil(max(y0, y1)) + 1, height)
        if left >= right or top >= bottom or x0 == x1 or y0 == y1:
            continue
        stretched = _stretch(mask, x0, x1, left, right, size)  # (w, rows)
        values = _stretch(stretched.t().contiguous(), y0, y1, top, bottom, size)  # (h, w)
        _store(values, target[top:bottom, left:right], threshold)


def _stretch(lines: Tensor, low: float, high: float, start: int, stop: int, size: int) -> Tensor:
    """Lines at the centres of pixels ``start`` to ``stop``, from ``size`` + 2 lines of which the outer two are 0.

    The inner ones divide ``low`` to ``high`` evenly.
    """
    scale = size / (high - low)
    # Line 0 has its centre half a line outside of the box. In double precision, as two large numbers cancel here.
    position = torch.arange(start, stop, dtype=torch.float64).mul_(scale).add_((0.5 - low) * scale + 0.5)
    position.clamp_(min=0, max=size + 1)
    before = position.long().clamp_(max=size)
    fraction = position.sub_(before).to(lines.dtype)[:, None]
    return torch.lerp(lines.index_select(0, before), lines.index_select(0, before + 1), fraction)


def _paste_whole_images(masks: Tensor, corners: Tensor, pasted: Tensor, threshold: float) -> None:
    """Fill ``pasted``, computing all pixels of as many images at once as memory allows."""
    count, height, width = pasted.shape
    chunks = math.ceil(count * height * width * _BYTES_PER_PIXEL / _CHUNK_BYTES)
    step = math.ceil(count / chunks)
    y = torch.arange(height, device=masks.device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=masks.device, dtype=torch.float32) + 0.5
    for first in range(0, count, step):
        chosen = slice(first, first + step)
        x0, y0, x1, y1 = corners[chosen, :, None].unbind(dim=1)  # (n, 1) each
        grid_x = _limited((x - x0) / (x1 - x0) * 2 - 1)[:, None, :].expand(-1, height, width)
        grid_y = _limited((y - y0) / (y1 - y0) * 2 - 1)[:, :, None].expand(-1, height, width)
        grid = torch.stack((grid_x, grid_y), dim=3)
        values = F.grid_sample(masks[chosen, None], grid, align_corners=False)[:, 0]
        _store(values, pasted[chosen], threshold)


def _limited(grid: Tensor) -> Tensor:
    """Grid coordinates with those of boxes without extent (infinite, NaN) outside of the mask, where values are 0."""
    return grid.nan_to_num(nan=-3.0).clamp(min=-3, max=3)


def _store(values: Tensor, target: Tensor, threshold: float) -> None:
    if threshold >= 0:
        torch.ge(values, threshold, out=target)
    else:
        target.copy_(values * 255)
