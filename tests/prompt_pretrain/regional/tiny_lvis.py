"""A hand-made annotation set in LVIS' format: three base classes and a novel one, plain boxes on noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (64, 48)
CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "dog", "def": "a domestic animal", "frequency": "f"},
    {"id": 2, "name": "bow_(decorative ribbons)", "def": "a knot of ribbon\nwith two loops", "frequency": "c"},
    {"id": 4, "name": "salt/pepper mill", "def": "a mill (for spices)", "frequency": "f"},
    {"id": 7, "name": "cow", "def": "a farm animal", "frequency": "r"},
]
# The published rule gives [2, 4, 26, 22] for the first box; the second one is too small, the third in the corner.
BOXES = [(1, [10, 10, 8, 6]), (1, [30, 30, 4, 4]), (1, [56, 40, 8, 8]), (2, [0, 0, 20, 20]), (4, [20, 5, 12, 30])]


def write(root: Path, images: int = 4) -> Path:
    """``root/{train,val}.json`` and ``root/images/{train,val}2017/*.jpg``; returns ``root``."""
    for split in ("train", "val"):
        folder = root / "images" / f"{split}2017"
        folder.mkdir(parents=True)
        listed, annotations = [], []
        for number in range(1, images + 1):
            name = f"{number:012d}.jpg"
            _picture(number).save(folder / name)
            url = f"http://images.cocodataset.org/{split}2017/{name}"
            listed.append({"id": number, "width": SIZE[0], "height": SIZE[1], "coco_url": url})
            boxes = [*BOXES, (7, [5, 20, 15, 15])] if split == "val" else BOXES
            annotations += [{"image_id": number, "category_id": category, "bbox": box} for category, box in boxes]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        content = {"images": listed, "annotations": annotations, "categories": CATEGORIES[::-1]}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def _picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    pixels = np.full((SIZE[1], SIZE[0], 3), 128) + rng.normal(0, 20, (SIZE[1], SIZE[0], 3))
    for category, (x, y, w, h) in [*BOXES, (7, [5, 20, 15, 15])]:
        colour = np.random.default_rng(100 + category).integers(0, 256, 3)
        pixels[y : y + h, x : x + w] = colour
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
