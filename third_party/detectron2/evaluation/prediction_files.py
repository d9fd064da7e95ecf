"""Predictions on disk: every process appends to files of its own, the main process reads all of them.

The memory that an evaluation takes therefore does not grow with the number of masks, and nothing but small arrays
travels between processes. Where the main process cannot see a file (another machine, no shared folder), its bytes,
masks run-length encoded, are sent instead.
"""

import fcntl
import io
import json
import os
import shutil
import tarfile
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as mask_utils

from detectron2.utils import comm

__all__ = ["DetectionFiles", "Detections", "JsonLines"]

# One row per detection. `image` counts the images of this process; `rle_end` is where its mask ends in the file of
# masks; `rle_size` is (height, width) or -1 without a mask. float64 holds float32 and Python numbers exactly.
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("<i8", ()),
    "category": ("<i8", ()),
    "score": ("<f8", ()),
    "box": ("<f8", (4,)),
    "mask_area": ("<f8", ()),
    "rle_size": ("<i4", (2,)),
    "rle_end": ("<i8", ()),
}
_PLAIN_KEYS = {"image_id", "category_id", "bbox", "score", "segmentation"}


class _Folder:
    """A folder of files that are appended to; removed with this object.

    A process that is killed leaves its folder behind: the next one that makes one beside it removes it.
    """

    def __init__(self, parent: str | None, prefix: str) -> None:
        local = parent if parent and os.path.isdir(parent) else None  # e.g. none on s3://
        if local is not None:
            _remove_abandoned(Path(local), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=f"{prefix}_rank{comm.get_rank()}_", dir=local))
        # Tells the main process that the folder it sees under this path is this one.
        self.token = uuid.uuid4().hex
        (self.path / "new token").write_text(self.token)
        self._handles: dict[str, Any] = {"token": _hold(self.path / "new token")}
        (self.path / "new token").rename(self.path / "token")  # which no other process sees before it is held
        self._owned = [self.path]
        self.remove = weakref.finalize(self, _close_and_remove, self._handles, self._owned)

    def append(self, name: str, data: bytes) -> None:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = open(self.path / name, "ab")  # noqa: SIM115  closed by remove
        handle.write(data)

    def flush(self) -> None:
        for handle in self._handles.values():
            handle.flush()

    def gather(self, distributed: bool) -> list[Path]:
        """Paths of all processes' folders on the main process, in the order of ranks; [] on the others.

        The main process then owns the folders that it sees: the others may end while it still reads.
        """
        self.flush()
        if not distributed or comm.get_world_size() == 1:
            return [self.path]
        places = comm.all_gather((str(self.path), self.token))
        visible = [_is_folder(Path(path), token) for path, token in places]
        if comm.is_main_process():  # before the others may let go of theirs
            seen = [Path(path) for (path, _), here in zip(places, visible, strict=True) if here]
            self._handles |= {f"token of {path}": _hold(path / "token") for path in seen if path != self.path}
        visible = comm.all_gather(visible)[0]  # as the main process sees it
        packed = comm.gather(None if visible[comm.get_rank()] else _pack(self.path))
        if not comm.is_main_process():
            if visible[comm.get_rank()]:
                self._owned.clear()
            return []
        folders = [
            Path(path) if data is None else _unpack(data, self.path / f"rank{rank}")
            for rank, ((path, _), data) in enumerate(zip(places, packed, strict=True))
        ]
        self._owned[:] = folders
        return folders


