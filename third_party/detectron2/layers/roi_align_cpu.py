"""ROIAlign on a CPU as sums of weighted rows of the feature map: many times faster than a loop over samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["pays", "roi_align_by_rows"]

_CHANNELS = 32  # from which on a row is long enough
_REGIONS = 16
_CELLS_PER_BIN = 32  # with fewer bins for a map, turning the map into rows takes longer than reading it
_WEIGHTS = 1 << 21  # that are in work at a time


def pays(input: Tensor, rois: Tensor, output_size: tuple[int, int]) -> bool:
    """Whether `roi_align_by_rows` can do it, and faster."""
    return (
        input.device.type == "cpu"
        and input.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and input.shape[1] >= _CHANNELS
        and len(rois) >= _REGIONS
        and len(rois) * output_size[0] * output_size[1] * _CELLS_PER_BIN >= input[:, 0].numel()
        and bool(rois.isfinite().all())
    )


def roi_align_by_rows(
    input: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """What ``torchvision.ops.roi_align`` gives, up to rounding; gradients for ``input`` alone, as there.

    A bin is a weighted sum of cells, and a weight the product of one for the row and one for the column of its cell.
    """
    images, channels, height, width = input.shape
    boxes = rois[:, 1:].detach() * spatial_scale - (0.5 if aligned else 0.0)
    sizes = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1)
    first_cells = rois[:, 0].to(torch.int32) * (height * width)
    cells, weights, counts = [], [], []
    for part in torch.arange(len(rois)).split(_regions_at_a_time(sizes, output_size, (height, width))):
        down, y = _along(boxes[part, 1], sizes[part, 1], output_size[0], sampling_ratio, height)
        across, x = _along(boxes[part, 0], sizes[part, 0], output_size[1], sampling_ratio, width)
        weight = (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten(3).flatten(0, 2)
        rows = first_cells[part, None, None] + y * width
        cell = (rows[:, :, None, :, None] + x[:, None, :, None, :]).flatten(3).flatten(0, 2)
        used = weight != 0
        cells.append(cell[used])
        weights.append(weight[used])
        counts.append(used.sum(1, dtype=torch.int32))
    ends = torch.cat(counts).cumsum(0, dtype=torch.int32)
    sums = F.embedding_bag(
        torch.cat(cells),
        input.permute(0, 2, 3, 1).reshape(images * height * width, channels),
        ends - torch.cat(counts),
        mode="sum",
        per_sample_weights=torch.cat(weights),
    )
    return sums.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


def _along(start: Tensor, length: Tensor, bins: int, sampling_ratio: int, size: int) -> tuple[Tensor, Tensor]:
    """Weights (R, bins, L) and cells (R, bins, L) int32 of the bins of regions along one axis of ``size`` cells.

    Each bin is the mean of samples, each sample lies between two cells; beyond one cell outside there is nothing.
    """
    step = (length / bins)[:, None, None]
    count = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
    sample = torch.arange(max(1, int(count.max())), dtype=start.dtype)
    bin_start = start[:, None, None] + torch.arange(bins, dtype=start.dtype)[:, None] * step
    place = bin_start + (sample + 0.5) * step / count
    part = torch.where((sample < count) & (place >= -1) & (place <= size), 1 / count, 0.0)
    place = place.nan_to_num(0).clamp(0, size - 1)  # regions without area have no samples
    low = place.long()
    high = (low + 1).clamp(max=size - 1)
    share = place - low
    first = low.amin(-1, keepdim=True)
    cells = first + torch.arange(int((high - first).max()) + 1)
    weights = torch.zeros(cells.shape, dtype=start.dtype)
    weights.scatter_add_(2, low - first, part * (1 - share))
    weights.scatter_add_(2, high - first, part * share)
    return weights, cells.clamp(max=size - 1).to(torch.int32)


def _regions_at_a_time(sizes: Tensor, output_size: tuple[int, int], limits: tuple[int, int]) -> int:
    """So many that the weights of all cells under their bins fit into the memory that is meant for them.

    So have their samples along an axis, which are many where regions reach far beyond the map.
    """
    bins = sizes.new_tensor([output_size[1], output_size[0]])
    cells = (sizes / bins).ceil().clamp(min=0) + 2
    weights = torch.minimum(cells, sizes.new_tensor([limits[1], limits[0]])).prod(1).max() * bins.prod()
    return min(64, max(1, int(_WEIGHTS / torch.maximum(weights, (cells * bins).max()))))
