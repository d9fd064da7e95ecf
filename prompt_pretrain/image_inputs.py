"""What a detector or segmenter can look at (images, lists, folders, videos) as one lazy stream of images."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from prompt_pretrain.classification.decoding import MAX_ASPECT_RATIO, MAX_PIXELS, ImageError, open_image
from prompt_pretrain.errors import InputError

__all__ = ["ImageInput", "InputStream", "open_inputs"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_TAKEN = "an image, a path, a folder, a video or a list of them"


@dataclass(frozen=True, eq=False)
class ImageInput:
    """One image.

    Attributes:
        source: its path, ``VIDEO#FRAME``, or its number in the list.
        pixels: (H, W, 3) uint8, BGR.
    """

    source: str
    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class InputStream:
    """Images, read one by one as they are asked for.

    Attributes:
        images: yields an :class:`ImageInput`, or the :class:`ImageError` of one that cannot be used.
        single: whether one image was given, and not a collection.
    """

    images: Iterator[ImageInput | ImageError]
    single: bool


def open_inputs(inputs: Any) -> InputStream:
    """The images behind ``inputs``.

    Args:
        inputs: an array (H, W, 3) uint8 in BGR order, as ``cv2.imread`` gives, or (H, W) grey; a ``PIL.Image``; a path
            of an image, of a folder (its images, sorted by name, without its subfolders) or of a video (its frames);
            or an iterable of any of these.
    Raises:
        InputError: nothing at a path, a folder without images, an unknown kind of file or object. What an iterable
            holds is only looked at when its turn comes.
    """
    if isinstance(inputs, str | os.PathLike):
        return _open_path(Path(inputs))
    if isinstance(inputs, np.ndarray | Image.Image):
        return InputStream(iter([_from_memory(inputs, "0")]), single=True)
    if not isinstance(inputs, Iterable) or isinstance(inputs, dict | bytes):
        raise InputError(f"cannot look at a {type(inputs).__name__}; give {_TAKEN}")
    return InputStream(_from_iterable(inputs), single=False)


def _open_path(path: Path) -> InputStream:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not files:
            known = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
            raise InputError(f"no images in the folder {path}; expected files that end in one of {known}")
        return InputStream((_from_file(file) for file in files), single=False)
    if not path.is_file():
        raise InputError(f"no image, folder or video {path}; check the path")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return InputStream(_frames(path), single=False)
    return InputStream(iter([_from_file(path)]), single=True)


def _from_iterable(inputs: Iterable[Any]) -> Iterator[ImageInput | ImageError]:
    for number, item in enumerate(inputs):
        if isinstance(item, str | os.PathLike):
            yield from _open_path(Path(item)).images
        elif isinstance(item, np.ndarray | Image.Image):
            yield _from_memory(item, str(number))
        else:
            raise InputError(f"input {number} is a {type(item).__name__}; give {_TAKEN}")


def _from_file(path: Path) -> ImageInput | ImageError:
    try:
        return ImageInput(str(path), _bgr(open_image(str(path))))
    except ImageError as error:
        return error


def _from_memory(image: np.ndarray | Image.Image, source: str) -> ImageInput | ImageError:
    if isinstance(image, Image.Image):
        image = _bgr(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        found = f"{image.dtype} of shape {tuple(image.shape)}"
        return ImageError(f"image {source}", f"expected uint8 (height, width, 3) in BGR order, found {found}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    height, width = image.shape[:2]
    if min(height, width) == 0:
        return ImageError(f"image {source}", f"it has no pixels, its size is {width} x {height}")
    if height * width > MAX_PIXELS:
        return ImageError(f"image {source}", f"{width} x {height} pixels are too many; shrink it to {MAX_PIXELS:,}")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        return ImageError(f"image {source}", f"{width} x {height} pixels are too elongated; crop it")
    return ImageInput(source, image)


def _frames(path: Path) -> Iterator[ImageInput]:
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            found, pixels = video.read()
            if not found:
                break
            yield ImageInput(f"{path}#{number}", pixels)
            number += 1
        if number == 0:
            raise InputError(f"no frame of the video {path} can be decoded; convert it, for example to H.264 in .mp4")
    finally:
        video.release()


def _bgr(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