def _close_and_remove(handles: dict[str, Any], folders: list[Path]) -> None:
    for handle in handles.values():
        handle.close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _hold(token: Path) -> IO[bytes]:
    """A handle that marks a folder as used as long as it is open; it ends with the process, however that ends."""
    handle = open(token, "rb")  # noqa: SIM115  closed by remove
    with suppress(OSError):  # a file system without locks, where nothing is removed either
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders of processes that were killed, which have a token that nobody holds."""
    for token in parent.glob(f"{prefix}_rank*_*/token"):
        with suppress(OSError), open(token, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(token.parent, ignore_errors=True)


def _is_folder(path: Path, token: str) -> bool:
    try:
        return (path / "token").read_text() == token
    except OSError:
        return False


def _pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in sorted(file for file in folder.iterdir() if file.is_file()):
            archive.add(file, arcname=file.name)
    return buffer.getvalue()


def _unpack(data: bytes, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None and "/" not in member.name
            (folder / member.name).write_bytes(content.read())
    return folder


class JsonLines:
    """A list of dictionaries on disk; it can only be appended to, iterated and measured.

    Pickling turns it into a plain list.
    """

    def __init__(self, folder: str | None = None) -> None:
        """``folder``: where to keep the file, by default the system's temporary folder."""
        self._folder = _Folder(folder, "predictions")
        self._count = 0

    def append(self, item: dict[str, Any]) -> None:
        """Add one dictionary of what JSON can hold."""
        self.extend([item])

    def extend(self, items: Iterable[dict[str, Any]]) -> None:
        """Add several dictionaries."""
        for item in items:
            self._folder.append("lines.json", json.dumps(item).encode() + b"\n")
            self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read([self._folder.path])

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def gather(self, distributed: bool = True) -> Iterator[dict[str, Any]]:
        """The dictionaries of all processes on the main one, in the order of ranks; nothing on the others."""
        return self._read(self._folder.gather(distributed))

    def _read(self, folders: list[Path]) -> Iterator[dict[str, Any]]:
        self._folder.flush()
        for folder in folders:
            if (folder / "lines.json").exists():
                with open(folder / "lines.json", encoding="utf-8") as lines:
                    yield from map(json.loads, lines)

    def remove(self) -> None:
        """Delete the file now; else it goes with this object."""
        self._folder.remove()


class DetectionFiles:
    """The predictions of this process: a list of ``{"image_id", "instances": [detection, ...]}`` on disk.

    A detection is what ``instances_to_coco_json`` makes. It can only be appended to, iterated and measured. Pickling
    turns it into a plain list.
    """

    def __init__(self, folder: str | None = None) -> None:
        """``folder``: where to keep the files, by default the system's temporary folder."""
        self._folder = _Folder(folder, "predictions")
        self._images = 0
        self._rows = 0
        self._rle_bytes = 0

    def append(self, prediction: dict[str, Any]) -> None:
        """Add the predictions for one image.

        Args:
            prediction: ``image_id`` (int or str) and ``instances``, a list of detections.
        """
        instances = prediction["instances"]
        size, end, area = np.full((len(instances), 2), -1), np.zeros(len(instances)), np.full(len(instances), np.nan)
        rows: list[int] = []  # with a mask
        rles: list[dict[str, Any]] = []
        for row, item in enumerate(instances):
            rle = item.get("segmentation")
            if isinstance(rle, dict) and isinstance(rle["counts"], str | bytes):
                counts = rle["counts"]
                rles.append({"size": rle["size"], "counts": counts.encode() if isinstance(counts, str) else counts})
                rows.append(row)
                size[row] = rle["size"]
                self._rle_bytes += len(rles[-1]["counts"])
            end[row] = self._rle_bytes
            # What does not fit into the columns is also kept as it is.
            if not _PLAIN_KEYS.issuperset(item) or "bbox" not in item or (rle is not None and size[row, 0] < 0):
                line = json.dumps({"row": self._rows + row, "detection": item}, default=_decode_bytes)
                self._folder.append("extra.json", line.encode() + b"\n")
        area[rows] = mask_areas(rles)
        columns = {
            "image": np.full(len(instances), self._images),
            "category": np.array([item["category_id"] for item in instances]),
            "score": np.array([item["score"] for item in instances]),
            "box": np.array([item.get("bbox", [np.nan] * 4) for item in instances]).reshape(-1, 4),
            "mask_area": area,
            "rle_size": size,
            "rle_end": end,
        }
        for name, values in columns.items():
            self._folder.append(name, values.astype(_COLUMNS[name][0]).tobytes())
        self._folder.append("rle", b"".join(rle["counts"] for rle in rles))
        image_id = prediction["image_id"]
        image_id = image_id.item() if hasattr(image_id, "item") else image_id
        self._folder.append("images.json", json.dumps([image_id, len(instances)]).encode() + b"\n")
        self._images += 1
        self._rows += len(instances)

    def extend(self, predictions: Iterable[dict[str, Any]]) -> None:
        """Add the predictions for several images."""
        for prediction in predictions:
            self.append(prediction)

    def __len__(self) -> int:
        return self._images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._folder.flush()
        return Detections.load([self._folder.path]).by_image()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)

    def gather(self, distributed: bool = True) -> "Detections | None":
        """The predictions of all processes on the main one, in the order of ranks; None on the others.

        They can be used until ``remove`` is called or this object goes away.
        """
        folders = self._folder.gather(distributed)
        return Detections.load(folders) if folders else None

    def remove(self) -> None:
        """Delete the files now; else they go with this object."""
        self._folder.remove()


def mask_areas(rles: list[dict[str, Any]]) -> np.ndarray:
    """(n,) pixels of compressed run-length encodings."""
    # In groups: pycocotools 2.0.11 counts them in a byte.
    groups = [mask_utils.area(rles[i : i + 255]) for i in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0), *groups])


