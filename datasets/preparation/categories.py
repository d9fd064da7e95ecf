"""Lists of categories as annotation files hold them, from the facts in ``datasets/metadata``."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prompt_pretrain.errors import InputError
from prompt_pretrain.metadata import read_columns

__all__ = [
    "coco_categories",
    "count_categories",
    "imagenet21k_rows",
    "lvis_and_imagenet21k_categories",
    "lvis_categories",
]

Rows = list[dict[str, Any]]


def lvis_categories() -> Rows:
    """The 1203 categories of LVIS v1 with the counts of its training set."""
    keys = ("id", "name", "synonyms", "synset", "frequency", "image_count", "instance_count")
    return _rows("lvis_v1_categories.json", keys)


def coco_categories() -> Rows:
    """The 80 categories of COCO, with the synonyms of the LVIS categories that they correspond to."""
    lvis = {row["id"]: row for row in lvis_categories()}
    rows = _rows("coco_detection_classes.json", ("id", "name", "synset", "lvis_id"))
    return [{**row, "synonyms": list(lvis[row["lvis_id"]]["synonyms"]), "frequency": "f"} for row in rows]


def imagenet21k_rows() -> dict[str, dict[str, Any]]:
    """WordNet id -> facts about each of the 21,841 classes of ImageNet-21K."""
    rows = _rows("imagenet21k_classes.json.gz", ("wnid", "name", "lemmas", "synset", "lvis_id", "lvis22k_id"))
    return {row["wnid"]: row for row in rows}


def lvis_and_imagenet21k_categories() -> Rows:
    """The 22,047 categories of LVIS and ImageNet-21K: first those of LVIS, then the others by WordNet id."""
    lvis = [{key: row[key] for key in ("id", "name", "synset", "frequency")} for row in lvis_categories()]
    added = [
        {"id": row["lvis22k_id"], "name": row["name"], "synset": row["synset"]}
        for row in imagenet21k_rows().values()
        if row["lvis22k_id"] > len(lvis)
    ]
    return lvis + sorted(added, key=lambda row: row["id"])


def count_categories(categories: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]) -> Rows:
    """The categories with ``image_count`` (images that have it) and ``instance_count``, by ascending id.

    Raises:
        InputError: an annotation is of another category.
    """
    images: dict[Any, set[Any]] = {row["id"]: set() for row in categories}
    instances: Counter[Any] = Counter()
    for annotation in annotations:
        number = annotation["category_id"]
        if number not in images:
            raise InputError(f"annotation {annotation['id']} is of category {number}, which the file does not list")
        images[number].add(annotation["image_id"])
        instances[number] += 1
    rows = sorted(categories, key=lambda row: row["id"])
    counts = [{"image_count": len(images[row["id"]]), "instance_count": instances[row["id"]]} for row in rows]
    return [{**row, **count} for row, count in zip(rows, counts, strict=True)]


def _rows(file: str, keys: Iterable[str]) -> Rows:
    columns = read_columns(file)
    keys = list(keys)
    return [dict(zip(keys, values, strict=True)) for values in zip(*(columns[key] for key in keys), strict=True)]
