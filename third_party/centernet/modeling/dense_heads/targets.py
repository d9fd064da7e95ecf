"""What the dense head shall predict: centre heatmaps, positive locations and box distances.

Source: CenterNet (arXiv 1904.07850) on pyramid levels, as in CenterNet2 (arXiv 2103.07461, section 4.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from centernet.modeling.dense_heads.locations import Size, level_axes
from detectron2.structures import Instances

__all__ = ["INVALID_DISTANCE", "TargetAssigner", "Targets"]

INVALID_DISTANCE = -1e8  # pixels; marks locations without a box to regress
_SMALLEST_HEAT = 1e-4


@dataclass(frozen=True)
class Targets:
    """Level-major targets of a batch with M locations."""

    pos_inds: Tensor  # (P,) int64 locations of centres
    labels: Tensor  # (P,) int64 class of each
    distances: Tensor  # (M, 4) to the sides of the box in strides; INVALID_DISTANCE / stride where there is none
    heatmap: Tensor  # (M, 1) or (M, C) in [0, 1]


@dataclass(frozen=True)
class _Objects:
    """The N boxes of all images."""

    boxes: Tensor  # (N, 4) float32
    classes: Tensor  # (N,)
    image: Tensor  # (N,) index of the image
    centers: Tensor  # (N, 2)
    radius_squared: Tensor  # (N,)
    on_level: Tensor  # (N, L) bool: the level's sizes of interest include the box
    counts: tuple[int, ...]  # boxes per image


class TargetAssigner:
    """Makes `Targets` from ground truth.

    Args:
        strides: of the levels, in pixels.
        sizes_of_interest: per level the smallest and largest half diagonal of a box, both included.
        delta: (1 - o) / (1 + o) for the overlap o that sets the radius of the Gaussian.
        min_radius: its lower bound in pixels.
        num_classes: channels of the heatmap; 1 for objects of any class.
        clamp_centers: move centres outside the image to its border before they become positives.
        more_positives: None, or a function of predicted (P, 4) and true (P, 4) distances to losses (P,), the largest
            loss of a positive, and which of the smallest losses of a box is the limit.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        sizes_of_interest: Sequence[Sequence[float]],
        delta: float,
        min_radius: float,
        num_classes: int,
        clamp_centers: bool = False,
        more_positives: tuple[Callable[[Tensor, Tensor], Tensor], float, int] | None = None,
    ) -> None:
        self.strides = tuple(strides)
        self.sizes_of_interest = tuple(tuple(size) for size in sizes_of_interest)
        self.delta = delta
        self.min_radius = min_radius
        self.num_classes = num_classes
        self.clamp_centers = clamp_centers
        self.more_positives = more_positives

    @torch.no_grad()
    def __call__(
        self, gt_instances: Sequence[Instances], sizes: Sequence[Size], pred_distances: Tensor | None = None
    ) -> Targets:
        """Targets for the ground truth of each image.

        Args:
            gt_instances: with ``gt_boxes`` and ``gt_classes``.
            sizes: of the feature maps.
            pred_distances: (M, 4) predictions, needed for more positives.
        """
        objects = self._gather(gt_instances)
        layout = _Layout(sizes, self.strides, len(gt_instances), objects.boxes.device)
        if self.more_positives is None:
            pos_inds, labels = self._center_positives(objects, layout, [each.image_size for each in gt_instances])
        else:
            assert pred_distances is not None, "more positives are chosen by predicted distances"
            pos_inds, labels = self._good_positives(objects, layout, pred_distances)
        return Targets(pos_inds, labels, self._distances(objects, layout), self._heatmap(objects, layout))

    def _gather(self, gt_instances: Sequence[Instances]) -> _Objects:
        boxes = torch.cat([each.gt_boxes.tensor for each in gt_instances]).float()
        counts = tuple(len(each) for each in gt_instances)
        sides = boxes[:, 2:] - boxes[:, :2]
        half_diagonal = sides.square().sum(dim=1).sqrt() / 2
        limits = boxes.new_tensor(self.sizes_of_interest)  # (L, 2)
        radius_squared = 2 * self.delta**2 * sides.prod(dim=1)
        images = torch.arange(len(counts), device=boxes.device)
        return _Objects(
            boxes=boxes,
            classes=torch.cat([each.gt_classes for each in gt_instances]),
            image=images.repeat_interleave(torch.tensor(counts, device=boxes.device), output_size=len(boxes)),
            centers=(boxes[:, :2] + boxes[:, 2:]) / 2,
            radius_squared=radius_squared.clamp(min=self.min_radius**2),
            on_level=(half_diagonal[:, None] >= limits[:, 0]) & (half_diagonal[:, None] <= limits[:, 1]),
            counts=counts,
        )

    def _center_positives(
        self, objects: _Objects, layout: "_Layout", image_sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        """The cells of the centres on the levels of their boxes, box by box; none where the cell is off the map."""
        centers = objects.centers
        if self.clamp_centers:
            largest = centers.new_tensor(image_sizes).flip(-1)[objects.image] - 1  # (N, 2) x, y
            centers = torch.minimum(centers.clamp(min=0), largest)
        cells = layout.cells(centers)  # (N, L, 2)
        chosen, level = (objects.on_level & layout.inside(cells)).nonzero(as_tuple=True)
        return layout.flat_index(cells, objects.image)[chosen, level], objects.classes[chosen]

    def _good_positives(self, objects: _Objects, layout: "_Layout", pred_distances: Tensor) -> tuple[Tensor, Tensor]:
        """Of the 3×3 cells round the centre on every level, those where the predicted box is already good.

        The centre itself, on the levels of the box, always is. Box by box, a location may occur several times.
        """
        loss_function, threshold, topk = self.more_positives
        cells = layout.cells(objects.centers)
        around = cells[:, :, None] + layout.neighbours  # (N, L, 9, 2)
        inside = layout.inside(around)
        targets = layout.distances(around, objects.boxes)  # (N, L, 9, 4)
        valid = inside & (targets >= 0).all(dim=-1)
        indices = layout.flat_index(around, objects.image).masked_fill(~inside, 0)
        losses = loss_function(pred_distances[indices], targets.clamp(min=0)).masked_fill(~valid, torch.inf)
        middle = losses.shape[2] // 2
        always = objects.on_level & valid[:, :, middle]
        losses[:, :, middle] = losses[:, :, middle].masked_fill(always, 0.0)
        losses = losses.flatten(1)  # (N, 9 L)
        limit = losses.new_full((len(losses),), threshold)
        if len(losses):
            limit = losses.kthvalue(min(topk, losses.shape[1]), dim=1).values.clamp(max=threshold)
        chosen, place = (losses < limit[:, None]).nonzero(as_tuple=True)
        return indices.flatten(1)[chosen, place], objects.classes[chosen]

    def _distances(self, objects: _Objects, layout: "_Layout") -> Tensor:
        """Distances at the 3×3 cells round centres, inside the box and on its levels; the nearest box wins.

        Near is by squared distance from the centre over squared radius, 0 in the cell of the centre.
        """
        cells = layout.cells(objects.centers)
        around = cells[:, :, None] + layout.neighbours  # (N, L, 9, 2)
        targets = layout.distances(around, objects.boxes)
        valid = layout.inside(around) & (targets > 0).all(dim=-1) & objects.on_level[:, :, None]
        box, level, neighbour = valid.nonzero(as_tuple=True)
        offset = layout.points(around) - objects.centers[:, None, None]
        far = offset.square().sum(dim=-1) / objects.radius_squared[:, None, None]
        far[:, :, far.shape[2] // 2] = 0.0
        index = layout.flat_index(around, objects.image)[box, level, neighbour]
        far, targets = far[box, level, neighbour], targets[box, level, neighbour]
        # By location, then distance, then box, of which the first of each location stays.
        order = far.sort(stable=True).indices
        order = order[index[order].sort(stable=True).indices]
        index, targets = index[order], targets[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        result = layout.invalid_distances()
        result[index[first]] = targets[first]
        return result

    def _heatmap(self, objects: _Objects, layout: "_Layout") -> Tensor:
        """(M, channels): Gaussians round the centres, on all levels; exactly 1 in the cell of a centre."""
        cells = layout.cells(objects.centers)
        inside = layout.inside(cells)
        flat = (cells[..., 1] * layout.widths + cells[..., 0]).masked_fill(~inside, 0)  # (N, L)
        maps = []
        radius = objects.radius_squared.sqrt()[:, None]
        for level, (size, stride) in enumerate(zip(layout.sizes, self.strides, strict=True)):
            across, down = level_axes(*size, stride, radius.device)
            across = ((across - objects.centers[:, :1]) / radius).square()  # (N, W)
            down = ((down - objects.centers[:, 1:]) / radius).square()  # (N, H)
            far = (down[:, :, None] + across[:, None]).flatten(1)  # (N, M_l)
            cell = flat[:, level, None]
            far.scatter_(1, cell, far.gather(1, cell).masked_fill(inside[:, level, None], 0.0))
            maps += [
                self._nearest(image_far, classes)
                for image_far, classes in zip(
                    far.split(objects.counts), objects.classes.split(objects.counts), strict=True
                )
            ]
        heat = torch.exp(-torch.cat(maps))
        return heat.masked_fill(heat < _SMALLEST_HEAT, 0.0)

    def _nearest(self, far: Tensor, classes: Tensor) -> Tensor:
        """(M_l, channels) smallest of ``far`` (N, M_l) over boxes, of each class if classes have channels."""
        if self.num_classes == 1 and len(far):
            return far.amin(dim=0)[:, None]
        nearest = far.new_full((self.num_classes, far.shape[1]), torch.inf)
        return nearest.scatter_reduce_(0, classes[:, None].expand_as(far), far, "amin").T


class _Layout:
    """Cells of all levels of a batch."""

    def __init__(self, sizes: Sequence[Size], strides: Sequence[int], num_images: int, device: torch.device) -> None:
        self.sizes = tuple(sizes)
        self.areas = [height * width for height, width in sizes]
        self.num_images = num_images
        self.strides = torch.tensor(strides, device=device)  # (L,)
        starts = [num_images * sum(self.areas[:level]) for level in range(len(sizes))]
        self._starts, self._areas = torch.tensor([starts, self.areas], device=device)
        self._extent = torch.tensor(self.sizes, device=device).flip(-1)  # (L, 2) width, height
        self.widths = self._extent[:, 0]
        steps = torch.arange(-1, 2, device=device)
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        self.neighbours = torch.stack((columns, rows), dim=-1).reshape(9, 2)  # x, y steps, row by row

    def cells(self, points: Tensor) -> Tensor:
        """(N, L, 2) int64 column and row, on each level, of the cell with each of the points (N, 2)."""
        return (points[:, None] / self.strides[:, None]).floor().long()

    def inside(self, cells: Tensor) -> Tensor:
        """(N, L, ...) bool: which of the cells (N, L, ..., 2) are on the map."""
        extent = self._extent.view(-1, *[1] * (cells.dim() - 3), 2)
        return ((cells >= 0) & (cells < extent)).all(dim=-1)

    def points(self, cells: Tensor) -> Tensor:
        """(N, L, K, 2) float32 centres of the cells (N, L, K, 2) in pixels."""
        strides = self.strides[:, None, None]
        return (cells * strides + strides // 2).float()

    def distances(self, cells: Tensor, boxes: Tensor) -> Tensor:
        """(N, L, K, 4) from the centres of cells (N, L, K, 2) to the sides of boxes (N, 4), in strides."""
        points = self.points(cells)
        boxes = boxes[:, None, None]
        return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1) / self.strides[:, None, None]

    def flat_index(self, cells: Tensor, image: Tensor) -> Tensor:
        """(N, L, ...) level-major index of the cells (N, L, ..., 2); meaningless for those off the map."""
        trailing = [1] * (cells.dim() - 3)
        before = self._starts + image[:, None] * self._areas  # (N, L)
        before = before.reshape(*before.shape, *trailing)
        return before + cells[..., 1] * self.widths.view(-1, *trailing) + cells[..., 0]

    def invalid_distances(self) -> Tensor:
        """(M, 4) filled with the mark of locations without a box."""
        marks = INVALID_DISTANCE / self.strides.float()
        counts = self._areas * self.num_images
        return marks.repeat_interleave(counts, output_size=self.num_images * sum(self.areas))[:, None].repeat(1, 4)
