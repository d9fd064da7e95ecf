"""Instance masks of one image: as bitmaps, as polygons, and as small grids relative to their boxes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from torch import Tensor

from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.roi_align import ROIAlign
from detectron2.structures.boxes import Boxes
from detectron2.utils.memory import retry_if_cuda_oom

_MIN_SIDE = 0.1  # pixels; keeps the magnification of degenerate boxes finite


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool union of polygons, each a flat array x0, y0, x1, y1, ... in pixels."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    runs = mask_utils.merge(mask_utils.frPyObjects(list(polygons), height, width))
    return mask_utils.decode(runs).astype(bool)


class BitMasks:
    """Masks as bitmaps of the whole image: ``tensor`` is (N, H, W) bool, ``image_size`` is (H, W)."""

    def __init__(self, tensor: Any) -> None:
        """``tensor``: (N, H, W) tensor or array; nonzero means inside."""
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(np.asarray(tensor), device="cpu").to(torch.bool)
        assert tensor.dim() == 3, f"bit masks must be (N, H, W), got {tuple(tensor.shape)}"
        self.image_size: tuple[int, int] = (tensor.shape[1], tensor.shape[2])
        self.tensor: Tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """The same masks after ``tensor.to(...)``."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks":
        """Masks at an index, a slice, a bool mask or an index tensor; an int gives (1, H, W)."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        chosen = self.tensor[item]
        assert chosen.dim() == 3, f"indexing masks by {item} gives shape {tuple(chosen.shape)}, expected (N, H, W)"
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        """One (H, W) tensor per mask."""
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    def nonempty(self) -> Tensor:
        """(N,) bool, True for masks with any pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | Sequence[Sequence[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Bitmaps of (height, width) from polygons."""
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        bitmaps = [polygons_to_bitmask(instance, height, width) for instance in polygons]
        return BitMasks(np.stack(bitmaps) if bitmaps else np.zeros((0, height, width), dtype=bool))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """(N, mask_size, mask_size) bool: mask i inside box i, resampled by ROIAlign and cut at 0.5.

        ``boxes``: (N, 4) XYXY. A training target for mask heads; on the masks' device.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        boxes = boxes.to(self.device)
        rois = torch.cat((torch.arange(len(boxes)).to(boxes)[:, None], boxes), dim=1)
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        return align(self.tensor[:, None].float(), rois.float()).squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes, the right and bottom side one past the last pixel; zeros for an empty mask."""
        low_x, high_x = _extent(self.tensor.any(dim=1))
        low_y, high_y = _extent(self.tensor.any(dim=2))
        return Boxes(torch.stack((low_x, low_y, high_x, high_y), dim=1))

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """All masks of a non-empty list in one."""
        assert isinstance(bitmasks_list, (list, tuple)) and len(bitmasks_list) > 0, "BitMasks.cat needs a list"
        assert all(isinstance(masks, BitMasks) for masks in bitmasks_list), "BitMasks.cat takes a list of BitMasks"
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied position and one past the last, for each row of (N, L) bool; (0, 0) where there is none."""
    length = occupied.shape[1]
    position = torch.arange(length, device=occupied.device)
    low = torch.where(occupied, position, length).amin(dim=1) if length else occupied.new_zeros(len(occupied))
    high = torch.where(occupied, position + 1, 0).amax(dim=1) if length else occupied.new_zeros(len(occupied))
    return torch.where(high > 0, low, 0), high


class PolygonMasks:
    """Masks as polygons: ``polygons[i]`` lists the parts of object i, each a flat float64 array x0, y0, x1, y1, ...

    Always on the CPU.
    """

    def __init__(self, polygons: Sequence[Sequence[Any]]) -> None:
        """``polygons``: per object a list of polygons, each with an even number, at least 6, of coordinates."""
        if not isinstance(polygons, list):
            raise ValueError(f"PolygonMasks takes a list of lists of polygons, got {type(polygons).__name__}")
        self.polygons: list[list[np.ndarray]] = [_checked(parts, row) for row, parts in enumerate(polygons)]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Itself: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __getitem__(self, item: int | slice | list[int] | Tensor | np.ndarray) -> "PolygonMasks":
        """Masks at an index, a slice, a list of indices, a bool mask or an index tensor."""
        if isinstance(item, int):
            return _unchecked([self.polygons[item]])
        if isinstance(item, slice):
            return _unchecked(self.polygons[item])
        if isinstance(item, (Tensor, np.ndarray)):
            positions = torch.as_tensor(item)
            assert positions.dim() == 1, f"polygons take an index of one dimension, got {tuple(positions.shape)}"
            if positions.dtype == torch.bool:
                assert len(positions) == len(self), f"a mask of {len(positions)} values for {len(self)} polygon masks"
                positions = positions.nonzero().squeeze(1)
            elif positions.is_floating_point():
                raise ValueError(f"polygons cannot be indexed by a tensor of {positions.dtype}")
            item = positions.tolist()
        return _unchecked([self.polygons[position] for position in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The polygons of one object after the other."""
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """(N,) bool, True for objects with a polygon."""
        return torch.tensor([len(parts) > 0 for parts in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """(N,) sums of the polygons' areas in square pixels; overlapping parts count twice."""
        areas = [sum(_shoelace(polygon) for polygon in parts) for parts in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def get_bounding_boxes(self) -> Boxes:
        """Boxes around all points of each object, the right and bottom side at least 0; zeros without polygons."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for box, parts in zip(boxes, self.polygons, strict=True):
            if parts:
                points = np.concatenate(parts).reshape(-1, 2)
                box[:2] = points.min(axis=0)
                box[2:] = np.maximum(points.max(axis=0), 0)
        return Boxes(torch.from_numpy(boxes))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """(N, mask_size, mask_size) bool: object i rasterised inside box i. On the boxes' device.

        ``boxes``: (N, 4) XYXY.
        """
        assert len(boxes) == len(self), f"{len(boxes)} boxes for {len(self)} masks"
        corners = boxes.detach().cpu().float()
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=_MIN_SIDE)
        factors = (mask_size / sides).numpy()  # (N, 2), for x and y
        origins = corners[:, :2].numpy()
        targets = np.zeros((len(self), mask_size, mask_size), dtype=bool)
        for target, parts, origin, factor in zip(targets, self.polygons, origins, factors, strict=True):
            local = [((polygon.reshape(-1, 2) - origin) * factor).reshape(-1) for polygon in parts]
            target[:] = polygons_to_bitmask(local, mask_size, mask_size)
        return torch.from_numpy(targets).to(boxes.device)

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """All masks of a non-empty list in one."""
        assert isinstance(polymasks_list, (list, tuple)) and len(polymasks_list) > 0, "PolygonMasks.cat needs a list"
        assert all(isinstance(each, PolygonMasks) for each in polymasks_list), "PolygonMasks.cat takes PolygonMasks"
        return _unchecked([parts for masks in polymasks_list for parts in masks.polygons])


def _checked(parts: Any, row: int) -> list[np.ndarray]:
    if not isinstance(parts, list):
        raise ValueError(f"polygons of instance {row} must be a list of polygons, got {type(parts).__name__}")
    arrays = []
    for polygon in parts:
        array = np.asarray(polygon.cpu() if isinstance(polygon, Tensor) else polygon, dtype=np.float64)
        if array.ndim != 1 or len(array) % 2 != 0 or len(array) < 6:
            raise ValueError(
                f"a polygon of instance {row} has shape {array.shape}; expected a flat list of at least 6 coordinates, "
                "an even number"
            )
        arrays.append(array)
    return arrays


def _unchecked(polygons: list[list[np.ndarray]]) -> PolygonMasks:
    """PolygonMasks from polygons that went through a constructor before."""
    masks = PolygonMasks([])
    masks.polygons = polygons
    return masks


def _shoelace(polygon: np.ndarray) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return float(0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


class ROIMasks:
    """Masks as small grids, each relative to a box: ``tensor`` is (N, M, M), usually probabilities."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"ROI masks must be (N, M, M), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> "ROIMasks":
        """The same masks on ``device``."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: slice | Tensor) -> "ROIMasks":
        """Masks at a slice, a bool mask or an index tensor."""
        chosen = self.tensor[item]
        if chosen.dim() != 3:
            raise ValueError(f"indexing ROI masks by {item} gives shape {tuple(chosen.shape)}, expected (N, M, M)")
        return ROIMasks(chosen)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)}, size={tuple(self.tensor.shape[1:])})"

    def to_bitmasks(self, boxes: Boxes | Tensor, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Masks of the whole image, each grid stretched over its box (see ``paste_masks_in_image``)."""
        paste = retry_if_cuda_oom(paste_masks_in_image)
        corners = boxes.tensor if isinstance(boxes, Boxes) else boxes
        return BitMasks(paste(self.tensor, corners, (height, width), threshold=threshold))
