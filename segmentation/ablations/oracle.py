"""How good a segmenter's masks are if the ground truth classifies them: an upper bound of mask classification."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from mask_former import MaskFormer
from prompt_pretrain.errors import InputError
from segmentation.zero_shot_mask_former import ZeroShotMaskFormer

__all__ = ["OracleMaskFormer", "oracle_scores"]


@META_ARCH_REGISTRY.register()
class OracleMaskFormer(MaskFormer):
    """MaskFormer whose masks get their classes from the ground truth at test time; trained as usual.

    Evaluate it with ``ORACLE True`` and ``INPUT.DATASET_MAPPER_NAME mask_former_semantic``, so that inputs have masks.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As :meth:`MaskFormer.forward`; inputs have ``instances`` at test time too.

        Raises:
            InputError: an input without masks of its size, or with a label beyond NUM_CLASSES.
        """
        if self.training:
            return super().forward(batched_inputs)
        images = self.preprocess(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor))
        masks = ZeroShotMaskFormer.image_masks(outputs["pred_masks"], images)
        results = []
        for x, mask, size in zip(batched_inputs, masks, images.image_sizes, strict=True):
            truth = self._ground_truth(x, tuple(size))
            scores = oracle_scores(mask, truth.gt_masks, truth.gt_classes, self.sem_seg_head.num_classes)
            found = torch.einsum("qc,qhw->chw", scores, mask)
            results.append(
                {"sem_seg": sem_seg_postprocess(found, size, x.get("height", size[0]), x.get("width", size[1]))}
            )
        return results

    def _ground_truth(self, x: dict[str, Any], size: tuple[int, ...]) -> Instances:
        name, classes = x.get("file_name", "an input"), self.sem_seg_head.num_classes
        if "instances" not in x:
            raise InputError(
                f"{name} has no ground-truth masks, which OracleMaskFormer classifies by; set ORACLE True and "
                "INPUT.DATASET_MAPPER_NAME mask_former_semantic"
            )
        truth: Instances = x["instances"].to(self.device)
        if tuple(truth.gt_masks.shape[-2:]) != size:
            raise InputError(
                f"the masks of {name} have size {tuple(truth.gt_masks.shape[-2:])} (height, width), its image {size}; "
                "use the test mapper mask_former_semantic, which resizes both"
            )
        if len(truth) and int(truth.gt_classes.max()) >= classes:
            raise InputError(
                f"{name} has label {int(truth.gt_classes.max())}, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}; "
                "evaluate on a data set of as many classes"
            )
        return truth


def oracle_scores(masks: Tensor, gt_masks: Tensor, gt_classes: Tensor, num_classes: int) -> Tensor:
    """(Q, K) class scores: IoU of each mask (Q, H, W) > 0.5 with the true masks (n, H, W), scaled to a sum of 1.

    A mask that meets no true mask scores 0 for all classes.
    """
    found, true = (masks > 0.5).flatten(1).float(), gt_masks.flatten(1).float()
    common = found @ true.T  # (Q, n)
    union = found.sum(1)[:, None] + true.sum(1) - common
    shares = F.normalize(common / union.clamp(min=1), p=1, dim=1)
    return shares.new_zeros(len(masks), num_classes).index_add_(1, gt_classes, shares)
