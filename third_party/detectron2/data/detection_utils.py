"""What mappers are made of: reading images, transforming annotations, turning them into ``Instances``."""

import logging
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from fvcore.transforms.transform import CropTransform, Transform, TransformList
from PIL import Image
from torch import Tensor

from detectron2.data import transforms as T
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures.boxes import Boxes, BoxMode
from detectron2.structures.instances import Instances
from detectron2.structures.masks import BitMasks, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager
from detectron2.utils.left_out import left_out, needs_real_detectron2

__all__ = [
    "CorruptImageError",
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_fed_loss_cls_weights",
    "read_image",
    "transform_instance_annotations",
    "transform_keypoint_annotations",
    "transform_proposals",
]

__getattr__ = left_out(__name__, "annotations_to_instances_rotated", "create_keypoint_hflip_indices")

logger = logging.getLogger(__name__)

_YUV_FROM_RGB = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])  # BT.601
_RGB_FROM_YUV = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> what turns the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for broken files of one format or another.
BROKEN_FILE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class SizeMismatchError(ValueError):
    """An image does not have the size that its annotations say."""


class CorruptImageError(OSError, ValueError):
    """A file exists but cannot be read as an image."""


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image, turned upright as its EXIF data says.

    Args:
        format: "RGB" or "BGR": (H, W, 3) uint8; "L": (H, W, 1) uint8; "YUV-BT.601": (H, W, 3) float64; another Pillow
            mode; None: as stored.
    Raises:
        FileNotFoundError: there is no such file.
        CorruptImageError: the file is not a whole image.
    """
    with PathManager.open(file_name, "rb") as file:
        try:
            image = _apply_exif_orientation(Image.open(file))
            return convert_PIL_to_numpy(image, format)
        except BROKEN_FILE as error:
            reason = (
                "not an image, or of an unknown format" if isinstance(error, Image.UnidentifiedImageError) else error
            )
            raise CorruptImageError(f"{file_name} cannot be read: {reason}; fetch it again or drop it") from error


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:  # noqa: N802
    """Pillow image to array; formats as in ``read_image``."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _YUV_FROM_RGB.T)
    return array


