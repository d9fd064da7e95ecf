"""The mapper of semantic segmentation as mask classification: ``INPUT.DATASET_MAPPER_NAME mask_former_semantic``."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from mask_former.data.label_maps import LabelMapError, classes_of, masks_of_classes, read_labels

__all__ = ["MaskFormerSemanticDatasetMapper"]

_GREY = 128  # of padded pixels


class MaskFormerSemanticDatasetMapper:
    """From a record with an image and a label map to a sample with one binary mask per class in the image.

    A sample has "image" (3, H, W) uint8, "sem_seg" (H, W) int64, "instances" with gt_classes (n,) in ascending order
    and gt_masks (n, H, W) bool, and whatever else the record has except "sem_seg_file_name".
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        ignore_label: int,
        size_divisibility: int,
        num_classes: int | None = None,
    ) -> None:
        """Use ``MaskFormerSemanticDatasetMapper(cfg, is_train)``, or give the arguments.

        Args:
            is_train: pad as ``size_divisibility`` says.
            augmentations: of image and label map alike.
            image_format: "RGB" or "BGR".
            ignore_label: of pixels without a class.
            size_divisibility: if positive, the side of training samples in pixels, which are padded at the right and
                the bottom. Published under this name, though nothing is divided.
            num_classes: labels from here on are an error; None admits any.
        """
        self.is_train = is_train
        self.tfm_gens = list(augmentations)
        self.img_format = image_format
        self.ignore_label = ignore_label
        self.size_divisibility = size_divisibility
        self.num_classes = num_classes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("augmentations in %s: %s", mode, self.tfm_gens)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Ignored label and classes are those of the first training (or test) set.

        Raises:
            ValueError: crops do not fit into the padded size.
        """
        metadata = MetadataCatalog.get((cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)[0])
        classes = metadata.get("stuff_classes")
        return {
            "is_train": is_train,
            "augmentations": _training_augmentations(cfg) if is_train else [_test_resize(cfg)],
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": metadata.ignore_label,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "num_classes": len(classes) if classes else None,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The sample of a record, which stays as it is.

        Raises:
            LabelMapError: the record names no label map, or has "annotations"; the image is larger than the padded
                size; see also :func:`mask_former.data.label_maps.read_labels`.
        """
        sample = copy.deepcopy(dataset_dict)
        name = sample["file_name"]
        if "annotations" in sample:
            raise LabelMapError(f"{name} has annotations of objects; semantic segmentation needs a label map alone")
        if "sem_seg_file_name" not in sample:
            raise LabelMapError(
                f"{name} has no 'sem_seg_file_name', the label map that training needs; register the data set with one"
            )
        image = utils.read_image(name, format=self.img_format)
        utils.check_image_size(sample, image)
        labels = read_labels(sample.pop("sem_seg_file_name"), image, self.num_classes, self.ignore_label)
        inputs = T.AugInput(image, sem_seg=labels)
        T.AugmentationList(self.tfm_gens)(inputs)
        image = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))  # (3, H, W)
        labels = torch.as_tensor(inputs.sem_seg.astype(np.int64))
        if self.is_train and self.size_divisibility > 0:
            image = self._pad(image, _GREY, name)
            labels = self._pad(labels, self.ignore_label, name)
        sample["image"], sample["sem_seg"] = image, labels
        sample["instances"] = masks_of_classes(labels, classes_of(labels, self.ignore_label))
        return sample

    def _pad(self, image: Tensor, value: int, name: str) -> Tensor:
        height, width = image.shape[-2:]
        size = self.size_divisibility
        if max(height, width) > size:
            raise LabelMapError(
                f"{name} is {width}x{height} (width x height) after augmentation, larger than the {size} pixels of "
                f"INPUT.SIZE_DIVISIBILITY; raise that, or make INPUT.CROP.SIZE at most {size}"
            )
        return F.pad(image, (0, size - width, 0, size - height), value=value)


def _training_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    crop, side = cfg.INPUT.CROP, cfg.INPUT.SIZE_DIVISIBILITY
    augmentations: list[T.Augmentation | T.Transform] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if crop.ENABLED:
        if crop.TYPE == "absolute" and 0 < side < max(crop.SIZE):
            raise ValueError(
                f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}, larger than the {side} pixels of INPUT.SIZE_DIVISIBILITY that "
                f"images are padded to; raise INPUT.SIZE_DIVISIBILITY, or set it to -1"
            )
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    augmentations.append(T.RandomFlip())
    return augmentations


def _test_resize(cfg: CfgNode) -> T.Augmentation:
    return T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
