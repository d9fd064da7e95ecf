"""Checks that open files: images, and label maps of semantic segmentation."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from dataset_checks.report import Report
from PIL import Image, ImageOps
from tqdm import tqdm

_VALUES_SHOWN = 5


def check_images(report: Report, entries: list[dict], workers: int) -> None:
    """Open every image: it must be whole, and of the size that its entry says, if it says one."""

    def check(entry: dict) -> tuple[str, str] | None:
        name = entry["file_name"]
        size, problem = _measure(name)
        if size is None:
            return problem
        said = entry.get("width"), entry.get("height")
        if None not in said and said != size:
            return (
                "size of an image differs",
                f"{name} is {size[0]}x{size[1]} (width x height), its annotations say {said[0]}x{said[1]}",
            )
        return None

    for problem in _in_threads(check, entries, workers, "images"):
        if problem is not None:
            report.error(*problem)


def check_label_maps(
    report: Report, entries: list[dict], num_classes: int | None, ignore_value: int, workers: int
) -> None:
    """Open every image and its label map: sizes must agree, and values be classes or the ignored one.

    Entries may name a class ("category_id"), of which the label map must then show something.
    """
    pixels: Counter[int] = Counter()
    classes: dict[tuple[str, str], set[int]] = {}  # (image, label map) -> classes that entries name
    for entry in entries:
        named = classes.setdefault((entry["file_name"], entry["sem_seg_file_name"]), set())
        named.update([entry["category_id"]] if "category_id" in entry else ())

    def check(pair: tuple[str, str]) -> tuple[list[tuple[str, str]], dict[int, int]]:
        problems, counts = _check_pair(*pair, num_classes, ignore_value)
        for label in sorted(classes[pair] - counts.keys()) if counts else ():
            problems.append(("label map without its class", f"{pair[1]} shows nothing of class {label}; count again"))
        return problems, counts

    for problems, counts in _in_threads(check, list(classes), workers, "label maps"):
        pixels.update(counts)
        for kind, message in problems:
            (report.warning if kind == "label map without any label" else report.error)(kind, message)
    del pixels[ignore_value]
    if num_classes is not None:
        report.facts["classes"] = num_classes
        report.facts["classes without a pixel"] = sum(pixels[index] == 0 for index in range(num_classes))


def check_pairing(report: Report, image_root: str, label_root: str, *, shared: bool = False) -> None:
    """Images and label maps of a folder each are paired by name; those without a partner are not used.

    Args:
        shared: other data sets have images in this folder, as the splits of VOC, so surplus ones are no problem.
    """
    folders = {"image": Path(image_root), "label map": Path(label_root)}
    for what, folder in folders.items():
        if not folder.is_dir():
            report.error("folder", f"{folder}, which should hold every {what}, does not exist")
            return
    stems = {what: {path.stem: path for path in folder.iterdir() if path.is_file()} for what, folder in folders.items()}
    for what, other in (("image", "label map"), ("label map", "image")):
        alone = sorted(stems[what].keys() - stems[other].keys())
        if what == "image" and shared and alone:
            report.facts["more images without label map in a folder of several data sets"] = len(alone)
            continue
        for stem in alone:
            report.warning(f"{what} without {other}", f"{stems[what][stem]}; it is not used")


def _check_pair(
    image: str, label_map: str, num_classes: int | None, ignore_value: int
) -> tuple[list[tuple[str, str]], dict[int, int]]:
    problems = []
    size, problem = _measure(image)
    if problem is not None:
        problems.append(problem)
    labels, problem = _read_labels(label_map)
    if labels is None:
        return [*problems, problem], {}
    if size is not None and labels.shape != size[::-1]:
        problems.append(
            (
                "size of a label map differs",
                f"{label_map} is {labels.shape[1]}x{labels.shape[0]} (width x height), its image {size[0]}x{size[1]}",
            )
        )
    values, counts = np.unique(labels, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if num_classes is not None:
        wrong = {
            value: count for value, count in found.items() if value != ignore_value and not 0 <= value < num_classes
        }
        if wrong:
            shown = ", ".join(f"{value} ({count} pixels)" for value, count in list(wrong.items())[:_VALUES_SHOWN])
            more = f" and {len(wrong) - _VALUES_SHOWN} more" if len(wrong) > _VALUES_SHOWN else ""
            problems.append(
                (
                    "label beyond the classes",
                    f"{label_map} holds {shown}{more}, expected 0 to {num_classes - 1} or {ignore_value}",
                )
            )
    if found.keys() == {ignore_value}:
        problems.append(("label map without any label", f"{label_map} holds nothing but {ignore_value}"))
    return problems, found


def _measure(file_name: str) -> tuple[tuple[int, int] | None, tuple[str, str] | None]:
    """(width, height) of an image turned upright, or None and what is wrong. Reads all of it."""
    try:
        with Image.open(file_name) as image:
            image.load()
            return ImageOps.exif_transpose(image).size, None
    except FileNotFoundError:
        return None, ("missing image", f"{file_name} does not exist")
    except Exception as error:  # Pillow raises all kinds of errors for broken files
        return None, ("corrupt image", f"{file_name} cannot be read: {error}")


def _read_labels(file_name: str) -> tuple[np.ndarray | None, Any]:
    """(H, W) values, or None and what is wrong."""
    try:
        with Image.open(file_name) as image:
            labels = np.array(image)
    except FileNotFoundError:
        return None, ("missing label map", f"{file_name} does not exist")
    except Exception as error:  # Pillow raises all kinds of errors for broken files
        return None, ("corrupt label map", f"{file_name} cannot be read: {error}")
    if labels.ndim != 2:
        return None, ("label map with channels", f"{file_name} has {labels.shape[2]} channels, expected one of labels")
    return labels, None


def _in_threads(check: Callable[[Any], Any], entries: list[Any], workers: int, what: str) -> Iterable[Any]:
    """Results in the order of the entries. Pillow and NumPy decode in parallel."""
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(check, entries), total=len(entries), desc=what, unit="file", disable=None)
