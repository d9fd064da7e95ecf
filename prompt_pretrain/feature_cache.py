"""Image features of a frozen CLIP, encoded once and kept in a memory-mapped file.

A cache is a folder named by a hash of everything that its numbers depend on::

    <key>/header.json     what it holds, written last
    <key>/features.bin    (n, views, D) float16, C order
    <key>/states.bin      (n,) uint8: 1 encoded, 2 image unusable, 0 not done

While it is being filled it is called ``<key>.partial``. Features reach the disk before their states do, so whatever
kills the process, every row marked as done is whole and the next run goes on from there. Images are always encoded in
the same blocks, so an interrupted and resumed cache, or one filled by several processes, holds the same numbers as
one filled in one go.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prompt_pretrain import distributed
from prompt_pretrain.atomic_files import write_json
from prompt_pretrain.classification.cache_folder import cache_folder
from prompt_pretrain.classification.images import ImageBatch, ImageDataset, make_loader
from prompt_pretrain.classification.items import ImageItem, labels_of
from prompt_pretrain.classification.tar_archives import is_archive_member, split_member_path
from prompt_pretrain.classification.transforms import ImageTransform
from prompt_pretrain.errors import InputError
from prompt_pretrain.file_lock import FileLock

if TYPE_CHECKING:
    from prompt_pretrain.clip import Clip

logger = logging.getLogger(__name__)

MISSING, ENCODED, UNUSABLE = 0, 1, 2
_FORMAT = "image features 1"
_SAVE_EVERY_SECONDS = 5.0
_WAIT_SECONDS = 0.5


class FeatureCache:
    """Features of a list of images.

    Attributes:
        features: (n, views, D) float16, read-only memory map; as the image tower gives them, not normalised. Rows of
            unusable images are zero.
        labels: (n,) int64.
        valid: (n,) bool, False for unusable images.
        folder: where the files are.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, valid: np.ndarray, folder: Path) -> None:
        self.features = features
        self.labels = labels
        self.valid = valid
        self.folder = folder

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def build(
        cls,
        clip: "Clip",
        items: Sequence[ImageItem],
        transform: ImageTransform,
        *,
        views: int = 1,
        folder: str | os.PathLike | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        on_corrupt: str = "skip",
        content_hash: bool = False,
        progress: bool = False,
    ) -> "FeatureCache":
        """Load the features of ``items``, encoding first what is not there yet.

        In a distributed run all processes must call this together: they share the work, and need a common file
        system. Independent processes that want the same cache wait for the one that came first.

        Args:
            views: differently transformed copies of every image; drawn from ``seed``, image index and view.
            folder: of all caches; default ``~/.cache/prompt_pretrain/image_features``.
            batch_size: images per forward pass of the image tower (each view is a pass of its own).
            on_corrupt: ``skip`` marks unusable images in ``valid``; ``raise`` makes them an error.
            content_hash: tell images apart by their bytes instead of size and modification time.
            progress: show a progress bar (first process only).

        Raises:
            ImageError: an unusable image with ``on_corrupt`` ``raise``.
            InputError: no images, no usable image, no space on the disk, features beyond float16.
        """
        if not len(items):
            raise InputError("there are no images to encode")
        place = Path(folder) if folder else cache_folder("image_features")
        description: dict[str, Any] = _agree(lambda: _describe(clip, items, transform, views, seed, content_hash))
        job = _Job(place, description, items)
        lock = FileLock(job.path.with_suffix(".lock"))
        waiting = False
        while not _agree(job.is_complete):
            if not _agree(lock.try_acquire):
                if not waiting:
                    logger.info("waiting for another process that fills %s", job.path)
                waiting = True
                time.sleep(_WAIT_SECONDS)
                continue
            try:
                if not _agree(job.is_complete):
                    dataset = ImageDataset(items, transform, views=views, seed=seed, on_corrupt=on_corrupt)
                    _fill(job, clip, dataset, batch_size, num_workers, progress)
            finally:
                lock.release()
        return _open(job, labels_of(items), on_corrupt)


