"""Images, folders, patterns, videos and cameras as streams of pictures."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from prompt_pretrain.errors import InputError
from prompt_pretrain.image_inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ImageInput
from prompt_pretrain.wording import counted

__all__ = ["Sources", "camera_frames", "find_sources", "frame_rate", "screen_frames"]
_USUAL_FRAME_RATE = 25.0


@dataclass(frozen=True)
class Sources:
    """Files to look at, in the order they were given."""

    images: tuple[Path, ...]
    videos: tuple[Path, ...]


def find_sources(inputs: Sequence[str], video: str | None = None) -> Sources:
    """The files behind paths, folders and patterns such as ``photos/*.jpg`` or ``photos/**``.

    Args:
        inputs: a folder stands for its images, sorted by name; of what a pattern matches, files that are no images or
            videos are left out.
        video: a video file.
    Raises:
        InputError: nothing at a path, no match of a pattern, a folder without images.
    """
    files: list[Path] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            if not found:
                known = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
                raise InputError(f"no images in the folder {path}; expected files that end in one of {known}")
            files.extend(found)
        elif path.exists():
            files.append(path)
        elif glob.has_magic(given):
            files.extend(_matches(given))
        else:
            raise InputError(f"no image, folder or video {given}; check the path")
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    images = [file for file in files if file.suffix.lower() not in VIDEO_SUFFIXES]
    if video is not None:
        if not os.path.isfile(video):
            raise InputError(f"no video {video}; check --video-input")
        videos.append(Path(video))
    return Sources(tuple(dict.fromkeys(images)), tuple(dict.fromkeys(videos)))


def _matches(pattern: str) -> list[Path]:
    paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
    found = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file()]
    if not found:
        raise InputError(f"no image or video matches {pattern!r}; check the pattern")
    return found


def frame_rate(path: Path) -> float:
    """Frames per second of a video; 25 where it does not tell."""
    video = cv2.VideoCapture(str(path))
    try:
        rate = float(video.get(cv2.CAP_PROP_FPS))
    finally:
        video.release()
    return rate if 0 < rate < 1000 else _USUAL_FRAME_RATE


def camera_frames(number: int) -> Iterator[ImageInput]:
    """Pictures of a camera, without end.

    Raises:
        InputError: no such camera, or none that gives pictures.
    """
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise InputError(f"no camera {number}; check --webcam, that it is plugged in and that no program uses it")
        count = 0
        while True:
            found, pixels = camera.read()
            if not found:
                given = counted(count, "picture")
                raise InputError(f"camera {number} gives no pictures any more, after {given}; plug it in again")
            yield ImageInput(f"camera{number}#{count}", pixels)
            count += 1
    finally:
        camera.release()


def screen_frames() -> Iterator[ImageInput]:
    """Pictures of the screen, without end.

    Raises:
        InputError: no screen that can be seen from here.
    """
    from PIL import ImageGrab

    count = 0
    while True:
        try:
            picture = ImageGrab.grab()
        except OSError as error:
            raise InputError(f"cannot see a screen ({error}); give a camera's number to --webcam") from error
        yield ImageInput(f"screen#{count}", np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1]))
        count += 1
