"""Axis-aligned boxes: their formats, a container for one image's boxes, and overlap functions."""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor


@unique
class BoxMode(IntEnum):
    """Meanings of the four (or five) numbers of a box."""

    XYXY_ABS = 0  # (x0, y0, x1, y1) in pixels
    XYWH_ABS = 1  # (x0, y0, width, height) in pixels
    XYXY_REL = 2  # relative to the image size; not supported by convert()
    XYWH_REL = 3  # relative to the image size; not supported by convert()
    XYWHA_ABS = 4  # rotated; not supported by convert()

    @staticmethod
    def convert(box: Any, from_mode: "BoxMode", to_mode: "BoxMode") -> Any:
        """Box or boxes in another format, of the same type as given.

        Args:
            box: four numbers as list or tuple, or an array or tensor (..., 4). Lists and tuples pass through a float32
                tensor unless all their numbers are integers; arrays and tensors keep their dtype and are copied.
            from_mode: format of ``box``.
            to_mode: format wanted. Equal to ``from_mode``: the very same object comes back.
        Raises:
            ValueError: not four numbers per box.
            NotImplementedError: relative or rotated formats.
        """
        if from_mode == to_mode:
            return box
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if {from_mode, to_mode} != {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
            raise NotImplementedError(
                f"BoxMode.convert from {from_mode.name} to {to_mode.name}: only XYXY_ABS and XYWH_ABS convert here; "
                "rotated boxes need the real detectron2"
            )
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"box {box} holds {len(box)} numbers, expected 4 as {from_mode.name}")
            numbers = BoxMode.convert(torch.tensor(box), from_mode, to_mode).tolist()
            return tuple(numbers) if isinstance(box, tuple) else numbers
        if box.shape[-1] != 4:
            raise ValueError(f"boxes of shape {tuple(box.shape)} cannot be {from_mode.name}: expected (..., 4)")
        converted = box.copy() if isinstance(box, np.ndarray) else box.clone()
        if to_mode == BoxMode.XYWH_ABS:
            converted[..., 2:] -= converted[..., :2]
        else:
            converted[..., 2:] += converted[..., :2]
        return converted


class Boxes:
    """The boxes of one image: ``tensor`` is (N, 4) float32, XYXY in absolute pixels."""

    def __init__(self, tensor: Any) -> None:
        """``tensor``: (N, 4) tensor or anything like an array; whatever has no elements becomes (0, 4)."""
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(np.asarray(tensor, dtype=np.float32), device="cpu")
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        assert tensor.dim() == 2 and tensor.shape[1] == 4, f"boxes must be (N, 4), got {tuple(tensor.shape)}"
        self.tensor: Tensor = tensor

    def clone(self) -> "Boxes":
        """A deep copy."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        """The same boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """(N,) width times height, without clamping: a box turned inside out on one axis has a negative area."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return sides[:, 0] * sides[:, 1]

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit x to [0, width] and y to [0, height] of ``box_size`` = (height, width).

        Changes ``self.tensor``, not the storage it had.
        """
        assert torch.isfinite(self.tensor).all(), "boxes to clip hold infinite or NaN coordinates"
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)  # (N, 2)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool, True where both sides are longer than ``threshold``."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        """Boxes at an index, a slice, a bool mask or an index tensor; an int gives one box, still (1, 4)."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, 4))
        chosen = self.tensor[item]
        assert chosen.dim() == 2, f"indexing boxes by {item} gives shape {tuple(chosen.shape)}, expected (N, 4)"
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """One (4,) tensor per box."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool, True for boxes that leave ``box_size`` = (height, width) by less than ``boundary_threshold``."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        margin = boundary_threshold
        return (x0 >= -margin) & (y0 >= -margin) & (x1 < width + margin) & (y1 < height + margin)

    def get_centers(self) -> Tensor:
        """(N, 2) centres as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply the coordinates, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """All boxes of a list in one; an empty list gives (0, 4)."""
        assert isinstance(boxes_list, (list, tuple)), f"Boxes.cat takes a list, got {type(boxes_list).__name__}"
        assert all(isinstance(boxes, Boxes) for boxes in boxes_list), "Boxes.cat takes a list of Boxes"
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        return self.tensor.device


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection areas."""
    first, second = boxes1.tensor.t().contiguous(), boxes2.tensor.t().contiguous()  # (4, N), (4, M)

    def overlap(low: int, high: int) -> Tensor:
        """(N, M) common length along one axis, given the rows of its two ends."""
        start = torch.max(first[low, :, None], second[low])
        stop = torch.min(first[high, :, None], second[high])
        return stop.sub_(start).clamp_(min=0)

    # One axis after the other: faster than tensors (N, M, 2), whose innermost loops are of length 2.
    return overlap(0, 2) * overlap(1, 3)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union; 0, never NaN, where boxes do not intersect."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area()[None] - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of the second box; 0 where boxes do not intersect."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return torch.where(intersection > 0, intersection / boxes2.area()[None], 0.0)


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """(P, M, 4) signed distances of points (P, 2) from the left, top, right and bottom sides; all positive inside."""
    points = points[:, None]  # (P, 1, 2)
    box = boxes.tensor[None]  # (1, M, 4)
    return torch.cat((points - box[..., :2], box[..., 2:] - points), dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) IoU of the i-th box with the i-th box; NaN for two boxes without area."""
    assert len(boxes1) == len(boxes2), f"matched boxes must be as many: {len(boxes1)} and {len(boxes2)}"
    low = torch.max(boxes1.tensor[:, :2], boxes2.tensor[:, :2])
    high = torch.min(boxes1.tensor[:, 2:], boxes2.tensor[:, 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    return intersection / (boxes1.area() + boxes2.area() - intersection)
