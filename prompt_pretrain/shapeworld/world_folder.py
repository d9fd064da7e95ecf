"""A world on disk: drawn into a partial folder, which takes its name when everything in it is written."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.errors import InputError

RECIPE_FILE = "shapeworld.json"
UNFINISHED = "unfinished"  # folder below the partial one for what does not stay
# Full colour resolution: at this size the usual halving would blur patterns away.
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")


class WorldFolder:
    """The folder of one world and the partial folder in which an unfinished one lies.

    Args:
        root: the world's folder; it may exist empty.
        described: what decides every file, as JSON values; it is written beside them and compared before a run goes on.
    Attributes:
        partial: ``<root>.partial``, where everything is drawn.
    """

    def __init__(self, root: Path, described: dict[str, Any]) -> None:
        self.root, self.described = root, described
        self.partial = root.with_name(root.name + ".partial")

    def is_finished(self) -> bool:
        """Whether the world stands complete.

        Raises:
            InputError: the folder holds something else, or a world of another recipe.
        """
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return False
        if not self.root.is_dir() or not (self.root / RECIPE_FILE).is_file():
            raise InputError(f"{self.root} exists and holds no ShapeWorld; choose a new folder for --output")
        self._check_recipe(self.root)
        return True

    def claim(self) -> None:
        """Make the partial folder, or check that it is ours and of the same recipe.

        Raises:
            InputError: it is not.
        """
        if (self.partial / RECIPE_FILE).is_file():
            self._check_recipe(self.partial)
        elif self.partial.exists() and any(self.partial.iterdir()):
            raise InputError(f"{self.partial} exists and holds no unfinished ShapeWorld; move it away")
        else:
            write_json(self.partial / RECIPE_FILE, self.described)

    def publish(self) -> None:
        """Give the partial folder, now complete, its name."""
        shutil.rmtree(self.partial / UNFINISHED, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.root.rmdir()  # an empty folder is as good as none
        self.partial.rename(self.root)

    def _check_recipe(self, folder: Path) -> None:
        path = folder / RECIPE_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}); delete {folder} and write it again") from error
        if found != self.described:
            found = found if isinstance(found, dict) else {}
            different = [f"{k} {found.get(k)} instead of {v}" for k, v in self.described.items() if found.get(k) != v]
            what = ", ".join(different) or "other settings"
            raise InputError(f"{folder} holds a ShapeWorld with {what}; choose another folder or delete this one")


def run_jobs(
    function: Callable[[_Job], _Done], jobs: Sequence[_Job], workers: int, *, chunk_size: int = 1
) -> Iterator[_Done]:
    """``function`` of each job in order, drawn by ``workers`` processes."""
    if workers <= 1:
        yield from map(function, jobs)
        return
    # "spawn": a fork would copy the locks of whatever threads the caller runs.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, jobs, chunksize=chunk_size)


def check_bounds(recipe: object, bounds: dict[str, tuple[int, int]]) -> None:
    """Compare fields of a recipe with their lowest and highest values.

    Raises:
        InputError: one is outside.
    """
    for name, (low, high) in bounds.items():
        if not low <= getattr(recipe, name) <= high:
            raise InputError(f"ShapeWorld: {name} must be {low} to {high}, found {getattr(recipe, name)}")


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG file of (H, W, 3) uint8 RGB."""
    return cv2.imencode(".jpg", pixels[..., ::-1], _JPEG)[1].tobytes()


def encode_png(values: np.ndarray) -> bytes:
    """A PNG file of (H, W) uint8 or uint16."""
    return cv2.imencode(".png", values)[1].tobytes()
