"""ImageNet-21K from its tar archives, one per class, without unpacking them.

``TARFILE_PATH`` is an array of archive paths, whose order is that of the classes. ``TAR_INDEX_DIR`` holds per archive
``<stem>_offsets.npy``: the 512-byte block of each image's header, then the first block behind the last image.
"""

import io
import os
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from prompt_pretrain.array_files import read_npy
from prompt_pretrain.classification.decoding import ImageError, decode_image
from prompt_pretrain.classification.tar_archives import BLOCK, MAX_MEMBER_BYTES, entry_data
from prompt_pretrain.errors import InputError

__all__ = ["DiskTarDataset"]

_GREY_SIDE, _GREY_VALUE = 224, 128
_MAX_ENTRY_BYTES = MAX_MEMBER_BYTES + 64 * BLOCK  # a member with its headers
_MAX_BLOCK = 1 << 53  # beyond any file


class DiskTarDataset(Dataset):
    """The images of all archives in order; the label of an image is the number of its archive.

    Archives are opened for each image anew: there are more of them than a process may hold open.

    Args:
        tarfile_path: ``.npy`` array of the archives' paths.
        tar_index_dir: folder of the indexes.
    Raises:
        InputError: a file is missing or of another form.
    """

    def __init__(
        self,
        tarfile_path: str | os.PathLike = "datasets/imagenet/metadata-22k/tar_files.npy",
        tar_index_dir: str | os.PathLike = "datasets/imagenet/metadata-22k/tarindex_npy",
    ) -> None:
        self.archives = _read_archive_list(tarfile_path)
        folder = Path(tar_index_dir)
        offsets = [_read_offsets(folder / f"{Path(archive).stem}_offsets.npy", archive) for archive in self.archives]
        # One array for all: worker processes share it, and 14 million images take 112 MB.
        self._offsets = np.concatenate(offsets)
        self._first_offset = np.cumsum([0, *(len(part) for part in offsets)])
        self.dataset_lens = [len(part) - 1 for part in offsets]
        self._first_image = np.cumsum([0, *self.dataset_lens])

    def __len__(self) -> int:
        return int(self._first_image[-1])

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """RGB image and label; for one that cannot be decoded a grey image of 224 x 224 pixels and the label -1."""
        try:
            return self.read_image(index), self._locate(index)[0]
        except ImageError:
            return Image.new("RGB", (_GREY_SIDE, _GREY_SIDE), (_GREY_VALUE,) * 3), -1

    def read_image(self, index: int) -> Image.Image:
        """The image number ``index``, upright and in RGB.

        Raises:
            IndexError: there is no such number.
            ImageError: the image cannot be read.
            InputError: its archive is missing.
        """
        number, start, stop = self._locate(index)
        archive = self.archives[number]
        name = f"{archive} (image {index}, block {start})"
        try:
            size = min((stop - start) * BLOCK, _MAX_ENTRY_BYTES)
            with open(archive, "rb") as file:
                file.seek(start * BLOCK)
                data = entry_data(file.read(size), archive)
        except FileNotFoundError:
            raise InputError(f"{archive} does not exist; check the paths in DATALOADER.TARFILE_PATH") from None
        except OSError as error:
            raise ImageError(name, error.strerror or str(error)) from error
        except InputError as error:
            raise ImageError(name, str(error)) from error
        return decode_image(io.BytesIO(data), name)

    def _locate(self, index: int) -> tuple[int, int, int]:
        """(archive number, first block, block behind the last) of an image."""
        if not isinstance(index, Integral) or not 0 <= index < len(self):
            raise IndexError(f"image {index!r} of the tar data set, which has the images 0 to {len(self) - 1}")
        number = int(np.searchsorted(self._first_image, index, side="right")) - 1
        position = int(self._first_offset[number] + index - self._first_image[number])
        return number, int(self._offsets[position]), int(self._offsets[position + 1])


def _read_archive_list(path: str | os.PathLike) -> list[str]:
    array = _load_npy(path, "DATALOADER.TARFILE_PATH")
    if array.ndim != 1 or array.dtype.kind not in "US" or len(array) == 0:
        raise InputError(
            f"{path} holds an array of shape {array.shape} and type {array.dtype}, expected a list of archive paths; "
            f"set DATALOADER.TARFILE_PATH to tar_files.npy"
        )
    return [os.fsdecode(entry) if isinstance(entry, bytes) else str(entry) for entry in array.tolist()]


def _read_offsets(path: Path, archive: str) -> np.ndarray:
    offsets = _load_npy(path, "DATALOADER.TAR_INDEX_DIR")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) == 0:
        raise InputError(
            f"{path} holds an array of shape {offsets.shape} and type {offsets.dtype}, expected n + 1 whole numbers "
            f"for the n images of {archive}; make the index again"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > _MAX_BLOCK or (np.diff(offsets) <= 0).any():
        raise InputError(f"the block numbers in {path} do not ascend from 0 or more; make the index again")
    return offsets


def _load_npy(path: str | os.PathLike, key: str) -> np.ndarray:
    try:
        return read_npy(path, f"check {key}")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; make the index of ImageNet-21K's archives, or set {key}") from None
