"""The open-vocabulary segmenter: MaskFormer whose queries are compared with text features (ZSSeg, section 3)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from mask_former import MaskFormer
from prompt_pretrain.errors import InputError
from segmentation.adapter_setup import build_mask_adapter
from segmentation.batch_vocabulary import BatchVocabulary
from segmentation.clip_adapter import MaskFormerClipAdapter
from segmentation.label_inference import LabelSearch, PixelWeights, label_map
from segmentation.zero_shot_inference import semantic_map

__all__ = ["ZeroShotMaskFormer"]


@META_ARCH_REGISTRY.register()
class ZeroShotMaskFormer(MaskFormer):
    """Masks with embeddings of CLIP's space, classified by text features and, as crops, by CLIP itself.

    The classes are those of the data set that the inputs name (``meta["dataset_name"]``), or of :meth:`set_classes`.
    """

    @configurable
    def __init__(
        self,
        *,
        clip_adapter: MaskFormerClipAdapter,
        region_clip_adapter: MaskFormerClipAdapter | None = None,
        clip_ensemble: bool = True,
        clip_ensemble_weight: float = 0.8,
        input_format: str = "RGB",
        labels_only: bool = False,
        labels_in_doubt: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """As :class:`MaskFormer`.

        Args:
            clip_adapter: text features for the queries.
            region_clip_adapter: classifies crops; None for ``clip_adapter``.
            clip_ensemble: let CLIP classify crops at test time.
            clip_ensemble_weight: of the queries for seen classes and of CLIP for unseen ones; not positive: CLIP alone.
            input_format: "RGB" or "BGR", of the images.
            labels_only: give label maps at test time instead of maps of scores.
            labels_in_doubt: share of an image's pixels, in [0, 1), whose labels may differ, for fewer crops.
        """
        super().__init__(**kwargs)
        self.clip_adapter = clip_adapter
        if region_clip_adapter is not None:
            region_clip_adapter.non_object_embedding.requires_grad_(False)  # no loss reaches it
            self._region_clip_adapter = region_clip_adapter
        self.clip_ensemble = clip_ensemble
        self.clip_ensemble_weight = clip_ensemble_weight
        self.input_format = input_format
        self.labels_only = labels_only
        self.labels_in_doubt = labels_in_doubt
        self.vocabulary = BatchVocabulary()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.CLIP_ADAPTER
        if cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
            raise InputError(
                "MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True, but ZeroShotMaskFormer has no panoptic output"
            )
        labels_only = node.get("LABELS_ONLY", False)  # configs of others lack it
        for key, is_on in (
            ("TEST.AUG.ENABLED", cfg.TEST.AUG.ENABLED),
            ("TEST.DENSE_CRF", cfg.TEST.DENSE_CRF),
            ("PSEUDO", cfg.PSEUDO),
        ):
            if labels_only and is_on:
                raise InputError(
                    f"MODEL.CLIP_ADAPTER.LABELS_ONLY is True, but {key} needs scores; set one of the two False"
                )
        if not 0 <= node.get("LABELS_IN_DOUBT", 0.0) < 1:
            raise InputError(
                f"MODEL.CLIP_ADAPTER.LABELS_IN_DOUBT is {node.LABELS_IN_DOUBT}; expected a share of pixels, 0 <= x < 1"
            )
        settings = super().from_config(cfg)
        clip_adapter = build_mask_adapter(cfg, node)
        region_clip_adapter = None
        if node.SEPERATE_ADAPTER:
            region_clip_adapter = build_mask_adapter(cfg, node.REGION_CLIP_ADAPTER, share=clip_adapter, share_node=node)
        if clip_adapter.embed_dim != cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM}, but features of "
                f"{clip_adapter.clip.clip_id} (MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME) have {clip_adapter.embed_dim}; "
                "set it to that"
            )
        return settings | {
            "clip_adapter": clip_adapter,
            "region_clip_adapter": region_clip_adapter,
            "clip_ensemble": node.CLIP_ENSEMBLE,
            "clip_ensemble_weight": node.CLIP_ENSEMBLE_WEIGHT,
            "input_format": cfg.INPUT.FORMAT,
            "labels_only": labels_only,
            "labels_in_doubt": node.get("LABELS_IN_DOUBT", 0.0),
        }

    @property
    def region_clip_adapter(self) -> MaskFormerClipAdapter:
        """The adapter that classifies crops."""
        return getattr(self, "_region_clip_adapter", self.clip_adapter)

    def set_classes(self, class_names: Sequence[str] | None, seen: Sequence[int] | None = None) -> None:
        """Segment these classes whatever data set the inputs name; None goes back to that.

        Args:
            seen: per class 1 if the model was trained on it; none of them if not given.
        """
        self.vocabulary.set(class_names, seen)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As :meth:`MaskFormer.forward`; inputs also have ``meta`` with the ``dataset_name`` of their classes.

        With ``labels_only`` images have ``labels`` (height, width), int64, instead of ``sem_seg``: those of the largest
        scores, found without having all scores in memory and without looking at masks that cannot change them.
        """
        class_names, seen = self.vocabulary.of(batched_inputs)
        images = self.preprocess(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor))
        classes = self.clip_adapter.class_features(class_names)
        for level in (outputs, *(outputs.get("aux_outputs", ()) if self.training else ())):
            level["pred_logits"] = self.clip_adapter.query_logits(level["pred_logits"], classes)
        if self.training:
            if len(class_names) != self.criterion.num_classes:
                raise InputError(
                    f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.criterion.num_classes}, but the training data have "
                    f"{len(class_names)} classes; set it to that"
                )
            return self.losses(outputs, [x["instances"].to(self.device) for x in batched_inputs], images)
        masks = self.image_masks(outputs["pred_masks"], images)
        if self.labels_only:
            found = [
                self.label_map(logits, mask, record, class_names, seen)
                for logits, mask, record in zip(outputs["pred_logits"], masks, batched_inputs, strict=True)
            ]
            return [{"labels": labels} for labels in found]
        maps = self.semantic_maps(outputs["pred_logits"], masks, batched_inputs, class_names, seen)
        return [
            {"sem_seg": sem_seg_postprocess(found, size, x.get("height", size[0]), x.get("width", size[1]))}
            for found, size, x in zip(maps, images.image_sizes, batched_inputs, strict=True)
        ]

    @staticmethod
    def image_masks(mask_logits: Tensor, images: ImageList) -> list[Tensor]:
        """Per image the mask probabilities (Q, H, W) of its pixels from logits (B, Q, h, w)."""
        size = images.tensor.shape[-2:]
        return [
            F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[
                0, :, :height, :width
            ].sigmoid()
            for logits, (height, width) in zip(mask_logits, images.image_sizes, strict=True)
        ]

    def semantic_maps(
        self,
        query_logits: Tensor,
        masks: Sequence[Tensor],
        batched_inputs: Sequence[dict[str, Any]],
        class_names: Sequence[str],
        seen: Tensor,
    ) -> list[Tensor]:
        """Per image (K, H, W) scores from logits (B, Q, K + 1) and mask probabilities."""
        count = len(masks)
        clip_logits: Sequence[Tensor | None] = [None] * count
        valid: Sequence[Tensor | None] = [None] * count
        if self.clip_ensemble:
            images = [self._rgb(x["image"]) for x in batched_inputs]
            clip_logits, valid = self.region_clip_adapter.classify(images, class_names, masks)
        seen = seen.to(self.device)
        return [
            semantic_map(*parts, seen, self.clip_ensemble_weight)
            for parts in zip(query_logits, masks, clip_logits, valid, strict=True)
        ]

    def label_map(
        self, query_logits: Tensor, masks: Tensor, record: dict[str, Any], class_names: Sequence[str], seen: Tensor
    ) -> Tensor:
        """(height, width) classes of one image from logits (Q, K + 1) and mask probabilities (Q, H, W)."""
        size = (record.get("height", masks.shape[-2]), record.get("width", masks.shape[-1]))
        weights = PixelWeights(masks, size)
        scores = query_logits.float().softmax(-1)[:, :-1]
        if not self.clip_ensemble:
            return label_map(scores, weights).view(size)
        adapter, image = self.region_clip_adapter, self._rgb(record["image"])
        valid = adapter.valid_masks(masks)
        search = LabelSearch(
            scores, weights, valid, seen.to(self.device), self.clip_ensemble_weight, doubt=self.labels_in_doubt
        )
        while len(chosen := search.next(adapter.masks_per_look)):
            (logits,), _ = adapter.classify([image], class_names, [masks[chosen]])
            assert logits is not None and len(logits) == len(chosen)
            search.add(chosen, logits.float()[:, :-1].softmax(-1))
        return search.labels().view(size)

    def _rgb(self, image: Tensor) -> Tensor:
        image = image.to(self.device).float()
        return image if self.input_format == "RGB" else image.flip(0)