def convert_image_to_rgb(image: np.ndarray | Tensor, format: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB from an image in one of the formats of ``read_image``."""
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, ::-1]
    if format == "YUV-BT.601":
        return (np.dot(image, _RGB_FROM_YUV.T) * 255.0).round().clip(0, 255).astype(np.uint8)
    if format == "L":
        return np.repeat(image if image.ndim == 3 else image[:, :, None], 3, axis=2).astype(np.uint8)
    return np.asarray(Image.fromarray(image.astype(np.uint8), mode=format).convert("RGB"))


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # odd metadata is no reason to lose the image
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare the image with the dict's "width" and "height"; fill in what is missing.

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    found = {"width": width, "height": height}
    if any(key in dataset_dict and dataset_dict[key] != value for key, value in found.items()):
        names = [f"{key} {dataset_dict[key]!r}" for key in ("image_id", "file_name") if key in dataset_dict]
        raise SizeMismatchError(
            f"image {', '.join(names) or 'without a name'} is {width}x{height} (width x height), but its annotations "
            f"say {dataset_dict.get('width', width)}x{dataset_dict.get('height', height)}; check width and height, or "
            f"an EXIF rotation that the annotations leave out"
        )
    for key, value in found.items():
        dataset_dict.setdefault(key, value)


def transform_proposals(
    dataset_dict: dict,
    image_shape: tuple[int, int],
    transforms: Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Replace "proposal_boxes", "proposal_bbox_mode" and "proposal_objectness_logits", if there, by "proposals".

    Args:
        image_shape: (h, w) after the transforms.
        proposal_topk: number of proposals to keep.
        min_box_size: both sides of a box have to be longer.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    boxes = BoxMode.convert(
        dataset_dict.pop("proposal_boxes"), dataset_dict.pop("proposal_bbox_mode"), BoxMode.XYXY_ABS
    )
    boxes = Boxes(transforms.apply_box(boxes))
    logits = torch.as_tensor(np.asarray(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32))
    boxes.clip(image_shape)
    kept = boxes.nonempty(threshold=min_box_size)
    dataset_dict["proposals"] = Instances(
        image_shape, proposal_boxes=boxes[kept][:proposal_topk], objectness_logits=logits[kept][:proposal_topk]
    )


def transform_instance_annotations(
    annotation: dict,
    transforms: Transform | Sequence[Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict:
    """Transform the box and the mask of one annotation, in place.

    The box becomes a (4,) xyxy array clipped to the image; polygons stay polygons, RLE becomes a (H, W) array.

    Args:
        image_size: (h, w) after the transforms.
    Returns:
        The same dict.
    Raises:
        ValueError: the segmentation is neither a list of polygons nor RLE, or has another size than the image.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = TransformList(list(transforms))
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    # The array keeps the type: coordinates given as integers are cut off to integers, as they are upstream.
    box = transforms.apply_box(np.array([box]))[0].clip(min=0)
    height, width = image_size
    annotation["bbox"] = np.minimum(box, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _transform_segmentation(
    segmentation: list | dict, transforms: Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        polygons = [np.array(polygon).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        if tuple(mask.shape[:2]) != tuple(image_size):
            raise ValueError(
                f"the RLE mask of size {segmentation['size']} (height, width) becomes {mask.shape[:2]} and its image "
                f"{tuple(image_size)}; an RLE mask must have the size of its image"
            )
        return mask
    raise ValueError(
        f"cannot transform a segmentation of type {type(segmentation).__name__}; expected polygons as a list of flat "
        f"lists or arrays, or COCO's RLE as a dict"
    )


def transform_keypoint_annotations(*args: Any, **kwargs: Any) -> np.ndarray:
    """Not provided: keypoints need the real detectron2."""
    raise needs_real_detectron2("detectron2.data.detection_utils.transform_keypoint_annotations")


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """Ground truth of one image: gt_boxes, gt_classes (int64) and, if the first annotation has a mask, gt_masks.

    Args:
        annos: transformed annotations.
        image_size: (h, w).
        mask_format: "polygon" or "bitmask"; the latter also takes RLE and (H, W) arrays.
    Raises:
        ValueError: a mask is missing, or does not suit the format.
    """
    boxes = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    if annos and "segmentation" in annos[0]:
        without = [number for number, anno in enumerate(annos) if "segmentation" not in anno]
        if without:
            raise ValueError(
                f"annotation {without[0]} of {len(annos)} has no 'segmentation' though the first one has; give masks "
                f"to all annotations of an image or to none, or train without masks (MODEL.MASK_ON False)"
            )
        masks = [anno["segmentation"] for anno in annos]
        target.gt_masks = _to_polygons(masks) if mask_format == "polygon" else _to_bitmasks(masks, image_size)
    if annos and "keypoints" in annos[0]:
        raise needs_real_detectron2("annotations_to_instances with keypoints")
    return target


def _to_polygons(masks: list[Any]) -> PolygonMasks:
    try:
        return PolygonMasks(masks)
    except ValueError as error:
        raise ValueError(
            f"mask_format 'polygon' cannot hold these annotations ({error}); set INPUT.MASK_FORMAT to 'bitmask'"
        ) from error


def _to_bitmasks(masks: list[Any], image_size: tuple[int, int]) -> BitMasks:
    arrays = []
    for mask in masks:
        if isinstance(mask, list):
            arrays.append(polygons_to_bitmask(mask, *image_size))
        elif isinstance(mask, dict):
            arrays.append(mask_util.decode(mask))
        elif isinstance(mask, np.ndarray) and mask.ndim == 2:
            arrays.append(mask)
        else:
            what = f"an array of shape {mask.shape}" if isinstance(mask, np.ndarray) else f"a {type(mask).__name__}"
            raise ValueError(f"cannot make a bitmask of {what}; expected polygons as a list, RLE, or an (H, W) array")
    return BitMasks(torch.stack([torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]))


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, Tensor]:
    """Leave out instances with an empty box (a side not above ``box_threshold``) or an empty mask.

    Returns:
        The rest; with ``return_mask`` also the (N,) bool of those kept.
    """
    assert by_box or by_mask, "filter by box, by mask, or both"
    kept = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty().to(kept.device)
    return (instances[kept], kept) if return_mask else instances[kept]


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> Tensor:
    """(C,) image count of each class to the given power, from the metadata "class_image_count" of the first data set.

    Raises:
        ValueError: the data sets differ in their counts, or have none.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    check_metadata_consistency("class_image_count", names)
    counts = MetadataCatalog.get(names[0]).get("class_image_count")
    if counts is None:
        raise ValueError(f"data set {names[0]!r} has no metadata 'class_image_count', which the federated loss needs")
    ordered = [row["image_count"] for row in sorted(counts, key=lambda row: row["id"])]
    return torch.tensor(ordered, dtype=torch.float32) ** freq_weight_power


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> CropTransform:
    """A random window of (h, w) ``crop_size`` that holds the centre of the annotation's box.

    Raises:
        AssertionError: the window exceeds the image, or the centre lies outside of it.
    """
    x0, y0, x1, y1 = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    starts = []
    for size, length, center in zip(image_size, crop_size, ((y0 + y1) / 2, (x0 + x1) / 2), strict=True):
        assert size >= length, f"the window {tuple(crop_size)} exceeds the image {tuple(image_size)}"
        assert 0 <= center <= size, (
            f"the centre of box {instance['bbox']} lies outside of the image {tuple(image_size)}"
        )
        lowest = max(int(np.floor(center)) - length, 0)
        highest = min(size - length, int(np.ceil(center)))
        starts.append(int(np.random.randint(min(lowest, highest), highest + 1)))
    return CropTransform(starts[1], starts[0], crop_size[1], crop_size[0])


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise ValueError unless all data sets have the same value, or all none, under ``key`` in their metadata."""
    if not dataset_names:
        return
    first = MetadataCatalog.get(dataset_names[0]).get(key)
    for name in dataset_names[1:]:
        if MetadataCatalog.get(name).get(key) != first:
            raise ValueError(
                f"data sets {dataset_names[0]!r} and {name!r} cannot be used together: they differ in their metadata "
                f"{key!r}, see MetadataCatalog.get(NAME).{key}"
            )


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """What ``cfg.INPUT`` says: resizing and, in training, flipping."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}, expected none, horizontal or vertical")
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gen = build_augmentation  # former name
