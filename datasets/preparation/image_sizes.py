"""Sizes of many images, read from their headers."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

__all__ = ["image_size", "image_sizes"]

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag; values from 5 on turn the image by a quarter


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image that is turned upright as its EXIF block says, as training reads it.

    Raises:
        OSError, ValueError: it is missing or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd EXIF blocks
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)


def image_sizes(paths: Sequence[Path], workers: int) -> Iterator[tuple[int, int] | None]:
    """The size of each image in order; None for one that cannot be read, which is logged by its path."""
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(
            pool.map(_size_or_none, paths), total=len(paths), desc="image sizes", unit="image", disable=None
        )


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except Exception as error:  # decoders raise almost anything on damaged bytes
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        logger.warning("skipped %s: %s", path, reason)
        return None
