"""Where results go: pictures, videos, windows, COCO json and label maps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from prompt_pretrain.atomic_files import atomic_writer, write_json
from prompt_pretrain.class_groups import BACKGROUND
from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import IMAGE_SUFFIXES
from prompt_pretrain.overlays import draw_detections, draw_label_map, enlarged

__all__ = ["CocoJson", "Folder", "Window", "check_output", "draw", "save_picture", "video_writer"]
READABLE_SIDE = 480  # pixels; smaller pictures are enlarged for the letters' sake
_JPEG_QUALITY = 92
_CODECS = (("mp4v", ".mp4"), ("MJPG", ".avi"))


def draw(task: str, result: Any, pixels: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) RGB of a result over its image (H, W, 3) BGR."""
    image, factor = enlarged(np.ascontiguousarray(pixels[:, :, ::-1]), READABLE_SIDE)
    if task == "segmentation":
        labels = _enlarge(result.label_map.numpy(), factor)
        return draw_label_map(image, labels, result.vocabulary, uncovered=(BACKGROUND,))
    masks = result.masks
    if masks is not None:
        masks = np.stack([_enlarge(mask, factor) for mask in masks.numpy()]) if len(masks) else None
    return draw_detections(
        image, result.boxes.numpy() * factor, result.class_names, scores=result.scores.tolist(), masks=masks
    )


def _enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    return array.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else array


def check_output(output: str | None, num_files: int) -> None:
    """Fail now rather than after the first image.

    Raises:
        InputError: one file for several images, a kind of file that is not written, a folder that is a file, or one
            that cannot be written to.
    """
    if output is None:
        return
    path = Path(output)
    if is_picture(path):
        if num_files != 1:
            raise InputError(f"--output {output} is one picture, but there are {num_files} inputs; give a folder")
        folder = path.absolute().parent
    elif path.is_file():
        raise InputError(f"--output {output} is a file, and no picture; give a folder, or a name that ends in .jpg")
    else:
        folder = path.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write below {existing}; choose another --output")


def is_picture(path: Path) -> bool:
    """Whether an output names one picture, and no folder."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def save_picture(path: Path, rgb: np.ndarray) -> None:
    """Write a picture (H, W, 3), whole or not at all, in the format that its suffix names."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    options = {"quality": _JPEG_QUALITY} if kind == "JPEG" else {}
    with atomic_writer(path) as file:
        Image.fromarray(rgb).save(file, format=kind, **options)


class Folder:
    """Names of the files of one run, without two alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[Path] = set()

    def picture(self, source: Path) -> Path:
        """For the overlay of an image: its own name, as JPEG or PNG."""
        suffix = source.suffix.lower() if source.suffix.lower() in (".jpg", ".jpeg", ".png") else ".jpg"
        return self._free(self.folder, source.stem, suffix)

    def label_map(self, picture: Path) -> Path:
        """For the label map that belongs to an overlay."""
        return self._free(self.folder / "labels", picture.stem, ".png")

    def video(self, source: Path, suffix: str) -> Path:
        return self._free(self.folder, source.stem, suffix)

    def _free(self, folder: Path, stem: str, suffix: str) -> Path:
        path, number = folder / f"{stem}{suffix}", 2
        while path in self._taken:
            path, number = folder / f"{stem}_{number}{suffix}", number + 1
        self._taken.add(path)
        return path


class CocoJson:
    """All results of a run as one COCO json: images, annotations with scores, categories."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._names: tuple[str, ...] = ()

    def add(self, result: Any, source: str) -> None:
        """A result of either kind; category ids are positions in the vocabulary + 1."""
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": source, "height": result.height, "width": result.width})
        self._names = result.vocabulary
        for entry in result.to_coco(image_id):
            if "bbox" not in entry:
                entry["bbox"] = [float(value) for value in mask_util.toBbox(entry["segmentation"])]
            entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
            self._annotations.append({"id": len(self._annotations) + 1, **entry, "iscrowd": 0})

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self._names, start=1)]
        write_json(path, {"images": self._images, "annotations": self._annotations, "categories": categories})


@contextmanager
def video_writer(files: Folder, source: Path, rate: float) -> Iterator["VideoFile"]:
    """A video of pictures of one size; it appears under its name when the block ends without an error."""
    video = VideoFile(files, source, rate)
    try:
        yield video
        video.finish()
    finally:
        video.discard()


class VideoFile:
    """Pictures become a video; its file is known with the first one."""

    def __init__(self, files: Folder, source: Path, rate: float) -> None:
        self._files = files
        self._source = source
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._temporary = Path()
        self._size = (0, 0)
        self.path: Path | None = None

    def write(self, rgb: np.ndarray) -> None:
        height, width = (side - side % 2 for side in rgb.shape[:2])  # encoders want even numbers
        if self._writer is None:
            self._open(width, height)
        pixels = np.ascontiguousarray(rgb[:height, :width, ::-1])
        if (width, height) != self._size:
            pixels = cv2.resize(pixels, self._size)
        assert self._writer is not None
        self._writer.write(pixels)

    def _open(self, width: int, height: int) -> None:
        self._files.folder.mkdir(parents=True, exist_ok=True)
        for codec, suffix in _CODECS:
            path = self._files.folder / f".{self._source.stem}.part{suffix}"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), self._rate, (width, height))
            if writer.isOpened():
                self._writer, self._temporary, self._size = writer, path, (width, height)
                self.path = self._files.video(self._source, suffix)
                return
            path.unlink(missing_ok=True)
        raise InputError("this OpenCV writes neither mp4v nor Motion JPEG videos; install opencv-python from PyPI")

    def finish(self) -> None:
        if self._writer is not None and self.path is not None:
            self._writer.release()
            self._writer = None
            os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove what is not finished."""
        if self._writer is not None:
            self._writer.release()
            self._temporary.unlink(missing_ok=True)


class Window:
    """A window that shows pictures; Escape or q closes it.

    Raises:
        InputError: there is no screen.
    """

    def __init__(self, title: str = "open-vocabulary recognition") -> None:
        self._title = title

    def show(self, rgb: np.ndarray, *, wait: bool) -> bool:
        """Show a picture, and wait for a key if told to. Returns whether to go on."""
        try:
            cv2.imshow(self._title, rgb[:, :, ::-1])
            key = cv2.waitKey(0 if wait else 1) & 0xFF
        except cv2.error as error:
            raise InputError("no window can be opened here; give --output, a folder for the pictures") from error
        return key not in (27, ord("q"))
