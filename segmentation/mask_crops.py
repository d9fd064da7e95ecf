"""Crops of masked objects, resized for CLIP, many at a time (ZSSeg, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_boxes", "crop_taps", "expand_boxes", "resize_crops"]

_CUBIC = -0.75  # coefficient of the cubic kernel, as in torch's bicubic interpolation
_BYTES_PER_CHUNK = 64 << 20  # of masked images in float32


def crop_boxes(binary: Tensor, expand_ratio: float = 1.0) -> Tensor:
    """(n, 4) int64 boxes (x1, y1, x2, y2), ends exclusive, round non-empty masks (n, H, W); at least a pixel large."""
    height, width = binary.shape[-2:]
    rows, columns = binary.any(2), binary.any(1)
    first = torch.stack([columns.int().argmax(1), rows.int().argmax(1)], 1)
    last = torch.stack([width - columns.flip(1).int().argmax(1), height - rows.flip(1).int().argmax(1)], 1)
    boxes = expand_boxes(torch.cat([first, last], 1), expand_ratio, (height, width))
    return torch.cat([boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2] + 1)], 1)  # a ratio below 1 may leave nothing


def expand_boxes(boxes: Tensor, ratio: float, limit: tuple[int, int] | None = None) -> Tensor:
    """Boxes (n, 4), sides times ``ratio`` about their centres, truncated towards zero, within 0 and limit (y, x)."""
    start, end = boxes[:, :2].double(), boxes[:, 2:].double()
    centre, half = (start + end) / 2, (end - start) * ratio / 2
    expanded = torch.cat([centre - half, centre + half], 1).trunc().long()
    if limit is None:
        return expanded
    return torch.minimum(expanded.clamp(min=0), expanded.new_tensor([limit[1], limit[0], limit[1], limit[0]]))


def resize_crops(image: Tensor, weights: Tensor, boxes: Tensor, side: int, outside: Tensor) -> Tensor:
    """(n, 3, side, side) crops of masks in an image, by bicubic interpolation without antialiasing.

    Equal, up to rounding, to resizing ``(image · w + outside · (1 - w))[:, y1:y2, x1:x2]`` of each mask by itself, but
    without a loop over masks: rows and then columns are weighed sums of four others, all of them one operation each.

    Args:
        image: (3, H, W) normalised image.
        weights: (n, H, W), 1 inside of the mask.
        boxes: (n, 4) int64 (x1, y1, x2, y2).
        outside: (3,) normalised value of pixels outside of the mask.
    """
    channels = len(image)
    rows, row_weights = crop_taps(boxes[:, 1], boxes[:, 3], side)  # (n, side, 4)
    columns, column_weights = crop_taps(boxes[:, 0], boxes[:, 2], side)
    inside = image - outside[:, None, None]
    per_chunk = max(1, _BYTES_PER_CHUNK // (4 * image.numel()))
    crops = []
    for start in range(0, len(boxes), per_chunk):  # a bound on memory; usually a few rounds
        part = slice(start, start + per_chunk)
        masked = inside * weights[part, None].to(image.dtype)  # (m, 3, H, W)
        shorter = _weighed_rows(masked, rows[part], row_weights[part])  # (m, 3, side, W)
        crops.append(_weighed_rows(shorter.transpose(2, 3), columns[part], column_weights[part]).transpose(2, 3))
    if not crops:
        return image.new_zeros(0, channels, side, side)
    return torch.cat(crops) + outside[:, None, None]


def crop_taps(start: Tensor, end: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Places and weights (n, side, 4) of the pixels that each of ``side`` pixels of a resized line is made of.

    The line is that from ``start`` to ``end`` (n,), and nothing beyond it counts. In float32, as torch does it.
    """
    scale = (end - start).float() / side
    place = (torch.arange(side, device=start.device) + 0.5) * scale[:, None] - 0.5  # (n, side)
    nearest = place.floor()
    steps = torch.arange(-1, 3, device=start.device)  # the four pixels under the kernel
    index = (nearest.long()[..., None] + steps).clamp(min=0)
    index = torch.minimum(index, (end - start - 1)[:, None, None]) + start[:, None, None]
    return index, _cubic((place - nearest)[..., None] - steps)


def _weighed_rows(maps: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """(m, C, side, W) sums of rows ``index`` (m, side, 4) of maps (m, C, H, W), times ``weights`` (m, side, 4)."""
    count, channels, height, width = maps.shape
    first = torch.arange(count * channels, device=maps.device).view(count, channels, 1, 1) * height
    index = (index[:, None] + first).view(-1, 4)
    weights = weights[:, None].expand(-1, channels, -1, -1).reshape(-1, 4).to(maps.dtype)
    table = maps.reshape(-1, width)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights).view(count, channels, -1, width)


def _cubic(distance: Tensor) -> Tensor:
    """Value of the cubic convolution kernel (Keys, 1981) at distances up to 2."""
    x = distance.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return torch.where(x <= 1, near, far)
