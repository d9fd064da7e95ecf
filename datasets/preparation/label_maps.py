"""Converting folders of label maps: values by a table, in threads, each file written whole."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from prompt_pretrain.atomic_files import atomic_writer
from prompt_pretrain.errors import InputError

__all__ = [
    "IGNORED",
    "convert_maps",
    "in_threads",
    "list_files",
    "lookup_table",
    "read_map",
    "segmentation_facts",
    "write_map",
]

IGNORED = 255

_SHOWN = 5
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def segmentation_facts(name: str) -> Mapping[str, Sequence]:
    """The entry of a data set in ``metadata/segmentation_classes.json``."""
    from prompt_pretrain.metadata import read_metadata

    return read_metadata("segmentation_classes.json")[name]


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder in order of their names.

    Raises:
        InputError: there is no such folder, or no such file in it.
    """
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise InputError(f"no {pattern} in {folder}; download the data set first, or give another --root")
    return found


def lookup_table(labels: Mapping[int, int], allowed: Iterable[int] = (), *, size: int = 256) -> np.ndarray:
    """(size,) int32 table from raw value to label: IGNORED for ``allowed`` values, -1 for all others."""
    table = np.full(size, -1, dtype=np.int32)
    table[list(allowed)] = IGNORED
    for value, label in labels.items():
        table[value] = label
    return table


def read_map(path: Path) -> np.ndarray:
    """(H, W) values as stored, or indices of the palette.

    Raises:
        InputError: no such file, not a whole image, or one with several channels.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"label map {path} does not exist; is the download complete?") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"label map {path} cannot be read ({error}); fetch it again") from error
    if values.ndim != 2:
        raise InputError(f"label map {path} has {values.shape[2]} channels; expected one, whose values are labels")
    return values


def write_map(path: Path, labels: np.ndarray) -> None:
    """Write labels as PNG (or TIFF, by the name) of 8 or 16 bits."""
    with atomic_writer(path) as file:
        Image.fromarray(labels).save(file, format="TIFF" if path.suffix == ".tif" else "PNG")


def convert_maps(
    sources: Sequence[Path], targets: Mapping[Path, np.ndarray], *, workers: int, keep_empty: bool = False
) -> dict[Path, int]:
    """Write each source, under its name, into every target folder with the labels that the folder's table gives.

    Args:
        sources: label maps of 8 bits.
        targets: folder -> table (256,) from raw value to label, -1 for values that must not occur.
        workers: threads.
        keep_empty: write maps without any label; otherwise they are left out, and removed if they are there.
    Returns:
        Number of maps in each folder.
    Raises:
        InputError: a source cannot be read, has an unknown value, or would be overwritten.
    """
    for folder in targets:
        if sources and os.path.realpath(folder) == os.path.realpath(sources[0].parent):
            raise InputError(f"the label maps in {folder} would be overwritten; give another --root")
        folder.mkdir(parents=True, exist_ok=True)

    def convert(source: Path) -> list[bool]:
        values = read_map(source)
        return [_convert(source, values, folder, table, keep_empty) for folder, table in targets.items()]

    written = in_threads(convert, sources, workers, "label maps")
    counts = {folder: sum(row[i] for row in written) for i, folder in enumerate(targets)}
    names = {source.name for source in sources}
    for folder, count in counts.items():
        rest = ", the others show none of its classes" if count < len(sources) else ""
        print(f"wrote {folder}: {count:,} of {len(sources):,} label maps{rest}")
        strangers = sorted(path for path in folder.glob("*.png") if path.name not in names)
        if strangers:
            print(f"{folder} also holds {len(strangers):,} older label maps such as {strangers[0].name}; remove them")
    return counts


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int, what: str) -> list[_Result]:
    """Results in the order of the items, with a progress bar; the first error ends it."""
    if workers < 1:
        raise InputError(f"--workers must be positive, got {workers}")
    pool = ThreadPoolExecutor(workers)
    try:
        results = tqdm(pool.map(function, items), total=len(items), desc=what, unit="file", disable=None)
        return list(results)
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(source: Path, values: np.ndarray, folder: Path, table: np.ndarray, keep_empty: bool) -> bool:
    """Whether a map was written."""
    if values.dtype != np.uint8:
        raise InputError(f"label map {source} holds {values.dtype} values, expected 8 bits; fetch it again")
    labels = table[values]
    if (labels < 0).any():
        unknown = np.unique(values[labels < 0]).tolist()
        shown = ", ".join(map(str, unknown[:_SHOWN])) + (" and more" if len(unknown) > _SHOWN else "")
        raise InputError(f"label map {source} holds {shown}, which is no label of this data set; fetch it again")
    target = folder / source.name
    if not keep_empty and (labels == IGNORED).all():
        target.unlink(missing_ok=True)
        return False
    write_map(target, labels.astype(np.uint8))
    return True
