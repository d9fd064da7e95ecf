"""Decoding one image: from a file or an archive member to upright RGB, or an error that names it."""

import errno
import io
import logging
import os
import re
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from prompt_pretrain.classification.tar_archives import is_archive_member, read_member, split_member_path
from prompt_pretrain.errors import InputError

logger = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485  # Pillow's own limit for an image that may be a decompression bomb: 256 MiB as RGB
MAX_ASPECT_RATIO = 1000  # beyond it, resizing the shorter side to a model's input size would need gigabytes
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_DEVICE_ERRORS = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)


class ImageError(InputError):
    """An image that cannot be used: missing, unreadable, damaged or too large.

    Attributes:
        path: the file or archive member.
        reason: what is wrong with it, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple:  # exceptions travel from worker processes pickled
        return type(self), (self.path, self.reason)


class StorageError(ImageError):
    """Not the image is at fault but the place it lies in: the folder is gone, or the device gives errors.

    Never skipped: a training would go on with the images that happen to be left, and not be the same training.
    """


def open_image(path: str) -> Image.Image:
    """The image at ``path``, turned upright (EXIF), as RGB.

    Args:
        path: a file, or a member of an archive as ``ARCHIVE.tar::MEMBER``.

    Raises:
        StorageError: the folder of the file is gone, or its device gives errors.
        ImageError: the file is missing, unreadable, damaged, no image, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        if is_archive_member(path):
            return decode_image(io.BytesIO(read_member(path)), path)
        with open(path, "rb") as file:
            return decode_image(file, path)
    except ImageError:
        raise
    except OSError as error:
        place = os.path.dirname(split_member_path(path)[0] if is_archive_member(path) else path)
        if error.errno in _DEVICE_ERRORS or (error.errno in _MISSING and not os.path.isdir(place)):
            reason = f"{error.strerror}: {place} cannot be reached; mount or mend it and run the same command again"
            raise StorageError(path, reason) from error
        raise ImageError(path, error.strerror or str(error)) from error
    except InputError as error:  # the archive as a whole
        raise ImageError(path, str(error)) from error


def decode_image(file: IO[bytes], path: str) -> Image.Image:
    """Decode an open file; ``path`` is what errors name. See :func:`open_image`."""
    try:
        with warnings.catch_warnings():
            # Pillow's own bomb warning would only repeat the error below; its other warnings (odd EXIF, palettes with
            # transparency) are about files that do decode.
            warnings.simplefilter("ignore")
            image = Image.open(file)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(path, _too_large(f"{width} x {height}"))
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise ImageError(path, f"{width} x {height} pixels are too elongated; crop the image or remove it")
            return _to_rgb(_upright(image))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own check, at twice the limit
        found = re.search(r"\d+(?= pixels)", str(error))
        raise ImageError(path, _too_large(f"{int(found[0]):,}" if found else "far more")) from None
    except Exception as error:  # decoders raise almost anything on damaged bytes
        # The built-in text of an unidentified image names a Python object, not the problem.
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
        raise ImageError(path, f"damaged or not an image ({reason})") from error


def _too_large(size: str) -> str:
    return f"too large, {size} pixels where {MAX_PIXELS:,} are allowed; shrink the image or remove it"


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a damaged image fails here, before its EXIF block is looked at
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the orientation
        logger.debug("ignored a damaged EXIF block", exc_info=True)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB. Transparency is dropped, not blended, as in the published pipelines."""
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    # Pillow would clip 16-bit grey values at 255 instead of scaling them.
    wide = pixels.astype(np.int64)
    if wide.size and wide.max() > 255:
        wide = wide >> 8
    return wide.clip(0, 255).astype(np.uint8)
