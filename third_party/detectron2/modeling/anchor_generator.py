"""Anchors: the boxes at every position of a feature map that dense predictions start from."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.structures.boxes import Boxes
from detectron2.utils.left_out import left_out
from detectron2.utils.registry import Registry

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Classes made as ``cls(cfg, input_shape)``, where ``input_shape`` lists the ShapeSpec of each feature map; called with
the feature maps, they return one Boxes per map.
"""

__getattr__ = left_out(__name__, "RotatedAnchorGenerator")


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of every size and aspect ratio at every position (Faster R-CNN, arXiv 1506.01497)."""

    box_dim: int = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """
        Args:
            sizes: per level, square roots of anchor areas in pixels; one list serves all levels.
            aspect_ratios: per level, height over width; one list serves all levels.
            strides: of each level.
            offset: position of the first anchor's centre in units of the stride, in [0, 1).
        """
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ValueError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; expected at least 0 and below 1")
        self.strides = list(strides)
        self.offset = offset
        all_sizes = _per_level(sizes, len(self.strides), "SIZES")
        all_ratios = _per_level(aspect_ratios, len(self.strides), "ASPECT_RATIOS")
        for level, (level_sizes, level_ratios) in enumerate(zip(all_sizes, all_ratios, strict=True)):
            anchors = self.generate_cell_anchors(level_sizes, level_ratios)
            # Follows the module's device, stays out of checkpoints.
            self.register_buffer(f"_cell_anchors_{level}", anchors, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    def cell_anchors(self) -> list[Tensor]:
        """Per level, the (A, 4) anchors of one position, around (0, 0)."""
        return [getattr(self, f"_cell_anchors_{level}") for level in range(len(self.strides))]

    @property
    def num_anchors(self) -> list[int]:
        """Per level, the number of anchors at each position."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """Another name of ``num_anchors``."""
        return self.num_anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> Tensor:
        """(A, 4) anchors around (0, 0), ratios running fastest; all ratios of a size have the same area."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2 / ratio)
                height = ratio * width
                anchors.append([-width / 2, -height / 2, width / 2, height / 2])
        return torch.tensor(anchors)

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Per feature map (N, C, H, W) its H · W · A anchors, ordered by row, column, anchor."""
        assert len(features) == len(self.strides), f"{len(features)} feature maps for {len(self.strides)} anchor levels"
        return [
            Boxes(self._grid(anchors, feature.shape[-2:], stride))
            for anchors, feature, stride in zip(self.cell_anchors, features, self.strides, strict=True)
        ]

    def _grid(self, anchors: Tensor, size: Sequence[int], stride: int) -> Tensor:
        height, width = size
        y, x = (
            (torch.arange(side, dtype=torch.float32, device=anchors.device) + self.offset) * stride
            for side in (height, width)
        )
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)  # (H, W, 4)
        return (shifts[:, :, None] + anchors).reshape(-1, 4)


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The anchor generator named by ``cfg.MODEL.ANCHOR_GENERATOR.NAME``."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


def _per_level(values: Sequence[Any], levels: int, key: str) -> list[Sequence[float]]:
    """One list of numbers per level, from such lists or from a single one."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) == 0:
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.{key} must be a list of numbers per feature map, got {values!r}")
    if not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        return [values[0]] * levels
    if len(values) != levels:
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {levels} feature maps")
    return list(values)
