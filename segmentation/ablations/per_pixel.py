"""Classifying every pixel by CLIP's text features instead of masks (ZSSeg's per-pixel baseline)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from mask_former.modeling.heads.per_pixel_baseline import PerPixelBaselineHead
from prompt_pretrain.errors import InputError
from segmentation.adapter_setup import build_adapter
from segmentation.batch_vocabulary import BatchVocabulary
from segmentation.clip_adapter import CROP_SIDE, ClipAdapter, similarity_logits
from segmentation.zero_shot_inference import blend

__all__ = ["ZeroPerPixelBaselineHead", "ZeroShotPerPixelModel"]


@SEM_SEG_HEADS_REGISTRY.register()
class ZeroPerPixelBaselineHead(PerPixelBaselineHead):
    """A per-pixel head whose "classes" are the channels of CLIP's joint space."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """(B, D, h, w) embeddings of pixels at stride 4, not normalised."""
        return self.class_maps(features)[0]


@META_ARCH_REGISTRY.register()
class ZeroShotPerPixelModel(SemanticSegmentor):
    """Pixels with embeddings of CLIP's space, classified by text features; CLIP classifies the image as a whole.

    The classes are those of the data set that the inputs name (``meta["dataset_name"]``), or of :meth:`set_classes`.
    """

    @configurable
    def __init__(
        self,
        *,
        clip_adapter: ClipAdapter,
        clip_ensemble: bool = True,
        clip_ensemble_weight: float = 0.8,
        input_format: str = "RGB",
        clip_image_size: int = CROP_SIDE,
        **kwargs: Any,
    ) -> None:
        """As :class:`SemanticSegmentor`.

        Args:
            clip_adapter: text features, and CLIP for whole images.
            clip_ensemble: let CLIP vote at test time.
            clip_ensemble_weight: of the pixels for seen classes and of CLIP for unseen ones; above 1: pixels alone,
                negative: CLIP alone.
            input_format: "RGB" or "BGR", of the images.
            clip_image_size: side to which images are resized for CLIP; 0 for the size that it was trained with.
        Raises:
            InputError: the head's embeddings have another width than the text features.
        """
        super().__init__(**kwargs)
        if self.sem_seg_head.num_classes != clip_adapter.embed_dim:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.sem_seg_head.num_classes}, but for ZeroPerPixelBaselineHead "
                f"it is the width of {clip_adapter.clip.clip_id}'s features, {clip_adapter.embed_dim}; set it to that"
            )
        self.clip_adapter = clip_adapter
        self.clip_ensemble = clip_ensemble
        self.clip_ensemble_weight = clip_ensemble_weight
        self.input_format = input_format
        self.clip_image_size = clip_image_size or clip_adapter.clip.image_size
        self.vocabulary = BatchVocabulary()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.CLIP_ADAPTER
        return super().from_config(cfg) | {
            "clip_adapter": build_adapter(cfg, stage=2),
            "clip_ensemble": node.CLIP_ENSEMBLE,
            "clip_ensemble_weight": node.CLIP_ENSEMBLE_WEIGHT,
            "input_format": cfg.INPUT.FORMAT,
            "clip_image_size": node.get("REGION_SIZE", CROP_SIDE),  # configs of others lack it
        }

    def set_classes(self, class_names: Sequence[str] | None, seen: Sequence[int] | None = None) -> None:
        """Segment these classes whatever data set the inputs name; None goes back to that.

        Args:
            seen: per class 1 if the model was trained on it; none of them if not given.
        """
        self.vocabulary.set(class_names, seen)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """``{"loss_sem_seg"}`` in training, otherwise per image ``{"sem_seg": (K, height, width)}``.

        Args:
            batched_inputs: per image ``image`` (3, H, W), ``meta`` with the ``dataset_name`` of its classes, in
                training ``sem_seg`` (H, W) labels, otherwise optionally ``height`` and ``width`` of the output.
        """
        class_names, seen = self.vocabulary.of(batched_inputs)
        head = self.sem_seg_head
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        divisor = max(self.backbone.size_divisibility, head.common_stride)
        batch = ImageList.from_tensors(images, divisor)
        embeddings = head(self.backbone(batch.tensor))
        classes = self.clip_adapter.class_features(class_names)
        if self.training:
            pixels = F.normalize(embeddings, dim=1).movedim(1, -1)
            logits = similarity_logits(classes, pixels, self.clip_adapter.logit_scale).movedim(-1, 1)
            labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
            targets = ImageList.from_tensors(labels, divisor, head.ignore_value).tensor
            return {"loss_sem_seg": head.loss(logits, targets)}
        upsampled = head.upsample(embeddings)
        clip_scores = self._image_scores(batched_inputs, class_names)
        results = []
        for index, (x, size) in enumerate(zip(batched_inputs, batch.image_sizes, strict=True)):
            pixels = sem_seg_postprocess(upsampled[index], size, x.get("height", size[0]), x.get("width", size[1]))
            scores = self._pixel_scores(pixels.flatten(1).T, classes, clip_scores[index], seen.to(self.device))
            results.append({"sem_seg": scores.T.unflatten(1, pixels.shape[1:])})
        return results

    def _pixel_scores(self, embeddings: Tensor, classes: Tensor, clip_scores: Tensor | None, seen: Tensor) -> Tensor:
        """(P, K) scores of embeddings (P, D)."""
        if clip_scores is not None and self.clip_ensemble_weight < 0:
            return clip_scores.expand(len(embeddings), -1)
        pixels = F.normalize(embeddings.float(), dim=1)
        scores = similarity_logits(classes, pixels, self.clip_adapter.logit_scale).softmax(1)
        return scores if clip_scores is None else blend(scores, clip_scores, seen, self.clip_ensemble_weight)

    def _image_scores(self, batched_inputs: Sequence[dict[str, Any]], class_names: Sequence[str]) -> list[Any]:
        """Per image CLIP's probabilities (K,) of the classes, None without the ensemble."""
        if not self.clip_ensemble or self.clip_ensemble_weight > 1:
            return [None] * len(batched_inputs)
        images = []
        for x in batched_inputs:
            image = x["image"].to(self.device).float()
            image = image.flip(0) if self.input_format == "BGR" else image
            side = self.clip_image_size
            images.append(F.interpolate(image[None], (side, side), mode="bicubic", align_corners=False)[0])
        return list(self.clip_adapter.classify_images(images, class_names).float().softmax(1))
