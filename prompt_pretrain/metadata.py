"""The fact files of ``datasets/metadata``: class lists, splits, templates."""

import gzip
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from prompt_pretrain.errors import InputError

_FOLDER_VARIABLE = "OPENVOCAB_METADATA"


def metadata_file(name: str) -> Path:
    """Path of a file of ``datasets/metadata``.

    Looked for in the folder that ``OPENVOCAB_METADATA`` names, in the repository that holds this package, and below the
    current folder: a wheel holds no data.

    Raises:
        InputError: it is in none of them.
    """
    folders = [Path(__file__).resolve().parents[1] / "datasets" / "metadata", Path.cwd() / "datasets" / "metadata"]
    if os.environ.get(_FOLDER_VARIABLE):
        folders.insert(0, Path(os.environ[_FOLDER_VARIABLE]))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{name} not found in {' or '.join(map(str, dict.fromkeys(folders)))}; set {_FOLDER_VARIABLE} to the "
        "datasets/metadata folder of a checkout of the repository"
    )


@lru_cache(maxsize=32)
def read_metadata(name: str) -> Any:
    """Content of the JSON file ``name`` (``.gz``: compressed); shared between callers, so never change it."""
    data = metadata_file(name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)


@lru_cache(maxsize=32)
def read_columns(name: str) -> dict[str, tuple[Any, ...]]:
    """A table file (``columns`` and ``rows``) as column name -> values."""
    table = read_metadata(name)
    return dict(zip(table["columns"], zip(*table["rows"], strict=True), strict=True))
