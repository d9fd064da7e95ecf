"""From a record of a data set to an input of the detector, for box-annotated and image-labelled images."""

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import detectron2.data.transforms as T
from detection.data.tar_dataset import DiskTarDataset
from detection.data.transforms import build_custom_augmentation
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.structures import Instances
from prompt_pretrain.errors import InputError

__all__ = ["ANNOTATION_KINDS", "CustomDatasetMapper", "build_train_mapper"]

ANNOTATION_KINDS = ("box", "image", "caption", "captiontag", "prop", "proptag")


class CustomDatasetMapper(DatasetMapper):
    """A mapper that knows several data sets, each with its own kind of annotation and its own image sizes.

    Use ``CustomDatasetMapper(cfg, is_train=True)``, or give the arguments of the constructor. In training a sample has
    "image" ((C, H, W) uint8), "instances" and, with ``with_ann_type``, "ann_type" and "pos_category_ids" (a list, empty
    where the record has none), besides all other keys of its record.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        with_ann_type: bool = False,
        dataset_ann: Sequence[str] = (),
        use_diff_bs_size: bool = False,
        dataset_augs: Sequence[Sequence[T.Augmentation]] = (),
        is_debug: bool = False,
        use_tar_dataset: bool = False,
        tarfile_path: str | os.PathLike = "",
        tar_index_dir: str | os.PathLike = "",
        **kwargs: Any,
    ) -> None:
        """Args:
        is_train: with annotations.
        with_ann_type: add the kind of annotation and the image labels.
        dataset_ann: kind of annotation of each data set, of ``ANNOTATION_KINDS``.
        use_diff_bs_size: in training, use ``dataset_augs`` instead of the common augmentations.
        dataset_augs: augmentations of each data set.
        is_debug: take every record for one of the first data set, and missing image labels from its boxes.
        use_tar_dataset: read images without a file name from tar archives.
        tarfile_path, tar_index_dir: of ``DiskTarDataset``.
        kwargs: of detectron2's ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        unknown = [kind for kind in dataset_ann if kind not in ANNOTATION_KINDS]
        if unknown:
            raise InputError(
                f"DATALOADER.DATASET_ANN holds {unknown[0]!r}, expected one of {', '.join(ANNOTATION_KINDS)} per "
                f"training set"
            )
        self.with_ann_type = with_ann_type
        self.dataset_ann = list(dataset_ann)
        self.use_diff_bs_size = use_diff_bs_size and is_train
        self.dataset_augs = [T.AugmentationList(augmentations) for augmentations in dataset_augs]
        self.is_debug = is_debug
        self.tar_dataset = DiskTarDataset(tarfile_path, tar_index_dir) if use_tar_dataset else None

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        if cfg.INPUT.CUSTOM_AUG:
            arguments["augmentations"] = build_custom_augmentation(cfg, is_train)
        loader = cfg.DATALOADER
        arguments.update(
            with_ann_type=cfg.WITH_IMAGE_LABELS,
            dataset_ann=loader.DATASET_ANN,
            use_diff_bs_size=loader.USE_DIFF_BS_SIZE,
            is_debug=cfg.IS_DEBUG,
            use_tar_dataset=loader.USE_TAR_DATASET,
            tarfile_path=loader.TARFILE_PATH,
            tar_index_dir=loader.TAR_INDEX_DIR,
        )
        if is_train and loader.USE_DIFF_BS_SIZE:
            arguments["dataset_augs"] = _augmentations_per_dataset(cfg)
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """The record, which stays as it is, as an input of the detector.

        Raises:
            InputError: the record has no file, or its "dataset_source" is beyond the settings.
            SizeMismatchError: its image has another size than it says.
            ImageError, OSError: its image cannot be read.
        """
        dataset_dict = _copied(dataset_dict)
        source = 0 if self.is_debug else dataset_dict.get("dataset_source", 0)
        image = self._read_image(dataset_dict)
        utils.check_image_size(dataset_dict, image)
        aug_input = T.AugInput(image)
        transforms = self._augmentations(source)(aug_input)
        image = aug_input.image
        # torch takes no negative strides, which BGR images and flips have; ascontiguousarray keeps those of 1 pixel.
        dataset_dict["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image.shape[:2], transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            return dataset_dict
        if "annotations" in dataset_dict:
            annotations = dataset_dict.pop("annotations")
            dataset_dict["instances"] = self._instances(annotations, transforms, image.shape[:2], dataset_dict)
        if self.with_ann_type:
            self._add_image_labels(dataset_dict, source)
        return dataset_dict

    def _read_image(self, dataset_dict: dict) -> np.ndarray:
        if "file_name" in dataset_dict:
            return utils.read_image(dataset_dict["file_name"], format=self.image_format)
        if "tar_index" in dataset_dict and self.tar_dataset is not None:
            try:
                image = self.tar_dataset.read_image(dataset_dict["tar_index"])
            except IndexError as error:
                raise InputError(f"{error}; the annotations and DATALOADER.TARFILE_PATH do not fit") from error
            return utils.convert_PIL_to_numpy(image, self.image_format)
        raise InputError(
            f"image {dataset_dict.get('image_id')!r} has neither a file_name nor, with DATALOADER.USE_TAR_DATASET, a "
            f"tar_index; its keys are {', '.join(map(str, dataset_dict))}"
        )

    def _augmentations(self, source: int) -> T.AugmentationList:
        if not self.use_diff_bs_size:
            return self.augmentations
        _check_source(source, self.dataset_augs, "sizes and scales in DATALOADER.DATASET_INPUT_* or DATASET_*_SIZES")
        return self.dataset_augs[source]

    def _instances(
        self, annotations: list[dict], transforms: T.Transform, image_size: tuple[int, int], dataset_dict: dict
    ) -> Instances:
        for annotation in annotations:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
        transformed = [
            utils.transform_instance_annotations(
                annotation, transforms, image_size, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
            for annotation in annotations
            if annotation.get("iscrowd", 0) == 0
        ]
        for annotation in transformed:
            if isinstance(annotation.get("segmentation"), np.ndarray):  # strides as above
                annotation["segmentation"] = annotation["segmentation"].copy()
        try:
            instances = utils.annotations_to_instances(transformed, image_size, mask_format=self.instance_mask_format)
        except (ValueError, KeyError) as error:
            name = dataset_dict.get("file_name", dataset_dict.get("image_id"))
            raise InputError(f"annotations of {name}: {error}") from error
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return utils.filter_empty_instances(instances)

    def _add_image_labels(self, dataset_dict: dict, source: int) -> None:
        dataset_dict.setdefault("pos_category_ids", [])
        _check_source(source, self.dataset_ann, "kinds of annotation in DATALOADER.DATASET_ANN")
        dataset_dict["ann_type"] = self.dataset_ann[source]
        if self.is_debug and not dataset_dict["pos_category_ids"]:
            dataset_dict["pos_category_ids"] = sorted(set(dataset_dict["instances"].gt_classes.tolist()))


def build_train_mapper(cfg: Any) -> DatasetMapper:
    """``CustomDatasetMapper`` for training with image labels, else detectron2's mapper with the same augmentations."""
    if cfg.WITH_IMAGE_LABELS:
        return CustomDatasetMapper(cfg, True)
    if not cfg.INPUT.CUSTOM_AUG:
        return DatasetMapper(cfg, True)
    return DatasetMapper(cfg, True, augmentations=build_custom_augmentation(cfg, True))


def _copied(record: dict) -> dict:
    """A copy to change; a deep one of thousands of polygon coordinates would take longer than decoding the image."""
    annotations = [dict(annotation) for annotation in record.get("annotations", ())]
    for annotation in annotations:
        if isinstance(annotation.get("segmentation"), list):
            annotation["segmentation"] = [np.array(polygon) for polygon in annotation["segmentation"]]
    rest = copy.deepcopy({key: value for key, value in record.items() if key != "annotations"})
    return rest | {"annotations": annotations} if "annotations" in record else rest


def _augmentations_per_dataset(cfg: Any) -> list[list[T.Augmentation]]:
    loader = cfg.DATALOADER
    if cfg.INPUT.CUSTOM_AUG == "EfficientDetResizeCrop":
        _check_lengths(cfg, "DATASET_INPUT_SCALE", "DATASET_INPUT_SIZE")
        pairs = zip(loader.DATASET_INPUT_SCALE, loader.DATASET_INPUT_SIZE, strict=False)
        return [build_custom_augmentation(cfg, True, scale=scale, size=size) for scale, size in pairs]
    if cfg.INPUT.CUSTOM_AUG == "ResizeShortestEdge":
        _check_lengths(cfg, "DATASET_MIN_SIZES", "DATASET_MAX_SIZES")
        pairs = zip(loader.DATASET_MIN_SIZES, loader.DATASET_MAX_SIZES, strict=False)
        return [build_custom_augmentation(cfg, True, min_size=low, max_size=high) for low, high in pairs]
    raise InputError(
        f"DATALOADER.USE_DIFF_BS_SIZE needs INPUT.CUSTOM_AUG EfficientDetResizeCrop or ResizeShortestEdge, got "
        f"{cfg.INPUT.CUSTOM_AUG!r}"
    )


def _check_lengths(cfg: Any, *keys: str) -> None:
    for key in keys:
        if len(cfg.DATALOADER[key]) < len(cfg.DATASETS.TRAIN):
            raise InputError(
                f"DATALOADER.{key} has {len(cfg.DATALOADER[key])} entries for the {len(cfg.DATASETS.TRAIN)} data sets "
                f"of DATASETS.TRAIN; give one each"
            )


def _check_source(source: int, settings: Sequence[Any], what: str) -> None:
    if not 0 <= source < len(settings):
        raise InputError(
            f"an image is of training set number {source + 1}, but there are {len(settings)} {what}; give one per name "
            f"in DATASETS.TRAIN"
        )
