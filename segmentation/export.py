"""A zero-shot segmenter as one graph, ready for export (``prompt_pretrain.model_export``).

It computes what the model does for one image of a fixed size. Class embeddings are an input. All queries are cropped
and shown to CLIP, also those whose mask is empty, which count as in the model: the number of crops is fixed.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_pretrain.errors import InputError
from prompt_pretrain.model_export import Exportable
from segmentation.api import Segmenter
from segmentation.clip_adapter import MaskFormerClipAdapter, similarity_logits
from segmentation.clip_vision import encode_images
from segmentation.mask_crops import crop_boxes, crop_taps
from segmentation.zero_shot_inference import blend
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer

__all__ = ["SegmenterGraph", "segmenter_part"]


class SegmenterGraph(nn.Module):
    """Image (3, H, W) and class embeddings (C, D) to scores (C, H, W), whose largest is a pixel's class.

    The image is as the model takes it: resized, values in [0, 255], channels in the order of ``INPUT.FORMAT``. With
    ``MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE`` a third input, ``seen`` (C,), is 1 for classes that the model was trained on
    and 0 for others.
    """

    def __init__(self, model: ZeroShotMaskFormer, image_size: tuple[int, int], padded: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head
        self.image_size = image_size
        self.padded = padded
        self.is_rgb = model.input_format == "RGB"
        self.ensemble, self.weight = model.clip_ensemble, model.clip_ensemble_weight
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        self.logit_scale = model.clip_adapter.logit_scale
        self.register_buffer("no_object", model.clip_adapter.non_object_embedding.detach())
        if self.ensemble:
            self.regions = RegionClassifier(model.region_clip_adapter)

    def forward(self, image: Tensor, class_embeddings: Tensor, seen: Tensor | None = None) -> Tensor:
        height, width = self.image_size
        normalised = (image - self.pixel_mean) / self.pixel_std
        padding = (0, self.padded[1] - width, 0, self.padded[0] - height)
        outputs = self.head(self.backbone(F.pad(normalised, padding)[None]))
        masks = F.interpolate(outputs["pred_masks"], size=self.padded, mode="bilinear", align_corners=False)
        masks = masks[0, :, :height, :width].sigmoid()  # (Q, H, W)
        rows = F.normalize(class_embeddings, dim=1)
        classes = torch.cat([rows, F.normalize(self.no_object, dim=1)])
        queries = outputs["pred_logits"][0]
        queries = queries / queries.norm(dim=1, keepdim=True)
        scores = similarity_logits(classes, queries, self.logit_scale).softmax(-1)[:, :-1]  # (Q, C)
        if seen is not None:
            found, valid = self.regions(image if self.is_rgb else image.flip(0), masks, rows)
            if self.weight <= 0:
                scores = found * valid[:, None]  # CLIP alone, which has not seen the others
            else:
                scores = blend(scores, torch.where(valid[:, None], found, 1.0), seen, self.weight)
        return torch.einsum("qc,qhw->chw", scores, masks)


class RegionClassifier(nn.Module):
    """What CLIP says of the masks of an image: probabilities (Q, C), and which masks have a pixel (Q,)."""

    def __init__(self, adapter: MaskFormerClipAdapter) -> None:
        super().__init__()
        self.visual = adapter.clip.model.visual
        self.clip = adapter.clip
        self.logit_scale = adapter.logit_scale
        self.side, self.ratio = adapter.region_size, adapter.mask_expand_ratio
        self.threshold, self.matting = adapter.mask_thr, adapter.mask_matting
        outside = torch.zeros(3) if adapter.mask_fill == "mean" else -adapter.pixel_mean / adapter.pixel_std
        self.register_buffer("outside", outside.reshape(3, 1, 1))
        self.register_buffer("mean", adapter.pixel_mean[0])
        self.register_buffer("std", adapter.pixel_std[0])

    def forward(self, image: Tensor, masks: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        binary = masks > self.threshold
        crops = self.crops((image - self.mean) / self.std, masks if self.matting else binary.to(masks.dtype), binary)
        features = F.normalize(encode_images(self.clip, crops), dim=1)
        # "No object" is no rival here, unlike among the queries.
        return similarity_logits(rows, features, self.logit_scale).softmax(-1), binary.flatten(1).any(1)

    def crops(self, image: Tensor, weights: Tensor, binary: Tensor) -> Tensor:
        """(Q, 3, side, side) as of ``resize_crops``, by products with matrices. Of an empty mask: nothing of use."""
        boxes = crop_boxes(binary, self.ratio)
        height, width = image.shape[-2:]
        across = _interpolation(boxes[:, 0], boxes[:, 2], width, self.side).transpose(1, 2)  # (Q, W, side)
        down = _interpolation(boxes[:, 1], boxes[:, 3], height, self.side)  # (Q, side, H)
        inside = image - self.outside
        # Channel by channel: all three at once would take three times the memory.
        return torch.stack([down @ (channel * weights) @ across for channel in inside], dim=1) + self.outside


def segmenter_part(segmenter: Segmenter, image_size: tuple[int, int]) -> Exportable:
    """The forward pass of a segmenter for images (height, width), which its inputs must be resized to.

    Raises:
        InputError: a model that this graph does not cover, with the part of it that is in the way.
    """
    obstacle = _obstacle(segmenter)
    if obstacle:
        raise InputError(f"this segmenter cannot be exported: {obstacle}")
    # Not the model itself, whose buffers would move with the graph.
    model = copy.deepcopy(segmenter.model)
    height, width = image_size
    padded = segmenter.padded_size(torch.empty(3, height, width, device="meta"))
    width_of_rows = model.clip_adapter.embed_dim
    inputs = [_example(image_size, classes, width_of_rows, seed) for seed, classes in enumerate((5, 8))]
    if not model.clip_ensemble:
        for each in inputs:
            del each["seen"]
    classes = {"class_embeddings": {0: "classes"}}
    return Exportable(
        name="segmenter",
        module=SegmenterGraph(model, image_size, padded).eval(),
        inputs=inputs[0],
        sizes=classes | ({"seen": {0: "classes"}} if model.clip_ensemble else {}),
        outputs={"sem_seg": ("classes", height, width)},
        others=inputs[1:],
        facts={
            "image": f"{segmenter.cfg.INPUT.FORMAT}, values 0 to 255, {height} x {width} pixels",
            "clip": model.clip_adapter.clip.clip_id,
            "embedding_width": width_of_rows,
        },
    )


def _obstacle(segmenter: Segmenter) -> str | None:
    """What of the model has no graph here; None if all has."""
    model = segmenter.model
    if not isinstance(model, ZeroShotMaskFormer):
        return (
            f"MODEL.META_ARCHITECTURE {type(model).__name__} takes no class embeddings, or classifies in another way; "
            "ZeroShotMaskFormer can"
        )
    if not model.clip_ensemble:
        return None
    adapter = model.region_clip_adapter
    off = "set MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE False to export the queries alone"
    if type(adapter) is not MaskFormerClipAdapter:
        return f"{type(adapter).__name__} resizes images to a grid that ONNX cannot pool (REGION_CLASSIFIER); {off}"
    if not adapter.region_resized:
        return f"crops keep their own sizes (MODEL.CLIP_ADAPTER.REGION_RESIZED False), a graph has fixed ones; {off}"
    return None


def _interpolation(start: Tensor, end: Tensor, length: int, side: int) -> Tensor:
    """(n, side, length) matrices that resize the pixels from ``start`` to ``end`` (n,) of a line to ``side`` pixels."""
    index, weights = crop_taps(start, end, side)  # (n, side, 4)
    places = torch.arange(length, device=start.device)
    taps = zip(index.unbind(2), weights.unbind(2), strict=True)
    return sum((places == i[..., None]) * w[..., None] for i, w in taps)


def _example(image_size: tuple[int, int], classes: int, width: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 8, 8, generator=generator) * 255
    return {
        "image": F.interpolate(small, size=image_size, mode="nearest")[0],
        "class_embeddings": torch.randn(classes, width, generator=generator),
        "seen": (torch.arange(classes) % 2).float(),
    }
