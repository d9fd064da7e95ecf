"""Test-time augmentation: several sizes, with and without flip, merged into one result."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fvcore.transforms import HFlipTransform, NoOpTransform, Transform, TransformList
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge, ResizeTransform, apply_augmentations
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.detections import fast_rcnn_inference_single_image
from detectron2.structures.boxes import Boxes
from detectron2.structures.instances import Instances

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA"]

_MIN_SCORE = 1e-8  # of merged detections: the model has applied its threshold already


class DatasetMapperTTA:
    """Makes the augmented versions of an image: every size, and with ``flip`` also each of them flipped."""

    @configurable
    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool) -> None:
        """Sizes in pixels.

        Args:
            min_sizes: lengths of the shortest side, one version each.
            max_size: limit of the longest side.
        """
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        augmentation = cfg.TEST.AUG
        return {
            "min_sizes": augmentation.MIN_SIZES,
            "max_size": augmentation.MAX_SIZE,
            "flip": augmentation.FLIP,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Versions of one image.

        Args:
            dataset_dict: with image (C, H, W) and the original image's height and width.
        Returns:
            Copies with another image and ``transforms``, which take coordinates of the original image there.
        """
        image = dataset_dict["image"].permute(1, 2, 0).cpu().numpy()
        original = (dataset_dict["height"], dataset_dict["width"])
        to_current: Transform = NoOpTransform()
        if original != image.shape[:2]:
            to_current = ResizeTransform(*original, *image.shape[:2])
        versions = []
        for min_size in self.min_sizes:
            resize = ResizeShortestEdge(min_size, self.max_size)
            for augmentations in [[resize], [resize, RandomFlip(prob=1.0)]][: 2 if self.flip else 1]:
                new_image, transforms = apply_augmentations(augmentations, image.copy())
                version = copy.deepcopy({key: value for key, value in dataset_dict.items() if key != "image"})
                version["image"] = torch.from_numpy(np.ascontiguousarray(new_image.transpose(2, 0, 1)))
                version["transforms"] = TransformList([to_current]) + transforms
                versions.append(version)
        return versions


class GeneralizedRCNNWithTTA(nn.Module):
    """A ``GeneralizedRCNN`` for inference with test-time augmentation.

    Boxes of all versions go through one non-maximum suppression; masks of what is left are predicted on every version
    and averaged.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
        batch_size: int = 3,
    ) -> None:
        """``batch_size``: how many versions to run at once. The mapper may resize and flip horizontally."""
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not isinstance(model, GeneralizedRCNN):
            raise TypeError(f"test-time augmentation is for GeneralizedRCNN, got {type(model).__name__}")
        if cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON:
            raise ValueError(
                "test-time augmentation has no keypoints and no given proposals; "
                "set MODEL.KEYPOINT_ON and MODEL.LOAD_PROPOSALS to False, or TEST.AUG.ENABLED to False"
            )
        self.cfg = cfg.clone()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def __call__(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As ``GeneralizedRCNN`` in evaluation mode; inputs without an image are read from their file."""
        return [self._inference_one_image(self._with_image(inputs)) for inputs in batched_inputs]

    def _with_image(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        if "image" not in inputs:
            image = read_image(inputs["file_name"], self.model.input_format)
            inputs["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if "height" not in inputs and "width" not in inputs:
            inputs["height"], inputs["width"] = inputs["image"].shape[1:]
        return inputs

    def _inference_one_image(self, inputs: dict[str, Any]) -> dict[str, Instances]:
        size = (inputs["height"], inputs["width"])
        versions = self.tta_mapper(inputs)
        transforms = [version.pop("transforms") for version in versions]
        _check_transforms(transforms)
        with self._without_masks():
            found = self._run(versions)
        merged = self._merge(found, transforms, size)
        if self.cfg.MODEL.MASK_ON and len(merged):
            merged.pred_masks = self._masks(merged, versions, transforms)
        elif self.cfg.MODEL.MASK_ON:
            merged.pred_masks = torch.zeros((0, 1, 1, 1), device=merged.scores.device)
        return {"instances": detector_postprocess(merged, *size)}

    @contextmanager
    def _without_masks(self) -> Iterator[None]:
        """Masks of boxes that may be suppressed would be a waste."""
        heads = self.model.roi_heads
        had_masks = getattr(heads, "mask_on", False)
        heads.mask_on = False
        try:
            yield
        finally:
            heads.mask_on = had_masks

    def _run(self, versions: list[dict[str, Any]], given: list[Instances] | None = None) -> list[Instances]:
        """Detections on each version, or with ``given`` ones their masks; in the versions' coordinates."""
        outputs = []
        for start in range(0, len(versions), self.batch_size):
            part = slice(start, start + self.batch_size)
            outputs += self.model.inference(versions[part], given and given[part], do_postprocess=False)
        return outputs

    def _merge(self, found: list[Instances], transforms: list[TransformList], size: tuple[int, int]) -> Instances:
        """Detections in the original image's coordinates."""
        boxes = torch.cat(
            [
                _apply_to_boxes(transform.inverse(), instances.pred_boxes.tensor)
                for instances, transform in zip(found, transforms, strict=True)
            ]
        )
        scores = torch.cat([instances.scores for instances in found])
        classes = torch.cat([instances.pred_classes for instances in found])
        # A column per class and one for the background; each box has a score for its own class alone.
        per_class = scores.new_zeros(len(scores), self.cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1)
        per_class[torch.arange(len(scores), device=scores.device), classes] = scores
        merged, _ = fast_rcnn_inference_single_image(
            boxes,
            per_class,
            size,
            _MIN_SCORE,
            self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        return merged

    def _masks(self, merged: Instances, versions: list[dict[str, Any]], transforms: list[TransformList]) -> Tensor:
        """(n, 1, S, S) mean of the probabilities on all versions."""
        given = []
        for version, transform in zip(versions, transforms, strict=True):
            boxes = _apply_to_boxes(transform, merged.pred_boxes.tensor)
            instances = Instances(tuple(version["image"].shape[1:]))
            instances.pred_boxes = Boxes(boxes)
            instances.pred_classes = merged.pred_classes
            instances.scores = merged.scores
            given.append(instances)
        masks = [
            instances.pred_masks.flip(dims=[3]) if _flips(transform) else instances.pred_masks
            for instances, transform in zip(self._run(versions, given), transforms, strict=True)
        ]
        return torch.stack(masks).mean(dim=0)


def _apply_to_boxes(transform: TransformList, boxes: Tensor) -> Tensor:
    moved = transform.apply_box(boxes.cpu().numpy().astype(np.float64))
    return torch.as_tensor(moved, dtype=boxes.dtype, device=boxes.device).reshape(-1, 4)


def _flips(transforms: TransformList) -> bool:
    return sum(isinstance(transform, HFlipTransform) for transform in transforms.transforms) % 2 == 1


def _check_transforms(transforms: list[TransformList]) -> None:
    for transform in (item for items in transforms for item in items.transforms):
        if not isinstance(transform, HFlipTransform | ResizeTransform | NoOpTransform):
            raise ValueError(
                f"test-time augmentation can only resize and flip horizontally, not {type(transform).__name__}"
            )
