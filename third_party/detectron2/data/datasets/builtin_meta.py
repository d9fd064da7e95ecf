"""Class names, ids and colours of the well-known data sets."""

from typing import Any

from detectron2.data.datasets.ade20k_categories import ADE20K_SEM_SEG_CATEGORIES
from detectron2.data.datasets.coco_categories import COCO_CATEGORIES
from detectron2.utils.left_out import left_out

__all__ = ["ADE20K_SEM_SEG_CATEGORIES", "CITYSCAPES_CATEGORIES", "COCO_CATEGORIES"]

__getattr__ = left_out(
    __name__, "COCO_PERSON_KEYPOINT_FLIP_MAP", "COCO_PERSON_KEYPOINT_NAMES", "KEYPOINT_CONNECTION_RULES"
)

# id in the raw label maps, name, whether it has instances, colour; the training label is the rank
CITYSCAPES_CATEGORIES = [
    {"id": number, "trainId": rank, "name": name, "isthing": int(is_thing), "color": list(color)}
    for rank, (number, name, is_thing, color) in enumerate(
        [
            (7, "road", False, (128, 64, 128)),
            (8, "sidewalk", False, (244, 35, 232)),
            (11, "building", False, (70, 70, 70)),
            (12, "wall", False, (102, 102, 156)),
            (13, "fence", False, (190, 153, 153)),
            (17, "pole", False, (153, 153, 153)),
            (19, "traffic light", False, (250, 170, 30)),
            (20, "traffic sign", False, (220, 220, 0)),
            (21, "vegetation", False, (107, 142, 35)),
            (22, "terrain", False, (152, 251, 152)),
            (23, "sky", False, (70, 130, 180)),
            (24, "person", True, (220, 20, 60)),
            (25, "rider", True, (255, 0, 0)),
            (26, "car", True, (0, 0, 142)),
            (27, "truck", True, (0, 0, 70)),
            (28, "bus", True, (0, 60, 100)),
            (31, "train", True, (0, 80, 100)),
            (32, "motorcycle", True, (0, 0, 230)),
            (33, "bicycle", True, (119, 11, 32)),
        ]
    )
]


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Metadata of "coco", "cityscapes" or "ade20k" as a new dict.

    Raises:
        KeyError: another name.
    """
    if dataset_name == "coco":
        return {
            "thing_dataset_id_to_contiguous_id": {row["id"]: rank for rank, row in enumerate(COCO_CATEGORIES)},
            "thing_classes": [row["name"] for row in COCO_CATEGORIES],
            "thing_colors": [row["color"] for row in COCO_CATEGORIES],
        }
    if dataset_name == "cityscapes":
        return {
            "thing_classes": [row["name"] for row in CITYSCAPES_CATEGORIES if row["isthing"]],
            "stuff_classes": [row["name"] for row in CITYSCAPES_CATEGORIES],
        }
    if dataset_name == "ade20k":
        return {"stuff_classes": list(ADE20K_SEM_SEG_CATEGORIES)}
    raise KeyError(f"no built-in metadata for {dataset_name!r}; there is some for coco, cityscapes and ade20k")
