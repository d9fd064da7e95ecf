"""Small data sets on disk for the tests of detectron2's data package."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {1: (64, 48), 2: (48, 64), 3: (40, 40)}  # image id -> (width, height)


def write_images(folder: Path) -> None:
    """``1.png`` to ``3.png`` of random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, (width, height) in SIZES.items():
        pixels = np.random.RandomState(image_id).randint(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")


def coco_content(annotations: list[dict]) -> dict:
    """A COCO json of those images (out of order) with categories 1, 90, 13."""
    images = [
        {"id": image_id, "file_name": f"{image_id}.png", "width": SIZES[image_id][0], "height": SIZES[image_id][1]}
        for image_id in (2, 1, 3)
    ]
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def lvis_content() -> dict:
    """The LVIS-style fixture of four images, stored as 3, 1, 2, 4."""
    rows = {
        1: ("train2017", 64, 48, [2, 13], [3]),
        2: ("train2017", 48, 64, [1203], []),
        3: ("train2017", 40, 40, [], []),
        4: ("val2017", 56, 32, [5], []),
    }
    images = [
        {
            "id": image_id,
            "coco_url": f"http://images.cocodataset.org/{rows[image_id][0]}/{image_id:012d}.jpg",
            "width": rows[image_id][1],
            "height": rows[image_id][2],
            "neg_category_ids": rows[image_id][3],
            "not_exhaustive_category_ids": rows[image_id][4],
        }
        for image_id in (3, 1, 2, 4)
    ]
    triangle = [1, 1, 9, 1, 9, 9]
    annotations = [
        {"id": 11, "image_id": 1, "category_id": 3, "bbox": [4, 5, 20, 10], "segmentation": [triangle]},
        {"id": 12, "image_id": 1, "category_id": 13, "bbox": [30, 8, 10.5, 30.25], "segmentation": [triangle]},
        {"id": 13, "image_id": 2, "category_id": 1203, "bbox": [0, 0, 48, 64], "segmentation": [triangle]},
        {"id": 14, "image_id": 4, "category_id": 5, "bbox": [1, 1, 2, 2], "segmentation": [triangle, triangle]},
    ]
    categories = [{"id": number, "name": f"c{number}"} for number in range(1, 1204)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(folder: Path, content: dict) -> str:
    """The path of a new json."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return str(path)