def _decode_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a detection holds {type(value).__name__}, which cannot be written as JSON")


@dataclass
class Detections:
    """The detections of all images as arrays of n rows; masks stay on disk.

    Attributes:
        image_ids: of each image, in the order of processing.
        image: (n,) indices into ``image_ids``, ascending.
        category: (n,) class index of the model; after ``map_categories`` the category id of the annotations.
        score: (n,)
        box: (n, 4) x, y, width, height in pixels; NaN where a detection has none.
        mask_area: (n,) pixels; NaN where a detection has no mask.
        rle_size: (n, 2) height and width of the mask, -1 where a detection has none.
        extra: row → the whole detection, for those with fields beyond these.
    """

    image_ids: list[int | str]
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    mask_area: np.ndarray
    rle_size: np.ndarray
    extra: dict[int, dict[str, Any]]
    _rle_end: np.ndarray  # (n,) in the file of the row's process
    _rles: list[np.ndarray]  # uint8, one memory map per process
    _first_rows: np.ndarray  # of each process

    @classmethod
    def load(cls, folders: list[Path]) -> "Detections":
        """Read the folders of all processes."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        image_ids: list[int | str] = []
        extra: dict[int, dict[str, Any]] = {}
        rles, first_rows, rows = [], [], 0
        for folder in folders:
            first_rows.append(rows)
            rles.append(_memory_map(folder / "rle", "u1", ()))
            if not (folder / "images.json").exists():
                continue
            for name, (kind, shape) in _COLUMNS.items():
                parts[name].append(_memory_map(folder / name, kind, shape))
            parts["image"][-1] = parts["image"][-1] + len(image_ids)
            with open(folder / "images.json", encoding="utf-8") as lines:
                image_ids.extend(json.loads(line)[0] for line in lines)
            if (folder / "extra.json").exists():
                with open(folder / "extra.json", encoding="utf-8") as lines:
                    for line in map(json.loads, lines):
                        extra[rows + line["row"]] = line["detection"]
            rows += len(parts["image"][-1])
        empty = {name: np.zeros((0, *shape), kind) for name, (kind, shape) in _COLUMNS.items()}
        columns = {name: np.concatenate([empty[name], *values]) for name, values in parts.items()}
        end = columns.pop("rle_end")
        return cls(image_ids, **columns, extra=extra, _rle_end=end, _rles=rles, _first_rows=np.array(first_rows))

    def __len__(self) -> int:
        return len(self.image)

    @property
    def has_masks(self) -> bool:
        """Whether any detection has a segmentation."""
        return bool((self.rle_size[:, 0] >= 0).any()) or any("segmentation" in item for item in self.extra.values())

    def segmentation(self, row: int) -> dict[str, Any] | None:
        """Compressed run-length encoding of a detection's mask, ``counts`` as str; None where it has none."""
        if row in self.extra:
            return self.extra[row].get("segmentation")
        if self.rle_size[row, 0] < 0:
            return None
        part = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        start = 0 if row == self._first_rows[part] else self._rle_end[row - 1]
        counts = self._rles[part][start : self._rle_end[row]].tobytes()
        return {"size": self.rle_size[row].tolist(), "counts": counts.decode()}

    def as_dict(self, row: int) -> dict[str, Any]:
        """A detection as ``instances_to_coco_json`` made it."""
        if row in self.extra:
            return {**self.extra[row], "category_id": int(self.category[row])}
        item = {
            "image_id": self.image_ids[self.image[row]],
            "category_id": int(self.category[row]),
            "bbox": self.box[row].tolist(),
            "score": float(self.score[row]),
        }
        segmentation = self.segmentation(row)
        return item if segmentation is None else {**item, "segmentation": segmentation}

    def by_image(self) -> Iterator[dict[str, Any]]:
        """``{"image_id", "instances"}`` of each image, in the order of processing."""
        bounds = np.searchsorted(self.image, np.arange(len(self.image_ids) + 1))
        for index, image_id in enumerate(self.image_ids):
            rows = range(int(bounds[index]), int(bounds[index + 1]))
            yield {"image_id": image_id, "instances": [self.as_dict(row) for row in rows]}


def _memory_map(file: Path, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if not file.exists() or not file.stat().st_size:  # an empty file cannot be mapped
        return np.zeros((0, *shape), kind)
    # A view without memmap's class, whose every slice costs microseconds.
    return np.memmap(file, kind, mode="r").reshape(-1, *shape).view(np.ndarray)
