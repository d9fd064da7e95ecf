"""Cityscapes: pairs of images and semantic label maps. Its instances need the real detectron2."""

import logging
import os

from detectron2.data.datasets.annotation_file import AnnotationError
from detectron2.utils.file_io import PathManager
from detectron2.utils.left_out import left_out

__all__ = ["load_cityscapes_semantic"]

__getattr__ = left_out(__name__, "load_cityscapes_instances")

_IMAGE_ENDING = "leftImg8bit.png"
_LABEL_ENDING = "gtFine_labelTrainIds.png"
_HEIGHT, _WIDTH = 1024, 2048  # of all images

logger = logging.getLogger(__name__)


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[dict]:
    """Entries with "file_name", "sem_seg_file_name", "height" and "width", sorted by city and name.

    Args:
        image_dir: such as "cityscapes/leftImg8bit/train".
        gt_dir: such as "cityscapes/gtFine/train".
    Raises:
        AnnotationError: no images, or an image without label map.
    """
    records = []
    for city in sorted(PathManager.ls(image_dir)):
        folder = os.path.join(image_dir, city)
        if not PathManager.isdir(folder):
            continue
        for name in sorted(PathManager.ls(folder)):
            if not name.endswith(_IMAGE_ENDING):
                continue
            label_map = os.path.join(gt_dir, city, name[: -len(_IMAGE_ENDING)] + _LABEL_ENDING)
            if not PathManager.isfile(label_map):
                raise AnnotationError(
                    f"{os.path.join(folder, name)} has no label map {label_map}; make those with "
                    f"cityscapesscripts/preparation/createTrainIdLabelImgs.py"
                )
            records.append(
                {
                    "file_name": os.path.join(folder, name),
                    "sem_seg_file_name": label_map,
                    "height": _HEIGHT,
                    "width": _WIDTH,
                }
            )
    if not records:
        raise AnnotationError(f"no image CITY/*{_IMAGE_ENDING} in {image_dir}")
    logger.info("found %d images in %s", len(records), image_dir)
    return records
