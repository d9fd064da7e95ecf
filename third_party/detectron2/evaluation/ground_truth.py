"""Annotations in COCO's or LVIS' json format, checked and indexed for evaluation by category."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.data.datasets.annotation_file import are_numbers

__all__ = ["GroundTruth"]


class GroundTruth:
    """Images, categories and annotations of a data set.

    Attributes:
        name: where it was read from, for messages.
        image_ids: of all images, ascending. Elsewhere an image is its index in this list.
        sizes: (height, width) of each image, None where the json holds none.
        category_ids: ascending.
        frequencies: "r", "c" or "f" per category (LVIS), else "".
        federated: whether images name the classes that are absent and the classes not exhaustively annotated (LVIS).
        not_exhaustive: per image, the categories of which not all instances are annotated; [] unless federated.
    """

    def __init__(self, dataset: dict[str, Any], name: str, federated: bool) -> None:
        """``dataset`` is the content of a json file: "images", "annotations", "categories".

        Raises:
            ValueError: a field that the metric needs is missing or no number, or an id occurs twice.
        """
        self.name = name
        self.federated = federated
        images = {_need(image, "id", "image", name): image for image in dataset.get("images", ())}
        self.image_ids = sorted(images)
        self._index = {image_id: index for index, image_id in enumerate(self.image_ids)}
        records = [images[image_id] for image_id in self.image_ids]
        self.sizes = [(r["height"], r["width"]) if "height" in r and "width" in r else None for r in records]
        categories = {_need(category, "id", "category", name): category for category in dataset.get("categories", ())}
        self.category_ids = sorted(categories)
        self.frequencies = [categories[c].get("frequency", "") for c in self.category_ids]
        annotations = dataset.get("annotations", ())
        judged = records if federated and annotations else ()  # test sets without annotations lack these lists too
        self.not_exhaustive = self._class_lists(judged, "not_exhaustive_category_ids")
        self._negative: dict[int, list[int]] = defaultdict(list)  # category → images known to hold none
        for image, category_ids in enumerate(self._class_lists(judged, "neg_category_ids")):
            for category_id in category_ids:
                self._negative[category_id].append(image)
        self._by_category: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        self._add_annotations(annotations)
        for category_id, frequency in zip(self.category_ids, self.frequencies, strict=True):
            if federated and frequency not in ("r", "c", "f"):
                raise ValueError(
                    f"{name}: category {category_id} has frequency {frequency!r}, "
                    f"expected 'r', 'c' or 'f' as in LVIS annotations"
                )

    def _class_lists(self, images: Sequence[dict[str, Any]], key: str) -> list[frozenset[int]]:
        return [frozenset(_need(image, key, f"image {image['id']}", self.name)) for image in images]

    def _add_annotations(self, annotations: Sequence[dict[str, Any]]) -> None:
        known = set(self.category_ids)
        seen = set()
        for annotation in annotations:
            what = f"annotation {_need(annotation, 'id', 'annotation', self.name)}"
            for key in ("image_id", "category_id", "bbox", "area"):
                _need(annotation, key, what, self.name)
            if not isinstance(annotation["id"], int | float) or not are_numbers([annotation["area"]]):
                raise ValueError(
                    f"{self.name}: {what} of image {annotation['image_id']} has the area {annotation['area']!r}; "
                    "expected numbers as id and area"
                )
            if annotation["id"] in seen:
                raise ValueError(f"{self.name}: two annotations have the id {annotation['id']}; ids must be unique")
            seen.add(annotation["id"])
            # Like the reference implementations, ignore what belongs to no image or category of the file.
            image = self._index.get(annotation["image_id"])
            if image is not None and annotation["category_id"] in known:
                self._by_category[annotation["category_id"]].append((image, annotation))

    def index_of(self, image_ids: Sequence[int | str]) -> np.ndarray:
        """Indices of images.

        Raises:
            ValueError: names an id that is in no image of the file.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self._index]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(image_ids)} image ids are not in {self.name}, the first is {unknown[0]!r}; "
                f"evaluate the data set that the model ran on"
            )
        return np.array([self._index[image_id] for image_id in image_ids], dtype=np.int64)

    def annotations(self, category_id: int) -> list[tuple[int, dict[str, Any]]]:
        """(image, annotation) pairs of a category in the order of the file."""
        return self._by_category.get(category_id, [])

    def by_image(self) -> dict[int | str, list[dict[str, Any]]]:
        """Image id → its annotations."""
        images = defaultdict(list)
        for pairs in self._by_category.values():
            for image, annotation in pairs:
                images[self.image_ids[image]].append(annotation)
        return images

    def judges(self, category_id: int, images: np.ndarray) -> np.ndarray:
        """Mask of ``images`` in which detections of the category count: where it is known to be there or not to be.

        All of them unless the annotations are federated.
        """
        if not self.federated:
            return np.ones(len(images), dtype=bool)
        positive = [image for image, _ in self.annotations(category_id)]
        return np.isin(images, positive + self._negative.get(category_id, []))


def _need(record: dict[str, Any], key: str, what: str, name: str) -> Any:
    try:
        return record[key]
    except KeyError:
        raise ValueError(f"{name}: {what} has no {key!r}, which evaluation needs") from None
