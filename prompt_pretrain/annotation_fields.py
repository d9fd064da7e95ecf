"""What rows of COCO-style json files may hold, checked before anything is done with them.

Only what is there is checked: which keys a row must have is up to its reader.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["are_numbers", "find_wrong_row", "is_outline", "rle_problem"]

_LARGEST = 1e12  # sum of the absolute values of one mask's or box's coordinates; far beyond any image
_MAX_SIDE = 1 << 20  # pixels of an image; what is read must fit into memory
_MAX_OUTLINE = 1 << 21  # pixels around a polygon: far more than any object has, and a tenth of a GB while it is drawn
_Check = Callable[[Any], bool]


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers that are no larger than coordinates can be."""
    if not isinstance(values, list | tuple):
        return False
    try:
        return sum(map(abs, values)) <= _LARGEST  # False for NaN
    except (TypeError, OverflowError):
        return False


def is_outline(values: Any) -> bool:
    """Whether it is a list of numbers x, y, x, y, ... that may be drawn as a polygon.

    pycocotools walks along the edges in C, with 32-bit numbers and some 80 bytes for each pixel: a corner that is far
    away costs gigabytes, or ends the process.
    """
    if not isinstance(values, list | tuple):
        return False
    try:
        if sum(map(abs, values)) <= _MAX_OUTLINE / 2:  # as good as always; an edge is no longer than its ends' sum
            return True
        if not max(map(abs, values)) <= _MAX_OUTLINE:  # NaN as well
            return False
        xs, ys = values[0::2], values[1::2]
        edges = (max(abs(xs[end] - xs[end - 1]), abs(ys[end] - ys[end - 1])) for end in range(len(ys)))
        return sum(edges) <= _MAX_OUTLINE
    except (TypeError, OverflowError):
        return False


def rle_problem(rle: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong with a run-length mask of an image of this size, if anything.

    pycocotools decodes masks in C and takes runs for granted, so none may reach it that leave the image.
    """
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        return f"the RLE in 'segmentation' has no {missing[0]!r}"
    if rle["size"] not in ([height, width], (height, width)):
        return f"the RLE in 'segmentation' has the size {rle['size']!r}, its image [{height}, {width}] (height, width)"
    try:
        total = _run_total(rle["counts"])
    except ValueError:
        return "the RLE in 'segmentation' holds 'counts' that are neither runs of pixels nor their compressed form"
    if total != height * width:
        return (
            f"the counts of the RLE in 'segmentation' add up to {total} pixels, expected height * width = "
            f"{height * width}"
        )
    return None


def _run_total(counts: Any) -> int:
    """Pixels in all runs, listed or in COCO's compressed form.

    The compressed form has 6 bits per character from "0" on: 5 of the number, the lowest first, and whether more
    follow; the highest bit of the last is the sign. From the fourth run on, it is the difference to the run two before.
    """
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run <= _LARGEST for run in counts):
            raise ValueError
        return sum(counts)
    if not isinstance(counts, str | bytes):
        raise ValueError
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("latin1") if isinstance(counts, str) else counts:
        code -= 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError
    return sum(runs)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value, 1 << 63)


def _is_whole(value: Any, limit: int) -> bool:
    """Some programs write whole numbers as 5.0."""
    return isinstance(value, int | float) and abs(value) < limit and value % 1 == 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_side(value: Any) -> bool:
    return _is_whole(value, _MAX_SIDE + 1) and value > 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= _LARGEST and math.isfinite(value)


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_mask(value: Any) -> bool:
    if isinstance(value, dict):  # its size is compared with the image's by who knows it
        return {"size", "counts"} <= value.keys() and isinstance(value["size"], list) and are_numbers(value["size"])
    return value is None or (isinstance(value, list) and all(map(is_outline, value)))


_ID = (_is_id, "a whole number or text")
_IDS = (_list_of(_is_id), "a list of ids")
_TEXT = (_is_text, "text")
_TEXTS = (_list_of(_is_text), "a list of texts")
_PATH = (_is_path, "the name of a file")
_SIDE = (_is_side, f"a number of pixels from 1 to {_MAX_SIDE:,}")
_COUNT = (_is_count, "a number of things")
_FIELDS: dict[str, dict[str, tuple[_Check, str]]] = {
    "image": {
        **dict.fromkeys(("id",), _ID),
        **dict.fromkeys(("file_name", "coco_url"), _PATH),
        **dict.fromkeys(("height", "width"), _SIDE),
        **dict.fromkeys(("neg_category_ids", "pos_category_ids", "not_exhaustive_category_ids"), _IDS),
        "captions": _TEXTS,
        "caption_features": (are_numbers, "a list of numbers"),
        "tar_index": _COUNT,
    },
    "annotation": {
        **dict.fromkeys(("id", "image_id", "category_id"), _ID),
        "bbox": (lambda value: are_numbers(value) and len(value) == 4, "four finite numbers [x, y, width, height]"),
        "segmentation": (
            _is_mask,
            "polygons [x, y, x, y, ...] of finite numbers in or near the image, or a run-length mask",
        ),
        "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
        "area": (_is_number, "a number"),
        "caption": _TEXT,
    },
    "category": {
        "id": _ID,
        **dict.fromkeys(("name", "synset", "frequency", "supercategory", "freebase_id"), _TEXT),
        "synonyms": _TEXTS,
        **dict.fromkeys(("image_count", "instance_count"), _COUNT),
    },
}


def find_wrong_row(rows: Sequence[Any], what: str, required: Iterable[str] = ("id",)) -> str | None:
    """What is wrong with the first unusable row, in words; None if all are usable.

    Args:
        what: ``image``, ``annotation`` or ``category``.
        required: keys that every row must have.
    """
    checks = [(key, *check) for key, check in _FIELDS[what].items()]
    required = tuple(required)
    kinds: set[bool] = set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            return f"{what} number {number} is a {type(row).__name__}, expected an object"
        for key in required:
            if key not in row:
                return f"{what} {_name_of(row, number)} has no {key!r}"
        for key, check, expected in checks:
            if key in row and not check(row[key]):
                return f"{what} {_name_of(row, number)}: {key!r} is {_short(row[key])}, expected {expected}"
        kinds.add(isinstance(row.get("id"), str))
    return f"some ids of the {what} rows are numbers and some are text; make them alike" if len(kinds) > 1 else None


def _name_of(row: dict[str, Any], number: int) -> str:
    return _short(row["id"]) if "id" in row else f"number {number}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
