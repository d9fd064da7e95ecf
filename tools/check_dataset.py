"""Report every problem of a registered detection, segmentation or classification data set at once.

    python tools/check_dataset.py lvis_v1_val [--json FILE] [--no-files] [--examples 3] [--workers 8] [--import MODULE]
    python tools/check_dataset.py OxfordPets --data-root data

Looks for missing fields, ids that are unknown or not unique, boxes that are not finite or have negative or no sides,
bad polygons, RLE of a wrong size, missing, corrupt or differently sized images, labels beyond the classes, and splits
that contradict themselves. Exits with 2 if there are errors; warnings alone are coped with.
"""

import argparse
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_checks.annotations import check_annotation_file, check_records
from dataset_checks.classification import check_classification, is_classification_set
from dataset_checks.files import check_images, check_label_maps, check_pairing
from dataset_checks.report import Report

import third_party  # noqa: F401  makes detectron2 importable
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.registry import dataset_names
from prompt_pretrain.command_line import run_command
from prompt_pretrain.errors import InputError
from prompt_pretrain.wording import counted

_OWN_PACKAGES = ("detection", "segmentation")  # importing them registers their data sets
_IGNORE_LABEL = 255
_MANY_NAMES = 60


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="check_dataset", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "name", help="registered name, such as coco_2017_val (DETECTRON2_DATASETS is the data root) or OxfordPets"
    )
    parser.add_argument("--data-root", default="data", metavar="DIR", help="folder of the classification sets (data)")
    parser.add_argument("--json", metavar="FILE", help="also write the report to FILE")
    parser.add_argument("--no-files", action="store_true", help="do not open images and label maps")
    parser.add_argument("--examples", type=int, default=3, help="messages per kind of problem (default: 3)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that open files")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that registers data sets",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.workers < 1 or args.examples < 0:
        raise InputError(f"--workers must be positive and --examples not negative, got {args.workers}, {args.examples}")
    for module in args.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"--import {module}: {error}") from error
    if is_classification_set(args.name):
        report = Report(args.name, args.examples)
        check_classification(report, Path(args.data_root), with_files=not args.no_files, workers=args.workers)
    else:
        register_own_datasets()
        report = check_dataset(args.name, with_files=not args.no_files, examples=args.examples, workers=args.workers)
    print(report.as_text())
    if args.json:
        write_json(args.json, report.as_dict())
    if report.count("error"):
        print(f"error: {args.name} has {counted(report.count('error'), 'error')}, see above", file=sys.stderr)
        return 2
    return 0


def register_own_datasets() -> None:
    """Import the packages of this project that register data sets."""
    for package in _OWN_PACKAGES:
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(package)


def check_dataset(name: str, *, with_files: bool = True, examples: int = 3, workers: int = 1) -> Report:
    """Check a registered detection or segmentation data set.

    Args:
        with_files: open images and label maps.
        examples: messages to keep per kind of problem.
        workers: threads that open files.
    Raises:
        InputError: nothing is registered under this name.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name not in DatasetCatalog.list():
        names = sorted(DatasetCatalog.list())
        shown = ", ".join(names[:_MANY_NAMES]) + (", ..." if len(names) > _MANY_NAMES else "")
        similar = difflib.get_close_matches(name, [*names, *dataset_names()], n=5)
        near = f", nearest names: {', '.join(similar)}" if similar else ""
        raise InputError(
            f"no data set {name!r}{near}; registered are {shown}, and for classification {', '.join(dataset_names())}; "
            "--import MODULE adds those of a module"
        )
    metadata = MetadataCatalog.get(name)
    report = Report(name, examples)
    json_file = metadata.get("json_file")
    if json_file is not None:
        image_root, class_names = str(metadata.get("image_root", "")), metadata.get("thing_classes")
        entries = check_annotation_file(report, str(json_file), image_root, _style(metadata), class_names)
    else:
        entries = _check_loaded(report, name, metadata)
    if with_files:
        pairs = [entry for entry in entries if {"file_name", "sem_seg_file_name"} <= entry.keys()]
        if pairs:
            ignore_value = metadata.get("ignore_label", _IGNORE_LABEL)
            classes = metadata.get("stuff_classes")
            check_label_maps(report, pairs, len(classes) if classes else None, ignore_value, workers)
        others = [entry for entry in entries if "sem_seg_file_name" not in entry and "file_name" in entry]
        check_images(report, others, workers)
    return report


def _style(metadata: Any) -> str:
    """In which of the formats that the checks know the data set's json is."""
    if metadata.get("image_labels"):
        return "image_labels"
    evaluator_type = metadata.get("evaluator_type")
    return evaluator_type if evaluator_type in ("lvis", "oid") else "coco"


def _check_loaded(report: Report, name: str, metadata: Any) -> list[dict]:
    """Check the entries of a data set that is no json; returns them."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    image_root, label_root = metadata.get("image_root"), metadata.get("sem_seg_root")
    if image_root and label_root:
        roots = (MetadataCatalog.get(other).get("image_root") for other in DatasetCatalog.list() if other != name)
        shared = any(root and Path(root) == Path(image_root) for root in roots)
        check_pairing(report, str(image_root), str(label_root), shared=shared)
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:  # whatever a loader stumbles over is the finding
        report.error("loading", f"{type(error).__name__}: {error}")
        return []
    if not records:
        report.error("loading", "the data set is empty")
    report.facts["images"] = len(records)
    classes = metadata.get("thing_classes")
    check_records(report, records, len(classes) if classes is not None else None)
    return records


if __name__ == "__main__":
    sys.exit(run_command(main))
