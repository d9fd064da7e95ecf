"""The mapper of mask classification (ZSSeg's stage 1): ``INPUT.DATASET_MAPPER_NAME mask_former_binary_semantic``."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from mask_former.data.label_maps import masks_of_classes, read_labels
from prompt_pretrain.errors import InputError
from segmentation.data.transforms import CenterCrop, CropImageWithMask, RandomResizedCrop

__all__ = ["MaskFormerBinarySemanticDatasetMapper"]


class MaskFormerBinarySemanticDatasetMapper:
    """From a record with an image, a label map and one of its classes to the picture of that class and its mask.

    A sample has "image" (3, H, W) uint8, "sem_seg" (H, W) int64 with all labels, "instances" with gt_classes (1,) and
    gt_masks (1, H, W) bool, and whatever else the record has except "sem_seg_file_name".
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        ignore_label: int,
        num_classes: int | None = None,
    ) -> None:
        """Use ``MaskFormerBinarySemanticDatasetMapper(cfg, is_train)``, or give the arguments.

        Args:
            is_train: only for the log.
            augmentations: of image and label map alike; they may ask for ``category_id``.
            image_format: "RGB" or "BGR".
            ignore_label: of pixels without a class.
            num_classes: labels from here on are an error; None admits any.
        """
        self.is_train = is_train
        self.tfm_gens = list(augmentations)
        self.img_format = image_format
        self.ignore_label = ignore_label
        self.num_classes = num_classes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("augmentations in %s: %s", mode, self.tfm_gens)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """INPUT.MIN_SIZE_TRAIN is (width, height) of training samples, INPUT.MIN_SIZE_TEST the side of others.

        Raises:
            InputError: INPUT.MIN_SIZE_TRAIN is not two numbers.
        """
        metadata = MetadataCatalog.get((cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)[0])
        classes = metadata.get("stuff_classes")
        augmentations: list[T.Augmentation] = [CropImageWithMask([cfg.MODEL.CLIP_ADAPTER.MASK_EXPAND_RATIO] * 2)]
        if is_train:
            size = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
            if len(size) != 2:
                raise InputError(
                    f"INPUT.MIN_SIZE_TRAIN is {size}; INPUT.DATASET_MAPPER_NAME mask_former_binary_semantic takes two "
                    f"numbers, width and height of its pictures"
                )
            augmentations += [RandomResizedCrop(size), T.RandomFlip()]
        else:
            augmentations.append(CenterCrop(cfg.INPUT.MIN_SIZE_TEST, metadata.ignore_label))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": metadata.ignore_label,
            "num_classes": len(classes) if classes else None,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """The sample of a record, which stays as it is; None if the crop shows nothing of the class.

        Raises:
            InputError: the record lacks its class or its label map, or the map does not have the class.
            LabelMapError: see :func:`mask_former.data.label_maps.read_labels`.
        """
        sample = copy.deepcopy(dataset_dict)
        for key in ("category_id", "sem_seg_file_name"):
            if key not in sample:
                raise InputError(
                    f"{sample['file_name']} has no {key!r}; mask classification needs a data set with one record per "
                    f"class of an image, such as voc_sem_seg_train_classification"
                )
        image = utils.read_image(sample["file_name"], format=self.img_format)
        utils.check_image_size(sample, image)
        label_file, category = sample.pop("sem_seg_file_name"), sample["category_id"]
        labels = read_labels(label_file, image, self.num_classes, self.ignore_label)
        if not (labels == category).any():
            raise InputError(
                f"label map {label_file} has no pixel of class {category}, which the label counts of its folder list; "
                f"count again with datasets/prepare_label_count.py"
            )
        inputs = T.AugInput(image, sem_seg=labels)
        inputs.category_id = category
        T.AugmentationList(self.tfm_gens)(inputs)
        labels = torch.as_tensor(inputs.sem_seg.astype(np.int64))
        instances = masks_of_classes(labels, torch.tensor([category], dtype=torch.int64))
        if not instances.gt_masks.any():
            return None
        sample["image"] = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))  # (3, H, W)
        sample["sem_seg"], sample["instances"] = labels, instances
        return sample
