"""Reading and writing big COCO-style json files, and the options that every command has."""

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prompt_pretrain.annotation_fields import find_wrong_row
from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError
from prompt_pretrain.lazy_metadata import dataset_root

__all__ = ["about", "add_root", "beside", "parse", "read_annotations", "write_annotations", "write_rows"]

Content = dict[str, Any]
_ROWS = {"images": "image", "annotations": "annotation", "categories": "category"}


def add_root(parser: argparse.ArgumentParser) -> None:
    """The option ``--root``, from which a command finds its inputs and outputs where none are given."""
    parser.add_argument("--root", default=dataset_root(), help="data root (default: $DETECTRON2_DATASETS or datasets)")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Run the step that was asked for: a function under ``run`` of the arguments."""
    args = parser.parse_args(argv)
    args.run(args)
    return 0


def beside(path: Path, ending: str) -> Path:
    """``FOLDER/NAME.json`` as ``FOLDER/NAME<ending>.json``."""
    return path.with_name(f"{path.stem}{ending}.json")


@contextmanager
def about(source: str | os.PathLike) -> Iterator[None]:
    """Inside of it, errors about what ``source`` holds name it; a key that a row lacks is such an error."""
    try:
        yield
    except InputError as error:
        raise error if str(source) in str(error) else InputError(f"{source}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{source}: a row lacks a key or holds another kind of value ({error!r})") from error


def read_annotations(
    path: str | os.PathLike,
    lists: Sequence[str] = ("images", "annotations", "categories"),
    required: Mapping[str, Sequence[str]] | None = None,
) -> Content:
    """Content of a json whose entries ``lists`` are lists of objects with an ``id``.

    Args:
        required: further keys that the rows of a list must have; by default annotations name image and category.

    Raises:
        InputError: there is no such file, or it is not in that format.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} not found; download it first (datasets/README.md), or give another path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON ({error}); download it again") from error
    required = {"annotations": ("image_id", "category_id")} if required is None else required
    for key in lists:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise InputError(f"{path} has no list '{key}'; expected a COCO-style annotation file")
        problem = find_wrong_row(rows, _ROWS[key], ("id", *required.get(key, ())))
        if problem:
            raise InputError(f"{path}: {problem}")
    return content


def write_annotations(path: str | os.PathLike, content: Mapping[str, Any], inputs: Iterable[str | os.PathLike]) -> None:
    """Write a json atomically, one row of its lists per line, and print what is in it.

    Args:
        inputs: files that it was made from and that must not be overwritten.
    """
    _keep_inputs(path, inputs)
    with atomic_writer(path, "w") as file:
        file.write("{")
        for number, (key, value) in enumerate(content.items()):
            file.write(f"{',' if number else ''}\n{json.dumps(key)}: ")
            if isinstance(value, list):
                _write_list(file, value)
            else:
                file.write(json.dumps(value, ensure_ascii=False))
        file.write("\n}\n")
    counts = [f"{len(content[key]):,} {key}" for key in ("images", "annotations", "categories") if key in content]
    print(f"wrote {path}: {', '.join(counts)}")


def write_rows(path: str | os.PathLike, rows: Sequence[Any], what: str, inputs: Iterable[str | os.PathLike]) -> None:
    """Write a json that is one list, as :func:`write_annotations` does; ``what`` names the rows."""
    _keep_inputs(path, inputs)
    with atomic_writer(path, "w") as file:
        _write_list(file, rows)
        file.write("\n")
    print(f"wrote {path}: {len(rows):,} {what}")


def _keep_inputs(path: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    for source in inputs:
        if os.path.realpath(source) == os.path.realpath(path):
            raise InputError(f"the output {path} would overwrite its input; give another --output")


def _write_list(file: IO[str], rows: Sequence[Any]) -> None:
    # Row by row: one text of a whole LVIS file would take gigabytes, and writing to a file directly is slow.
    file.write("[")
    for number, row in enumerate(rows):
        file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False))
    file.write("\n]" if rows else "]")
