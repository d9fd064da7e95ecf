"""Writing lists that do not fit into memory item by item; the files appear whole."""

import json
import pickle
import zipfile
from collections.abc import Iterable
from typing import Any

from detectron2.utils.atomic import atomic_write

__all__ = ["write_json_list", "write_torch_list"]


def write_json_list(path: str, items: Iterable[Any]) -> None:
    """``json.dump(list(items))`` without the list."""
    with atomic_write(path) as file:
        separator = "["
        for item in items:
            file.write(separator + json.dumps(item))
            separator = ", "
        file.write("[]" if separator == "[" else "]")


def write_torch_list(path: str, items: Iterable[Any]) -> None:
    """``torch.save(list(items))`` without the list, for items of plain Python types.

    ``torch.load(path)`` reads it, with ``weights_only=True`` too: it is an archive of torch's format whose pickle is
    put together from the pickles of the items.
    """
    with atomic_write(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        with archive.open("archive/data.pkl", "w", force_zip64=True) as data:
            data.write(pickle.PROTO + b"\x02" + pickle.EMPTY_LIST)
            for item in items:
                # An item's own pickle without its header (PROTO 2) and its STOP. Indices of its memo start from 0
                # again and overwrite those of the item before, which nothing refers to any more.
                data.write(pickle.dumps(item, protocol=2)[2:-1] + pickle.APPEND)
            data.write(pickle.STOP)