class _Job:
    """The files of one cache."""

    def __init__(self, place: Path, description: dict[str, Any], items: Sequence[ImageItem]) -> None:
        self.items = items
        self.description = description
        self.shape: tuple[int, int, int] = tuple(description["shape"])
        self.row_bytes = self.shape[1] * self.shape[2] * 2
        self.path = place / description["key"]
        self.partial = place / (description["key"] + ".partial")

    def sizes(self) -> dict[str, int]:
        return {"features.bin": self.shape[0] * self.row_bytes, "states.bin": self.shape[0]}

    def is_complete(self) -> bool:
        """Whether the finished files are there, describe this job and have the right sizes."""
        try:
            header = json.loads((self.path / "header.json").read_bytes())
            sizes = {name: (self.path / name).stat().st_size for name in self.sizes()}
        except (OSError, ValueError, RecursionError):
            return False
        same = isinstance(header, dict) and all(header.get(k) == self.description[k] for k in ("key", "shape"))
        return same and sizes == self.sizes()

    def prepare(self) -> None:
        """Make the partial files, or check those of an interrupted run."""
        if self.path.exists():
            logger.warning("%s is damaged and is made again", self.path)
            shutil.rmtree(self.path)
        sizes = self.sizes()
        files = [self.partial / name for name in sizes]
        if any(not file.exists() or file.stat().st_size != sizes[file.name] for file in files):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            self._allocate(files, sizes)

    def _allocate(self, files: Sequence[Path], sizes: dict[str, int]) -> None:
        needed = sum(sizes.values())
        free = shutil.disk_usage(self.partial).free
        try:
            if needed > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for file in files:
                with open(file, "wb") as stream:
                    _claim_space(stream.fileno(), sizes[file.name])
                    os.fsync(stream.fileno())
        except OSError as error:
            shutil.rmtree(self.partial, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise InputError(
                f"the image features of {self.shape[0]:,} images in {self.shape[1]} views need {needed:,} bytes in "
                f"{self.partial.parent}, {free:,} are free; free some space, set FEATURE_CACHE.FOLDER to another "
                "disk or lower FEATURE_CACHE.VIEWS"
            ) from error

    def states(self, folder: Path) -> np.ndarray:
        return np.fromfile(folder / "states.bin", dtype=np.uint8)

    def finish(self) -> None:
        """Give the filled files their final name."""
        write_json(self.partial / "header.json", self.description)
        os.rename(self.partial, self.path)


class _Writer:
    """Writes finished blocks: features first, and their states only once the features are on the disk."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._features = os.open(job.partial / "features.bin", os.O_WRONLY)
        self._states = os.open(job.partial / "states.bin", os.O_WRONLY)
        self._waiting: list[tuple[int, bytes]] = []
        self._saved = time.monotonic()

    def add(self, start: int, features: np.ndarray, states: np.ndarray) -> None:
        _write_at(self._features, features.tobytes(), start * self._job.row_bytes)
        self._waiting.append((start, states.astype(np.uint8).tobytes()))
        if time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        os.fsync(self._features)
        for start, states in self._waiting:
            _write_at(self._states, states, start)
        os.fsync(self._states)
        self._waiting.clear()
        self._saved = time.monotonic()

    def close(self) -> None:
        os.close(self._features)
        os.close(self._states)


def _fill(job: _Job, clip: "Clip", dataset: ImageDataset, batch_size: int, num_workers: int, progress: bool) -> None:
    """Encode what is missing, every process its share, and give the files their final name."""
    _agree(job.prepare)
    blocks: list[np.ndarray] = []
    with _failing_together():
        if not job.partial.is_dir():
            raise InputError(
                f"{job.partial} is not there for all processes; set FEATURE_CACHE.FOLDER to a shared folder"
            )
        blocks = _missing_blocks(job, batch_size)
    # Here all have read the states, and nobody has written any.
    start, stop = distributed.shard_bounds(len(blocks))
    with _failing_together():
        _fill_blocks(job, clip, dataset, blocks[start:stop], num_workers, progress)
    _agree(lambda: _finish(job))


def _missing_blocks(job: _Job, batch_size: int) -> list[np.ndarray]:
    states = job.states(job.partial)
    blocks = [np.arange(i, min(i + batch_size, len(states))) for i in range(0, len(states), batch_size)]
    return [block for block in blocks if not states[block].all()]


def _fill_blocks(
    job: _Job, clip: "Clip", dataset: ImageDataset, blocks: list[np.ndarray], num_workers: int, progress: bool
) -> None:
    loader = make_loader(dataset, blocks, num_workers=num_workers, pin_memory=clip.device.type == "cuda")
    writer = _Writer(job)
    try:
        with _progress_bar(progress, sum(map(len, blocks))) as bar:
            for block, batch in zip(blocks, loader, strict=True):
                states = np.where(batch.ok.numpy(), ENCODED, UNUSABLE)
                writer.add(int(block[0]), _encode(clip, batch, job), states)
                bar.update(len(block))
    finally:
        # Also when an image or the disk stops the work: what was encoded is kept.
        try:
            writer.save()
        finally:
            writer.close()


def _encode(clip: "Clip", batch: ImageBatch, job: _Job) -> np.ndarray:
    """(B, views, D) float16 features; zero for unusable images."""
    with torch.no_grad(), _autocast(clip):
        # One view at a time, so that memory does not grow with their number. Unusable images stay in as zeros: the
        # block always has one shape, so the other rows get the same numbers whatever happens.
        views = [clip.encode_image(images.to(clip.device, non_blocking=True)).float().cpu() for images in batch.images]
    features = torch.stack(views, dim=1)
    features[~batch.ok] = 0
    with np.errstate(over="ignore"):  # told below, with the image's name
        half = features.numpy().astype(np.float16)
    finite = np.isfinite(half).all(axis=(1, 2))
    if not finite.all():
        item = job.items[int(batch.indices[int(np.argmin(finite))])]
        raise InputError(f"the image features of {item.path} exceed float16 or are not numbers; use PREC fp32")
    return half


def _finish(job: _Job) -> None:
    states = job.states(job.partial)
    if not states.all():
        raise InputError(f"{job.partial} was changed by someone else while it was filled; run the same command again")
    if not (states == ENCODED).any():
        first = job.items[0].path
        shutil.rmtree(job.partial)
        raise InputError(f"none of the {len(states):,} images can be read, the first is {first}; check DATASET.ROOT")
    job.finish()


def _open(job: _Job, labels: np.ndarray, on_corrupt: str) -> FeatureCache:
    features = np.memmap(job.path / "features.bin", dtype=np.float16, mode="r", shape=job.shape)
    valid = job.states(job.path) == ENCODED
    bad = np.flatnonzero(~valid)
    if len(bad):
        first = job.items[int(bad[0])].path
        if on_corrupt == "raise":
            others = f" (and {len(bad) - 1} more images)" if len(bad) > 1 else ""
            raise InputError(f"{first} cannot be read{others}; mend or remove it, then remove {job.path}")
        if distributed.is_main_process():
            logger.warning(
                "%d of %d images cannot be read and are left out, first %s; remove %s to try them again",
                len(bad),
                len(valid),
                first,
                job.path,
            )
    return FeatureCache(features, labels, valid, job.path)


def _describe(
    clip: "Clip", items: Sequence[ImageItem], transform: ImageTransform, views: int, seed: int, content_hash: bool
) -> dict[str, Any]:
    """What the numbers depend on, and the key that stands for it."""
    content = {
        "format": _FORMAT,
        "clip": clip.clip_id,
        "image_tower": clip.image_fingerprint,
        "precision": "amp" if _uses_autocast(clip) else str(clip.dtype).removeprefix("torch."),
        "images": _images_digest(items, content_hash),
        "transform": transform.key,
        # A transform without randomness gives the same views for every seed.
        "seed": seed if transform.random else None,
        "shape": [len(items), views, clip.embed_dim],
        "dtype": "float16",
    }
    relevant = {name: value for name, value in content.items() if name != "clip"}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    return {**content, "key": digest[:32]}


def _images_digest(items: Sequence[ImageItem], content_hash: bool) -> str:
    """Hash of the paths in order, with size and modification time of each file (or archive) or its bytes."""
    digest = hashlib.sha256()
    archives: dict[str, bytes] = {}
    for item in items:
        digest.update(os.fsencode(item.path) + b"\0")
        file = split_member_path(item.path)[0] if is_archive_member(item.path) else item.path
        stamp = archives.get(file) or _file_stamp(file, content_hash)
        if file != item.path:
            archives[file] = stamp
        digest.update(stamp + b"\n")
    return digest.hexdigest()


def _file_stamp(path: str, content_hash: bool) -> bytes:
    try:
        if content_hash:
            with open(path, "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
                return digest.digest()
        status = os.stat(path)
    except OSError:
        return b"missing"  # found out, and named, when the image is to be read
    return b"%d:%d" % (status.st_size, status.st_mtime_ns)


def _uses_autocast(clip: "Clip") -> bool:
    return clip.precision == "amp" and clip.device.type == "cuda"


def _autocast(clip: "Clip") -> AbstractContextManager:
    # float16 rather than bfloat16: features are stored as float16, and bfloat16 would keep 8 bits of them.
    return torch.autocast("cuda", torch.float16) if _uses_autocast(clip) else nullcontext()


def _agree(action: Callable[[], Any]) -> Any:
    """The first process's result of ``action``, on every process; its errors are raised on every process."""
    if distributed.world_size() == 1:
        return action()
    value: Any = None
    problem: InputError | OSError | None = None
    if distributed.is_main_process():
        try:
            value = action()
        except (InputError, OSError) as error:
            problem = error
    shared: Any = distributed.broadcast_object((value, None if problem is None else str(problem)))
    if problem is not None:
        raise problem
    if shared[1] is not None:
        raise InputError(shared[1])
    return shared[0]


@contextmanager
def _failing_together() -> Iterator[None]:
    """Raise at the end of the block, on every process, what went wrong in it on any."""
    problem: InputError | OSError | None = None
    try:
        yield
    except (InputError, OSError) as error:
        problem = error
    texts = distributed.gather_objects(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for text in texts:
        if text is not None:
            raise InputError(text)


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _claim_space(handle: int, size: int) -> None:
    """Make the file that large, with its space taken now: a disk that fills up later cannot stop the work half-way."""
    try:
        os.posix_fallocate(handle, 0, size)
    except (AttributeError, OSError) as error:
        # Not every system and file system can; there the disk may still fill up later, which is an ordinary error.
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.truncate(handle, size)


def _progress_bar(show: bool, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, desc="image features", unit=" images", disable=not (show and distributed.is_main_process())
    )
