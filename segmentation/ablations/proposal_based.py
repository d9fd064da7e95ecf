"""CLIP on regions that another program proposes, such as selective search; nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from prompt_pretrain.array_files import read_npy
from prompt_pretrain.errors import InputError
from segmentation.adapter_setup import build_mask_adapter
from segmentation.batch_vocabulary import BatchVocabulary
from segmentation.clip_adapter import MaskFormerClipAdapter

__all__ = ["ZeroShotProposalBasedSegmentor"]

_REGIONS_PER_CALL = 64  # bounds the memory of their masks


@META_ARCH_REGISTRY.register()
class ZeroShotProposalBasedSegmentor(nn.Module):
    """Classifies the regions of an image, read from a file, by their crops.

    The folder MODEL.CLIP_ADAPTER.PROPOSALS has ``<image stem>.npy`` for each image: integers (h, w), of any size with
    the image's aspect ratio, that number the regions; negative where there is none.
    """

    @configurable
    def __init__(self, *, clip_adapter: MaskFormerClipAdapter, proposals: str, input_format: str = "RGB") -> None:
        """Set up.

        Args:
            proposals: the folder.
            input_format: "RGB" or "BGR", of the images.
        Raises:
            InputError: no such folder.
        """
        super().__init__()
        if not proposals or not Path(proposals).is_dir():
            raise InputError(
                f"MODEL.CLIP_ADAPTER.PROPOSALS is {proposals!r}; give the folder with <image stem>.npy for each image, "
                "region numbers from a segmentation such as skimage.segmentation.felzenszwalb saved by numpy.save"
            )
        self.clip_adapter = clip_adapter
        self.proposals = Path(proposals)
        self.input_format = input_format
        self.vocabulary = BatchVocabulary()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if cfg.TEST.AUG.ENABLED:
            raise InputError("TEST.AUG.ENABLED is True, but regions of a file are not flipped with their image")
        return {
            "clip_adapter": build_mask_adapter(cfg, cfg.MODEL.CLIP_ADAPTER),
            "proposals": cfg.MODEL.CLIP_ADAPTER.get("PROPOSALS", ""),
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        return self.clip_adapter.pixel_mean.device

    def set_classes(self, class_names: Sequence[str] | None, seen: Sequence[int] | None = None) -> None:
        """Segment these classes whatever data set the inputs name; None goes back to that. ``seen`` is not used."""
        self.vocabulary.set(class_names, seen)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Per image ``{"sem_seg": (K, height, width)}`` CLIP's probabilities; 0 outside of all regions.

        Args:
            batched_inputs: per image ``image`` (3, H, W), ``file_name``, ``meta`` with the ``dataset_name`` and
                optionally ``height`` and ``width`` of the output.
        Raises:
            InputError: in training; a region file that is missing or no integer array of two dimensions.
        """
        if self.training:
            raise InputError("ZeroShotProposalBasedSegmentor has nothing to train; add --eval-only")
        class_names, _ = self.vocabulary.of(batched_inputs)
        results = []
        for x in batched_inputs:
            image = x["image"].to(self.device).float()
            image = image.flip(0) if self.input_format == "BGR" else image
            size = tuple(image.shape[-2:])
            regions = self._regions(x["file_name"], size)
            found = self._classify(image, regions, class_names)
            results.append(
                {"sem_seg": sem_seg_postprocess(found, size, x.get("height", size[0]), x.get("width", size[1]))}
            )
        return results

    def _classify(self, image: Tensor, regions: Tensor, class_names: Sequence[str]) -> Tensor:
        """(K, H, W) probabilities of the classes from region numbers (H, W)."""
        numbers, place = regions.unique(return_inverse=True)
        rows = []
        for part in numbers.split(_REGIONS_PER_CALL):
            masks = (regions == part[:, None, None]).float()
            logits, _ = self.clip_adapter(image, class_names, masks)
            assert logits is not None  # each number has a pixel
            rows.append(logits.float()[:, :-1].softmax(1))
        scores = torch.cat(rows) * (numbers >= 0)[:, None]
        return scores.T[:, place]

    def _regions(self, file_name: str, size: tuple[int, ...]) -> Tensor:
        path = self.proposals / f"{Path(file_name).stem}.npy"
        if not path.is_file():
            raise InputError(f"no regions of {file_name}: expected {path} (MODEL.CLIP_ADAPTER.PROPOSALS)")
        regions = torch.from_numpy(read_regions(path)).to(self.device)
        return F.interpolate(regions[None, None].double(), size=size, mode="nearest")[0, 0].long()


def read_regions(path: Path) -> np.ndarray:
    """(H, W) int64 numbers of regions from an ``.npy`` file.

    Raises:
        InputError: no such array of integers.
    """
    array = read_npy(path, "write it again")
    if array.ndim != 2 or 0 in array.shape or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path} has shape {array.shape} of {array.dtype}; expected integers (height, width)")
    return array.astype(np.int64)
