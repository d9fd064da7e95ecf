"""``CustomRCNN`` (Detic, arXiv 2201.02605): a two-stage detector that learns from boxes, image labels and captions."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from centernet.modeling.roi_heads.fed_loss import load_class_freq
from detection.caption_encoder import CaptionEncoder, build_caption_encoder
from detection.class_sampling import sample_classes
from detection.inference_precision import inference_dtype, run_layers
from detection.reset_classifier import box_predictors
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from prompt_pretrain.errors import InputError

__all__ = ["ANNOTATION_TYPES", "CustomRCNN"]

logger = logging.getLogger(__name__)

Inputs = Sequence[Mapping[str, Any]]

ANNOTATION_TYPES = ("box", "prop", "proptag", "image", "caption", "captiontag")
_POMP_CLIP = "ViT-B/16"  # of the published class embeddings of POMP
_WITH_BOXES = ("box", "prop", "proptag")


@META_ARCH_REGISTRY.register()
class CustomRCNN(GeneralizedRCNN):
    """Backbone, dense proposals and open-vocabulary heads.

    In training all images of a batch have one kind of annotation (``ann_type``): ``box``; ``prop`` and ``proptag``,
    boxes without classes, which train the proposals only; ``image``, labels of the whole image; ``caption``; or
    ``captiontag``, captions and labels. In evaluation mode it is a `GeneralizedRCNN`, in float32.
    """

    freq_weight: Tensor | None

    @configurable
    def __init__(
        self,
        *,
        with_image_labels: bool = False,
        dataset_loss_weight: Sequence[float] = (),
        fp16: bool = False,
        sync_caption_batch: bool = False,
        roi_head_name: str = "",
        cap_batch_ratio: int = 4,
        with_caption: bool = False,
        dynamic_classifier: bool = False,
        freq_weight: Tensor | None = None,
        num_classes: int | None = None,
        num_sample_cats: int | None = None,
        caption_encoder: CaptionEncoder | None = None,
        inference_precision: str = "fp32",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            with_image_labels: batches say their ``ann_type``; without, all have boxes.
            dataset_loss_weight: factor on all losses per training set, chosen by ``dataset_source``; empty for none.
            fp16: backbone in half precision in training, where the device can.
            sync_caption_batch: the captions of all processes are negatives of each image.
            roi_head_name: registered name of the heads, for messages.
            cap_batch_ratio: images of a caption batch per image of a box batch, with ``sync_caption_batch``.
            with_caption, caption_encoder: learn from captions, encoded by this frozen tower.
            dynamic_classifier: each step compares with ``num_sample_cats`` of the ``num_classes`` classes, drawn by
                ``freq_weight`` (C',) in box batches, from all alike in others.
            inference_precision: "fp32", "bf16" or "fp16", of backbone, box heads and mask head at inference.
            kwargs: of `GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        self.with_image_labels = with_image_labels
        self.dataset_loss_weight = tuple(dataset_loss_weight)
        self.fp16 = fp16
        self.sync_caption_batch = sync_caption_batch
        self.roi_head_name = roi_head_name
        self.cap_batch_ratio = cap_batch_ratio
        self.with_caption = with_caption
        self.dynamic_classifier = dynamic_classifier
        self.inference_dtype = inference_dtype(inference_precision)
        self.roi_heads.inference_dtype = self.inference_dtype
        self.num_classes = num_classes
        self.num_sample_cats = num_sample_cats
        self.register_buffer("freq_weight", freq_weight, persistent=False)
        if self.proposal_generator is None:
            raise InputError(
                "CustomRCNN makes its own proposals: set MODEL.PROPOSAL_GENERATOR.NAME to CenterNet or RPN"
            )
        if dynamic_classifier and (num_classes is None or num_sample_cats is None):
            raise ValueError("a dynamic classifier needs num_classes and num_sample_cats")
        if with_caption:
            if caption_encoder is None:
                raise ValueError("with_caption needs a caption_encoder")
            self.text_encoder = caption_encoder
        self._heads_take_annotations = "ann_type" in inspect.signature(self.roi_heads.forward).parameters
        if (with_image_labels or dynamic_classifier) and not self._heads_take_annotations:
            raise InputError(
                f"MODEL.ROI_HEADS.NAME {roi_head_name or type(self.roi_heads).__name__} knows boxes only; "
                "WITH_IMAGE_LABELS and MODEL.DYNAMIC_CLASSIFIER need DeticCascadeROIHeads or CustomRes5ROIHeads"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        model, head = cfg.MODEL, cfg.MODEL.ROI_BOX_HEAD
        result = super().from_config(cfg) | {
            "with_image_labels": cfg.WITH_IMAGE_LABELS,
            "dataset_loss_weight": model.DATASET_LOSS_WEIGHT,
            "fp16": cfg.FP16,
            "sync_caption_batch": model.SYNC_CAPTION_BATCH,
            "roi_head_name": model.ROI_HEADS.NAME,
            "cap_batch_ratio": model.CAP_BATCH_RATIO,
            "with_caption": model.WITH_CAPTION,
            "dynamic_classifier": model.DYNAMIC_CLASSIFIER,
            "inference_precision": model.INFERENCE_PRECISION,
        }
        if model.WITH_CAPTION:
            _warn_about_two_text_spaces(cfg)
            result["caption_encoder"] = build_caption_encoder(model.CAPTION_CLIP)
        if model.DYNAMIC_CLASSIFIER:
            result |= {
                "freq_weight": load_class_freq(head.CAT_FREQ_PATH, head.FED_LOSS_FREQ_WEIGHT),
                "num_classes": model.ROI_HEADS.NUM_CLASSES,
                "num_sample_cats": model.NUM_SAMPLE_CATS,
            }
        return result

    def inference(
        self,
        batched_inputs: Inputs,
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """As of `GeneralizedRCNN`, with the layers in ``inference_precision``."""
        if self.inference_dtype is None:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        images = self.preprocess_image(batched_inputs)
        features = run_layers(self.backbone, images.tensor, self.inference_dtype)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            results = self.roi_heads.forward_with_given_boxes(features, [x.to(self.device) for x in detected_instances])
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses by name in training, `inference` otherwise.

        Args:
            batched_inputs: dicts as of `GeneralizedRCNN`. In training with image labels also ``ann_type``,
                ``pos_category_ids`` (labels), ``captions`` (texts, of which one is drawn), and ``dataset_source``
                where data sets have loss weights.
        Raises:
            InputError: kinds of annotation that are unknown or mixed, or captions that are missing.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        ann_type = self._annotation_type(batched_inputs)
        gt_instances = self._ground_truth(batched_inputs, ann_type)
        features = self._training_features(images)
        captions = self._caption_features(batched_inputs, ann_type)
        classifier, sampled = None, None
        if self.dynamic_classifier and ann_type != "caption":
            sampled = self._sample_classes(gt_instances, ann_type)
            classifier = self._class_rows(sampled[0])

        proposals, proposal_losses = self.proposal_generator(images, features, gt_instances)
        if self._heads_take_annotations:
            _, losses = self.roi_heads(
                images,
                features,
                proposals,
                gt_instances,
                ann_type=ann_type,
                classifier_info=(classifier, sampled, captions),
            )
        else:
            _, losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        # Without boxes nothing is known about the proposals; the zeros keep names and gradients equal on all processes.
        factor = 1.0 if ann_type in _WITH_BOXES else 0.0
        losses = losses | {name: factor * loss for name, loss in proposal_losses.items()}
        weight = self._dataset_weight(batched_inputs)
        return losses if weight is None else {name: weight * loss for name, loss in losses.items()}

    def _annotation_type(self, batched_inputs: Inputs) -> str:
        if not self.with_image_labels:
            return "box"
        found = {entry.get("ann_type", "box") for entry in batched_inputs}
        if len(found) != 1:
            raise InputError(
                f"one batch holds annotations of kinds {', '.join(sorted(found))}; set "
                "DATALOADER.MULTI_DATASET_GROUPING True"
            )
        (ann_type,) = found
        if ann_type not in ANNOTATION_TYPES:
            raise InputError(f"DATALOADER.DATASET_ANN holds {ann_type!r}; expected {', '.join(ANNOTATION_TYPES)}")
        return ann_type

    def _ground_truth(self, batched_inputs: Inputs, ann_type: str) -> list[Instances]:
        """The objects of each image on the device; with image labels their annotation travels as attributes."""
        targets = []
        for entry in batched_inputs:
            if "instances" in entry:
                target = entry["instances"].to(self.device)
            elif ann_type in _WITH_BOXES:
                raise InputError(f"{entry.get('file_name', 'an image')} of a batch with boxes has no 'instances'")
            else:
                target = Instances(tuple(entry["image"].shape[-2:]))
                target.gt_boxes = Boxes(torch.zeros(0, 4, device=self.device))
                target.gt_classes = torch.zeros(0, dtype=torch.int64, device=self.device)
            if ann_type in ("prop", "proptag"):
                target.gt_classes = torch.zeros_like(target.gt_classes)
            if self.with_image_labels:
                target._ann_type = ann_type
                target._pos_category_ids = entry.get("pos_category_ids", [])
            targets.append(target)
        return targets

    def _training_features(self, images: ImageList) -> dict[str, Tensor]:
        if not (self.fp16 and self.device.type == "cuda"):  # half convolutions are slow or missing elsewhere
            return self.backbone(images.tensor)
        with torch.autocast("cuda", dtype=torch.float16):
            features = self.backbone(images.tensor.half())
        return {name: feature.float() for name, feature in features.items()}

    def _caption_features(self, batched_inputs: Inputs, ann_type: str) -> Tensor | None:
        """(B, D) features of one caption per image; None for a batch without captions.

        With ``sync_caption_batch`` the captions of all processes one below the other, and the process' number as last
        column. This is a collective call then: a process without captions takes part with zeros.
        """
        if not self.with_caption:
            return None
        features = None
        if "caption" in ann_type:
            features = self.text_encoder([_draw_caption(entry) for entry in batched_inputs])
        if not self.sync_caption_batch:
            return features
        if features is None:
            # All processes hand in equally many rows: a box batch has fewer images than a caption batch.
            rows = len(batched_inputs) * (self.cap_batch_ratio if ann_type == "box" else 1)
            sent = torch.zeros(rows, self.text_encoder.embed_dim, device=self.device)
        else:
            sent = features
        sent = torch.cat((sent, sent.new_full((len(sent), 1), comm.get_rank())), dim=1)
        gathered = comm.all_gather(sent)
        return None if features is None else torch.cat([part.to(self.device) for part in gathered])

    def _sample_classes(self, gt_instances: list[Instances], ann_type: str) -> tuple[Tensor, Tensor]:
        """Of `sample_classes`, for the labels of this batch."""
        if ann_type in _WITH_BOXES:
            labels, weight = torch.cat([target.gt_classes for target in gt_instances]), self.freq_weight
        else:
            ids = [label for target in gt_instances for label in target._pos_category_ids]
            labels, weight = torch.tensor(ids, dtype=torch.int64, device=self.device), None
        return sample_classes(labels, num_classes=self.num_classes, num_sample_cats=self.num_sample_cats, weight=weight)

    def _class_rows(self, inds: Tensor) -> Tensor:
        """(n + 1, D) stored embeddings of classes (n,) and of the background; those of the first stage serve all."""
        zs_weight = box_predictors(self)[0].cls_score.zs_weight
        background = inds.new_tensor([zs_weight.shape[1] - 1])
        return zs_weight[:, torch.cat((inds, background))].t().contiguous()

    def _dataset_weight(self, batched_inputs: Inputs) -> float | None:
        if not self.dataset_loss_weight:
            return None
        sources = {entry["dataset_source"] for entry in batched_inputs}
        if len(sources) != 1:
            raise InputError(
                "MODEL.DATASET_LOSS_WEIGHT needs batches of one data set each; set DATALOADER.MULTI_DATASET_GROUPING "
                "True"
            )
        (source,) = sources
        if source >= len(self.dataset_loss_weight):
            raise InputError(
                f"MODEL.DATASET_LOSS_WEIGHT has {len(self.dataset_loss_weight)} entries, but there is a training set "
                f"number {source}; give one for each of DATASETS.TRAIN"
            )
        return self.dataset_loss_weight[source]


def _warn_about_two_text_spaces(cfg: CfgNode) -> None:
    """Say so where class embeddings and captions come from different CLIPs, which share one projection then."""
    captions, node = cfg.MODEL.CAPTION_CLIP, cfg.MODEL.CLASS_EMBEDDINGS
    classes = node.CLIP if node.PROMPT and not node.PATH else ""
    path = cfg.MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH
    if not classes and "pomp" in os.path.basename(path):
        classes = _POMP_CLIP
    if classes and classes != captions:
        logger.warning(
            "classes are encoded by %s, captions by %s, whose text features are unrelated. The released "
            "Detic_OVCOCO_CLIP_R50_1x_max-size_caption_pomp is so; MODEL.CAPTION_CLIP names another CLIP for captions",
            classes,
            captions,
        )


def _draw_caption(entry: Mapping[str, Any]) -> str:
    """One of the image's captions, each as likely."""
    captions = entry.get("captions") or ()
    if not len(captions):
        raise InputError(f"{entry.get('file_name', 'an image')} of a data set of captions has none")
    return captions[int(torch.randint(len(captions), (1,)))]
