"""Detic's box predictor (arXiv 2201.02605): open-vocabulary scores, one box per region, and their losses."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from centernet.modeling.roi_heads.fed_loss import get_fed_loss_inds, load_class_freq
from detection.image_losses import ClassifierInfo, ImageLabelLoss
from detection.vocabulary_inference import LinearScores, detect, scores_of_logits
from detection.zero_shot_classifier import ZeroShotClassifier
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Instances
from prompt_pretrain.errors import InputError

__all__ = ["NO_CLASSIFIER", "DeticFastRCNNOutputLayers"]

NO_CLASSIFIER: ClassifierInfo = (None, None, None)
_HAS_IMAGES = 1e-4  # a class whose weight is not above this has no training image


class DeticFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Scores of C classes and background, from class embeddings or learned, and box deltas.

    Attributes:
        freq_weight: (C,) buffer, the federated loss's weight of each class; None where no loss needs it.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        num_classes: int,
        mult_proposal_score: bool = False,
        cls_score: nn.Module | None = None,
        sync_caption_batch: bool = False,
        use_sigmoid_ce: bool = False,
        use_fed_loss: bool = False,
        ignore_zero_cats: bool = False,
        fed_loss_num_cat: int = 50,
        dynamic_classifier: bool = False,
        image_label_loss: str = "",
        use_zeroshot_cls: bool = False,
        image_loss_weight: float = 0.1,
        with_softmax_prop: bool = False,
        caption_weight: float = 1.0,
        neg_cap_weight: float = 1.0,
        add_image_box: bool = False,
        debug: bool = False,
        prior_prob: float = 0.01,
        cat_freq_path: str = "",
        fed_loss_freq_weight: float = 0.5,
        softmax_weak_loss: bool = False,
        classes_per_chunk: int = 0,
        image_loss_drop_last: bool = True,
        image_loss_background: bool = True,
        image_loss_mutual_negatives: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mult_proposal_score: a detection's score is the root of class score times proposal score.
            cls_score: the zero-shot classifier, with ``use_zeroshot_cls``.
            use_sigmoid_ce: classes are independent (sigmoid), not exclusive (softmax).
            use_fed_loss, fed_loss_num_cat: only that many classes, drawn by frequency, enter the loss.
            ignore_zero_cats: classes without training images don't enter it.
            dynamic_classifier: losses get a sample of the classes, as ``classifier_info``.
            with_softmax_prop: a branch of proposal scores, which ``forward`` returns as a third output.
            prior_prob: of a class before training, for a learned classifier with sigmoid.
            cat_freq_path, fed_loss_freq_weight: image counts of the classes, and the power to take of them.
            classes_per_chunk: how many classes inference scores at a time; see `detect`.
            debug: accepted, without effect.
            kwargs: of `FastRCNNOutputLayers`; its weights of losses have no effect here.
            The others: see `ImageLabelLoss`.
        Raises:
            ValueError: options that exclude each other.
        """
        _check_options(use_zeroshot_cls, cls_score, dynamic_classifier, use_fed_loss)
        # The parent's own classifier is not used in zero-shot mode: don't let it hold a row for each of 20,000 classes.
        super().__init__(input_shape, num_classes=1 if use_zeroshot_cls else num_classes, **kwargs)
        self.num_classes = num_classes
        self.mult_proposal_score = mult_proposal_score
        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.ignore_zero_cats = ignore_zero_cats
        self.fed_loss_num_cat = fed_loss_num_cat
        self.dynamic_classifier = dynamic_classifier
        self.use_zeroshot_cls = use_zeroshot_cls
        self.sync_caption_batch = sync_caption_batch
        self.with_softmax_prop = with_softmax_prop
        self.classes_per_chunk = classes_per_chunk
        self.image_label_loss = ImageLabelLoss(
            image_label_loss=image_label_loss,
            image_loss_weight=image_loss_weight,
            dynamic_classifier=dynamic_classifier,
            sync_caption_batch=sync_caption_batch,
            caption_weight=caption_weight,
            neg_cap_weight=neg_cap_weight,
            add_image_box=add_image_box,
            softmax_weak_loss=softmax_weak_loss,
            with_softmax_prop=with_softmax_prop,
            drop_last=image_loss_drop_last,
            background=image_loss_background,
            mutual_negatives=image_loss_mutual_negatives,
        )
        self._make_layers(input_shape, cls_score, prior_prob)
        weights = None
        if use_fed_loss or ignore_zero_cats:
            weights = _class_weights(cat_freq_path, fed_loss_freq_weight, num_classes)
        self.register_buffer("freq_weight", weights)

    def _make_layers(self, input_shape: ShapeSpec | int, cls_score: nn.Module | None, prior_prob: float) -> None:
        shape = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        input_size = shape.channels * (shape.width or 1) * (shape.height or 1)
        if self.use_zeroshot_cls:
            self.cls_score = cls_score
            self.bbox_pred = _two_layers(input_size, 4)
        elif self.use_sigmoid_ce:
            nn.init.constant_(self.cls_score.bias, -torch.tensor((1 - prior_prob) / prior_prob).log().item())
        if self.with_softmax_prop:
            self.prop_score = _two_layers(input_size, self.num_classes + 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        result = super().from_config(cfg, input_shape)
        # detectron2's own federated loss reads the same keys, but wants counts from the training set's metadata.
        for name in ("use_fed_loss", "use_sigmoid_ce", "get_fed_loss_cls_weights", "fed_loss_num_classes"):
            result.pop(name, None)
        return result | {
            "mult_proposal_score": head.MULT_PROPOSAL_SCORE,
            "sync_caption_batch": cfg.MODEL.SYNC_CAPTION_BATCH,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "use_fed_loss": head.USE_FED_LOSS,
            "ignore_zero_cats": head.IGNORE_ZERO_CATS,
            "fed_loss_num_cat": head.FED_LOSS_NUM_CAT,
            "dynamic_classifier": cfg.MODEL.DYNAMIC_CLASSIFIER,
            "image_label_loss": head.IMAGE_LABEL_LOSS,
            "use_zeroshot_cls": head.USE_ZEROSHOT_CLS,
            "image_loss_weight": head.IMAGE_LOSS_WEIGHT,
            "with_softmax_prop": head.WITH_SOFTMAX_PROP,
            "caption_weight": head.CAPTION_WEIGHT,
            "neg_cap_weight": head.NEG_CAP_WEIGHT,
            "add_image_box": head.ADD_IMAGE_BOX,
            "prior_prob": head.PRIOR_PROB,
            "cat_freq_path": head.CAT_FREQ_PATH,
            "fed_loss_freq_weight": head.FED_LOSS_FREQ_WEIGHT,
            "softmax_weak_loss": head.SOFTMAX_WEAK_LOSS,
            "cls_score": ZeroShotClassifier(cfg, input_shape) if head.USE_ZEROSHOT_CLS else None,
            "classes_per_chunk": head.CLASSES_PER_CHUNK,
            "image_loss_drop_last": head.IMAGE_LOSS_DROP_LAST,
            "image_loss_background": head.IMAGE_LOSS_BACKGROUND,
            "image_loss_mutual_negatives": head.IMAGE_LOSS_MUTUAL_NEGATIVES,
        }

    def forward(self, x: Tensor, classifier_info: ClassifierInfo = NO_CLASSIFIER) -> tuple[Tensor, ...]:
        """Logits (R, C + 1), deltas (R, 4) and, with that branch, proposal scores (R, C + 1) of R region features.

        Args:
            classifier_info: rows (n, D) to compare with instead of the stored classes; the sampled classes, not used
                here; rows (m, D) of captions, whose logits come after those of the classes (with
                ``sync_caption_batch`` they have a last column, the process).
        """
        x = x.flatten(1)
        classifier, _, captions = classifier_info
        scores = [self.cls_score(x) if classifier is None else self.cls_score(x, classifier=classifier)]
        if captions is not None:
            scores.append(self.cls_score(x, classifier=captions[:, :-1] if self.sync_caption_batch else captions))
        outputs = (cat(scores, dim=1), self.bbox_pred(x))
        return (*outputs, self.prop_score(x)) if self.with_softmax_prop else outputs

    def linear_scores(self, x: Tensor, classifier: Tensor | None = None) -> LinearScores:
        """The logits of ``forward`` as a product that inference evaluates for some classes at a time.

        Args:
            classifier: rows (n, D) to compare with instead of the stored classes, background last.
        """
        x = x.flatten(1)
        if not self.use_zeroshot_cls:
            return LinearScores(x, self.cls_score.weight.t(), self.cls_score.bias)
        weight = self.cls_score.zs_weight if classifier is None else self.cls_score.columns(classifier)
        return LinearScores(self.cls_score.region_features(x), weight, self.cls_score.cls_bias)

    def predict_boxes_from_features(self, x: Tensor, proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """What ``predict_boxes(forward(x), proposals)`` returns, without scoring any class."""
        deltas = self.bbox_pred(x.flatten(1))
        return self.predict_boxes((deltas, deltas), proposals)  # of predictions only the second is read

    def losses(
        self,
        predictions: tuple[Tensor, ...],
        proposals: Sequence[Instances],
        use_advanced_loss: bool = True,
        classifier_info: ClassifierInfo = NO_CLASSIFIER,
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg`` of box-annotated images.

        Args:
            predictions: of `forward`, for all regions of all images.
            proposals: per image ``proposal_boxes``, ``gt_classes`` (C for background) and, where there is ground truth,
                ``gt_boxes``.
            use_advanced_loss: False leaves federated loss and ``ignore_zero_cats`` out.
            classifier_info: with a dynamic classifier, second, the sampled classes (n,) and the map (C + 1,) from
                classes to their columns, n for the others.
        """
        scores, deltas = predictions[:2]
        gt_classes = cat([each.gt_classes for each in proposals]) if proposals else scores.new_zeros(0).long()
        sampled, box_classes, num_classes = None, gt_classes, self.num_classes
        if self.dynamic_classifier:
            sampled, columns = classifier_info[1]
            num_classes = scores.shape[1] - 1
            gt_classes = columns[gt_classes]
            box_classes = box_classes.where(gt_classes < num_classes, self.num_classes)
        _log_classification_stats(scores, gt_classes)
        classify = self._sigmoid_loss if self.use_sigmoid_ce else self._softmax_loss
        return {
            "loss_cls": classify(scores[:, : num_classes + 1], gt_classes, use_advanced_loss, sampled),
            "loss_box_reg": self._box_loss(proposals, deltas, box_classes),
        }

    def _box_loss(self, proposals: Sequence[Instances], deltas: Tensor, gt_classes: Tensor) -> Tensor:
        if not len(gt_classes):
            return deltas.sum() * 0.0
        boxes = cat([each.proposal_boxes.tensor for each in proposals])
        # An image without ground truth has background only, of whose boxes nothing is asked.
        gt_boxes = cat([(each.gt_boxes if each.has("gt_boxes") else each.proposal_boxes).tensor for each in proposals])
        return self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes)

    def _sigmoid_loss(self, logits: Tensor, gt_classes: Tensor, advanced: bool, sampled: Tensor | None) -> Tensor:
        """Binary cross entropy over the classes that count, summed, per region; background is no class."""
        if not len(gt_classes):
            return logits.sum() * 0.0
        classes = torch.arange(logits.shape[1] - 1, device=logits.device)
        if advanced and self.use_fed_loss:
            # Only the drawn columns are computed: a loss over 1203 classes costs what one over 50 does.
            drawn = get_fed_loss_inds(gt_classes, self.fed_loss_num_cat, len(classes), self.freq_weight)
            classes = drawn[drawn < len(classes)]
        if advanced and self.ignore_zero_cats:
            weights = self.freq_weight if sampled is None else self.freq_weight[sampled]
            classes = classes[weights[classes] > _HAS_IMAGES]
        everything = len(classes) == logits.shape[1] - 1
        logits = logits[:, :-1] if everything else logits.index_select(1, classes)
        target = (gt_classes[:, None] == classes).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(gt_classes)

    def _softmax_loss(self, logits: Tensor, gt_classes: Tensor, advanced: bool, sampled: Tensor | None) -> Tensor:
        """Cross entropy, the mean over regions weighted by their class."""
        if not len(gt_classes):
            return logits.sum() * 0.0
        weight = None
        if advanced and self.ignore_zero_cats:
            weights = self.freq_weight if sampled is None else self.freq_weight[sampled]
            weight = F.pad((weights > _HAS_IMAGES).to(logits.dtype), (0, 1), value=1.0)
        elif advanced and self.use_fed_loss:
            # As published: every region's own class is among the drawn, so this draws numbers and changes none.
            drawn = get_fed_loss_inds(gt_classes, self.fed_loss_num_cat, logits.shape[1] - 1, self.freq_weight)
            weight = logits.new_zeros(logits.shape[1]).index_fill(0, drawn, 1.0)
        return F.cross_entropy(logits, gt_classes, weight=weight)

    def image_label_losses(
        self,
        predictions: tuple[Tensor, ...],
        proposals: Sequence[Instances],
        image_labels: Sequence[Sequence[int]],
        classifier_info: ClassifierInfo = NO_CLASSIFIER,
        ann_type: str = "image",
    ) -> dict[str, Tensor]:
        """Losses of images with labels or captions: see `ImageLabelLoss`."""
        return self.image_label_loss(predictions, proposals, image_labels, classifier_info, ann_type)

    def predict_boxes(self, predictions: tuple[Tensor, ...], proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Per image (R_i, 4) decoded boxes."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_probs(self, predictions: tuple[Tensor, ...], proposals: Sequence[Instances]) -> tuple[Tensor, ...]:
        """Per image (R_i, C + 1) probabilities, background last."""
        scores = predictions[0]
        probs = scores.sigmoid() if self.use_sigmoid_ce else scores.softmax(dim=-1)
        return probs.split([len(each) for each in proposals])

    def inference(
        self, predictions: tuple[Tensor, ...], proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections of a single stage, and per image the region of each, from the outputs of `forward`."""
        return self._detect(scores_of_logits(predictions[0]), self.predict_boxes(predictions, proposals), proposals)

    def inference_from_features(
        self, x: Tensor, proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """What ``inference(forward(x), proposals)`` returns, in memory that does not grow with the vocabulary."""
        return self._detect(self.linear_scores(x), self.predict_boxes_from_features(x, proposals), proposals)

    def _detect(
        self, scores: LinearScores, boxes: Sequence[Tensor], proposals: Sequence[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        return detect(
            [scores],
            boxes,
            [each.image_size for each in proposals],
            proposal_scores=[each.objectness_logits for each in proposals] if self.mult_proposal_score else None,
            score_thresh=self.test_score_thresh,
            nms_thresh=self.test_nms_thresh,
            topk_per_image=self.test_topk_per_image,
            sigmoid=self.use_sigmoid_ce,
            classes_per_chunk=self.classes_per_chunk,
        )


def _check_options(
    use_zeroshot_cls: bool, cls_score: nn.Module | None, dynamic_classifier: bool, use_fed_loss: bool
) -> None:
    if dynamic_classifier and use_fed_loss:
        raise InputError(
            "MODEL.DYNAMIC_CLASSIFIER and MODEL.ROI_BOX_HEAD.USE_FED_LOSS both sample the classes of the loss: set one"
        )
    if use_zeroshot_cls and cls_score is None:
        raise InputError("a predictor with use_zeroshot_cls needs cls_score, a ZeroShotClassifier")


def _two_layers(input_size: int, output_size: int) -> nn.Sequential:
    first, last = nn.Linear(input_size, input_size), nn.Linear(input_size, output_size)
    c2_xavier_fill(first)
    nn.init.normal_(last.weight, std=0.001)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, nn.ReLU(inplace=True), last)


def _class_weights(path: str, power: float, num_classes: int) -> Tensor:
    """(C,) weights of the classes; those that the file does not know have none."""
    weights = load_class_freq(path, power)
    if len(weights) > num_classes:
        raise InputError(
            f"{path} (MODEL.ROI_BOX_HEAD.CAT_FREQ_PATH) counts images of {len(weights)} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; give the training set's file"
        )
    return F.pad(weights, (0, num_classes - len(weights)))
