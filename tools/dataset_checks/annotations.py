"""Checks of whole annotation files, and of data sets that are lists of dicts."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from dataset_checks.annotation import AnnotationChecker
from dataset_checks.report import Report

from prompt_pretrain.annotation_fields import find_wrong_row

_ROWS = {"images": "image", "annotations": "annotation", "categories": "category"}
_FIELDS = ("id", "image_id", "category_id", "file_name", "coco_url", "name")
_FIELDS += ("neg_category_ids", "pos_category_ids", "not_exhaustive_category_ids")


def check_annotation_file(
    report: Report, json_file: str, image_root: str, style: str, class_names: list[str] | None = None
) -> list[dict]:
    """Check a json in COCO's format or one like it.

    Args:
        image_root: folder of the images.
        style: "coco", "lvis", "image_labels" (LVIS' format with image labels, captions, images in archives) or "oid".
        class_names: what the json's categories are compared with: the names in the data set's metadata.
    Returns:
        Entries for ``check_images``: file_name, height and width, as far as they are known.
    """
    content = _read(report, json_file)
    if content is None:
        return []
    names = _category_names(report, content["categories"])
    if class_names is not None:
        _compare_names(report, content["categories"], class_names)
    images = _index(report, content["images"], "image")
    of_image: dict[Any, list[dict]] = {image_id: [] for image_id in images}
    annotation_ids: Counter[Any] = Counter()
    for number, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or "image_id" not in annotation:
            report.error("annotation without a field", f"annotation number {number}: 'image_id' is missing")
            continue
        annotation_ids[annotation.get("id", f"number {number}")] += 1
        if annotation["image_id"] in of_image:
            of_image[annotation["image_id"]].append(annotation)
        else:
            report.warning(
                "annotation of an unknown image",
                f"annotation {annotation.get('id')}: image {annotation['image_id']!r} is not in the file; dropped",
            )
    for annotation_id, count in annotation_ids.items():
        if count > 1:
            report.error("id that is not unique", f"annotation id {annotation_id} occurs {count} times")
    checker = AnnotationChecker(report, names, needs_polygons=style == "lvis")
    seen: Counter[int] = Counter()
    entries = []
    for image_id, image in images.items():
        where = f"image {image_id}"
        size = _check_size(report, image, where)
        usable = 0
        for annotation in of_image[image_id]:
            if checker.check(annotation, size, f"annotation {annotation.get('id')} of {where}"):
                seen[annotation["category_id"]] += 1
                usable += 1
        report.facts["images without usable annotation"] += not usable
        if style in _CLASS_LISTS:
            _check_class_lists(report, image, of_image[image_id], names, style, where)
        file_name = _find_file_name(report, image, image_root, style, where)
        if file_name is not None:
            entries.append({**image, "file_name": file_name})
    report.facts["annotations"] = len(content["annotations"])
    report.facts["categories"] = len(names)
    report.facts["categories without annotation"] = len(names) - len(seen)
    if style == "image_labels":
        report.facts["images with labels"] = sum(bool(image.get("pos_category_ids")) for image in images.values())
        report.facts["images in archives"] = sum(_is_in_archive(image) for image in images.values())
    _check_repeated_files(report, entries)
    return entries


def check_records(report: Report, records: list[dict], num_classes: int | None) -> None:
    """Check the entries of a data set that is not a json, in detectron2's standard format."""
    from detectron2.structures import BoxMode

    known = range(num_classes) if num_classes is not None else range(2**31)
    checker = AnnotationChecker(report, known)
    image_ids: Counter[Any] = Counter()
    annotations = without = 0
    for number, record in enumerate(records):
        where = f"entry {number} (image {record.get('image_id')!r})"
        if "file_name" not in record:
            report.error("entry without a field", f"{where}: 'file_name' is missing")
        if "image_id" in record:
            image_ids[record["image_id"]] += 1
        size = _check_size(report, record, where) if "height" in record or "width" in record else None
        usable = 0
        for index, annotation in enumerate(record.get("annotations", [])):
            annotation, what = dict(annotation), f"annotation {index} of {where}"
            annotations += 1
            if "bbox" in annotation:
                try:
                    mode = BoxMode(annotation["bbox_mode"])
                    box = [float(value) for value in annotation["bbox"]]
                    annotation["bbox"] = list(BoxMode.convert(box, mode, BoxMode.XYWH_ABS))
                except (KeyError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
                    report.error("bad box", f"{what}: bbox or bbox_mode: {type(error).__name__}: {error}")
                    del annotation["bbox"]
            usable += checker.check(annotation, size, what)
        without += "annotations" in record and not usable
    for image_id, count in image_ids.items():
        if count > 1:
            report.error("id that is not unique", f"image_id {image_id!r} occurs {count} times")
    if any("annotations" in record for record in records):
        report.facts["annotations"] = annotations
        report.facts["images without usable annotation"] = without
    # An entry with a class of its own is about one mask of several in its image.
    _check_repeated_files(report, [record for record in records if "category_id" not in record])


def _read(report: Report, json_file: str) -> dict[str, list] | None:
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except OSError as error:
        where = f"; data sets lie below {os.environ.get('DETECTRON2_DATASETS', 'datasets')} (DETECTRON2_DATASETS)"
        report.error("annotation file", f"{json_file}: {error.strerror}{where}")
        return None
    except (ValueError, RecursionError) as error:
        report.error("annotation file", f"{json_file} is not valid JSON: {error}")
        return None
    content = content if isinstance(content, dict) else {}
    lists = {key: content.get(key) for key in ("images", "annotations", "categories")}
    for key, value in lists.items():
        if not isinstance(value, list):
            report.error("annotation file", f"{json_file} has no list '{key}'")
            lists[key] = []
        else:
            lists[key] = _without_odd_rows(report, value, _ROWS[key])
    report.facts["images"] = len(lists["images"])
    report.facts["images without usable annotation"] = 0
    return lists


def _without_odd_rows(report: Report, rows: list, what: str) -> list:
    """The rows whose fields are of the kinds that the checks below count on; the others are reported."""
    kept = []
    for row in rows:
        fields = {key: row[key] for key in _FIELDS if key in row} if isinstance(row, dict) else {}
        problem = find_wrong_row([fields], what, ())
        if problem:
            report.error("field of another kind", problem)
        else:
            kept.append(row)
    return kept


def _category_names(report: Report, categories: list) -> dict[int, str]:
    rows = _index(report, categories, "category")
    for category_id, row in rows.items():
        if "name" not in row:
            report.error("category without a field", f"category {category_id}: 'name' is missing")
    return {category_id: row.get("name", "") for category_id, row in rows.items()}


def _compare_names(report: Report, categories: list, class_names: list[str]) -> None:
    """A model's outputs are named by the metadata, so its order of classes must be that of the file."""
    kind = "other classes than in the metadata"
    rows = [row for row in categories if isinstance(row, dict) and {"id", "name"} <= row.keys()]
    if len(rows) != len(class_names):
        report.error(
            kind, f"the file has {len(rows)} categories, the metadata 'thing_classes' {len(class_names)} names"
        )
        return
    rows.sort(key=lambda row: row["id"])
    for number, (row, name) in enumerate(zip(rows, class_names, strict=True)):
        # LVIS has two names per category, and its metadata holds the first synonym.
        if name not in (row["name"], *row.get("synonyms", [])[:1]):
            report.error(kind, f"class {number} is {row['name']!r} in the file and {name!r} in the metadata")


def _index(report: Report, rows: list, what: str) -> dict[Any, dict]:
    """Rows by id."""
    by_id: dict[Any, dict] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or "id" not in row:
            report.error(f"{what} without a field", f"{what} number {number}: 'id' is missing")
        elif row["id"] in by_id:
            report.error("id that is not unique", f"{what} id {row['id']} occurs again as number {number}")
        else:
            by_id[row["id"]] = row
    return by_id


def _check_size(report: Report, image: dict, where: str) -> tuple[int, int] | None:
    for key in ("height", "width"):
        value = image.get(key)
        if not isinstance(value, int) or value <= 0:
            what = f"is {value!r}, expected a positive integer" if key in image else "is missing"
            report.error("bad size of an image", f"{where}: '{key}' {what}")
            return None
    return image["height"], image["width"]


# What the images of a style list, and whether each must.
_CLASS_LISTS = {
    "lvis": {"neg_category_ids": True, "not_exhaustive_category_ids": True},
    "image_labels": {"neg_category_ids": False, "not_exhaustive_category_ids": False, "pos_category_ids": False},
    "oid": {"neg_category_ids": True, "pos_category_ids": True},
}


def _check_class_lists(
    report: Report, image: dict, annotations: list[dict], names: dict[int, str], style: str, where: str
) -> None:
    """Images may list classes that are known to be there or absent, and what is not fully annotated."""
    present = {annotation.get("category_id") for annotation in annotations}
    for key, is_needed in _CLASS_LISTS[style].items():
        if key not in image and is_needed:
            report.warning("image without a field", f"{where}: '{key}' is missing")
        for category_id in image.get(key, []):
            if category_id not in names:
                report.error("unknown category", f"{where}: {key} holds {category_id!r}, which does not exist")
    for category_id in sorted(present.intersection(image.get("neg_category_ids", []))):
        report.warning(
            "category annotated and listed as absent",
            f"{where}: category {category_id} ({names.get(category_id)}) is annotated and in neg_category_ids",
        )
    if style == "oid" and "pos_category_ids" in image:
        for category_id in sorted(present.intersection(names).difference(image["pos_category_ids"])):
            report.error(
                "category annotated and not listed as present",
                f"{where}: category {category_id} ({names[category_id]}) is annotated and not in pos_category_ids",
            )


def _find_file_name(report: Report, image: dict, image_root: str, style: str, where: str) -> str | None:
    """None for an image without a file of its own; an error if it should have one."""
    if "file_name" in image and not (style == "lvis" and "coco_url" in image):
        name = image["file_name"]
        # LVIS v0.5 names images of COCO 2017 as in 2014, which the loader undoes.
        cut = style == "image_labels" and name.startswith("COCO")
        return os.path.join(image_root, name[-len("000000000000.jpg") :] if cut else name)
    url = image.get("coco_url", "")
    if style in ("lvis", "image_labels") and url.count("/") > 0:
        return os.path.join(image_root, *url.split("/")[-2:])
    if style == "image_labels" and _is_in_archive(image):
        return None
    key = "coco_url" if style == "lvis" else "file_name"
    report.error("image without a field", f"{where}: '{key}' is {'missing' if key not in image else repr(image[key])}")
    return None


def _is_in_archive(image: dict) -> bool:
    return "tar_index" in image and "file_name" not in image and "coco_url" not in image


def _check_repeated_files(report: Report, entries: list[dict]) -> None:
    for file_name, count in Counter(entry.get("file_name") for entry in entries).items():
        if count > 1 and file_name is not None:
            report.warning("image file used more than once", f"{file_name} is used by {count} images")
