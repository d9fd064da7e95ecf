"""Two small data sets on disk: boxes, and image labels."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detection  # noqa: F401  (makes detectron2 importable)
from detection.data.datasets import custom_register_lvis_instances
from detectron2.data import DatasetCatalog, MetadataCatalog

CLASSES = 4


@pytest.fixture
def two_sets(tmp_path: Path) -> Iterator[Path]:
    """Registers ``test_boxes`` (6 images, one of them without boxes) and ``test_labels`` (9); gives their folder."""
    categories = [{"id": number + 1, "name": f"c{number}"} for number in range(CLASSES)]
    contents: dict[str, dict[str, list]] = {}
    for name, count in (("test_boxes", 6), ("test_labels", 9)):
        images, annotations = [], []
        for number in range(count):
            width, height = ((40, 30), (30, 40))[number % 2]
            pixels = np.full((height, width, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}_{number}.png")
            image = {"id": number, "file_name": f"{name}_{number}.png", "width": width, "height": height}
            if name == "test_labels":
                image["pos_category_ids"] = [1 + number % CLASSES]
            elif number > 0:
                box = [2.0, 3.0, 20.0, 10.0]
                annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": box})
            images.append(image)
        contents[name] = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{name}.json").write_text(json.dumps(contents[name]))
        custom_register_lvis_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
    yield tmp_path
    for name in contents:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
