"""ROIAlign (Mask R-CNN, arXiv 1703.06870)."""

from torch import Tensor, nn
from torchvision.ops import roi_align

from detectron2.layers.roi_align_cpu import pays, roi_align_by_rows
from detectron2.layers.wrappers import full_precision

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Resamples the part of a feature map under each region to a fixed size."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        """
        Args:
            output_size: (height, width) of the result.
            spatial_scale: feature cells per unit of the region coordinates.
            sampling_ratio: samples per bin and axis; 0 takes as many as a bin has cells, rounded up.
            aligned: sample at exact positions. False shifts regions by half a cell and makes their sides at least one
                cell, as the first published version did.
        """
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """(K, C, *output_size) from ``input`` (N, C, H, W) and ``rois`` (K, 5): image index, x0, y0, x1, y1."""
        assert rois.dim() == 2 and rois.shape[1] == 5, f"rois must be (K, 5), got {tuple(rois.shape)}"
        # Coordinates in half precision would be wrong by up to several pixels.
        exact = full_precision(input)
        rois = rois.to(exact.dtype)
        pool = roi_align_by_rows if pays(exact, rois, self.output_size) else roi_align
        pooled = pool(exact, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)
        return pooled.to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
