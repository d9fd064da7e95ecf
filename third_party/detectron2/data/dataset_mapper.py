"""The default mapper from an entry of a data set to an input of a model."""

import copy
import logging
from typing import Any

import cv2
import numpy as np
import torch

from detectron2.config.configurable import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.label_maps import check_label_map, read_label_map
from detectron2.utils.left_out import needs_real_detectron2

__all__ = ["DatasetMapper"]

_SEMANTIC_MODELS = ("SemanticSegmentor", "PanopticFPN")  # those that train on the label map


class DatasetMapper:
    """Reads the image, applies augmentations to it and to its annotations, and makes tensors of them.

    Use ``DatasetMapper(cfg, is_train=True)``, or give the arguments of the constructor. The result has all keys of
    the entry but the annotations, and "image" ((C, H, W) tensor, uint8 images stay uint8); in training also
    "instances"; "sem_seg" ((H, W) int64) where the entry names a label map.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        num_sem_seg_classes: int | None = None,
        sem_seg_ignore_value: int = 255,
    ) -> None:
        """Args:
        is_train: with annotations.
        augmentations: augmentations or transforms, in this order.
        image_format: as in ``detection_utils.read_image``.
        use_instance_mask: whether to keep masks.
        instance_mask_format: "polygon" or "bitmask".
        precomputed_proposal_topk: number of precomputed proposals to keep, if there are any.
        recompute_boxes: take boxes from the (cropped) masks.
        num_sem_seg_classes: check label maps against it; None does not.
        sem_seg_ignore_value: the other allowed value.
        """
        if use_keypoint:
            raise needs_real_detectron2("DatasetMapper(use_keypoint=True), MODEL.KEYPOINT_ON")
        if recompute_boxes:
            assert use_instance_mask, "recompute_boxes takes boxes from masks: it needs use_instance_mask"
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.num_sem_seg_classes = num_sem_seg_classes
        self.sem_seg_ignore_value = sem_seg_ignore_value
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info("augmentations in %s: %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
        }
        if cfg.MODEL.LOAD_PROPOSALS:
            arguments["precomputed_proposal_topk"] = (
                cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN
                if is_train
                else cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            )
        if is_train and cfg.MODEL.META_ARCHITECTURE in _SEMANTIC_MODELS:
            arguments["num_sem_seg_classes"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            arguments["sem_seg_ignore_value"] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """The entry, which stays as it is, as an input of a model."""
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        aug_input = T.AugInput(image, sem_seg=self._read_sem_seg(dataset_dict, image))
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        dataset_dict["image"] = _to_tensor(aug_input.image)
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            dataset_dict.pop("sem_seg_file_name", None)
            return dataset_dict
        if "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _read_sem_seg(self, dataset_dict: dict, image: np.ndarray) -> np.ndarray | None:
        """The label map that the entry names; the key is removed."""
        if "sem_seg_file_name" not in dataset_dict:
            return None
        file_name = dataset_dict.pop("sem_seg_file_name")
        labels = read_label_map(file_name)
        if labels.shape != image.shape[:2]:
            raise utils.SizeMismatchError(
                f"label map {file_name} is {labels.shape[1]}x{labels.shape[0]} (width x height), its image "
                f"{dataset_dict['file_name']} {image.shape[1]}x{image.shape[0]}; make them equal"
            )
        if self.num_sem_seg_classes is not None:
            check_label_map(labels, self.num_sem_seg_classes, self.sem_seg_ignore_value, file_name)
        return labels

    def _transform_annotations(self, dataset_dict: dict, transforms: T.Transform, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances"."""
        for annotation in dataset_dict["annotations"]:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            annotation.pop("keypoints", None)
        transformed = [
            utils.transform_instance_annotations(annotation, transforms, image_shape)
            for annotation in dataset_dict.pop("annotations")
            if annotation.get("iscrowd", 0) == 0
        ]
        try:
            instances = utils.annotations_to_instances(transformed, image_shape, self.instance_mask_format)
        except ValueError as error:
            raise ValueError(f"{dataset_dict['file_name']}: {error}") from error
        # After a crop the box of what is left may be much tighter than the cropped box.
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(C, H, W) tensor of an (H, W, C) image."""
    # OpenCV takes images apart several times faster than NumPy, unless it has to make them contiguous before.
    if image.dtype != np.uint8 or not image.flags.c_contiguous:
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), dtype=np.uint8)
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)
